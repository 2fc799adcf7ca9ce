#include "train/workbench/operation_file.h"

#include <cmath>
#include <sstream>

#include "core/hdf5.h"
#include "core/text.h"

namespace weft::train {
namespace {

using namespace kernels;
using Kind = Hdf5Entry::Kind;

const std::vector<std::string> kGroups = {"inputs", "grad_outputs", "outputs", "gradients",
                                          "options"};

std::vector<std::string> input_names(const Operation& op) {
  std::vector<std::string> names;
  for (const Field& f : op.inputs()) names.emplace_back(f.name);
  for (const Setting& s : op.settings())
    if (s.tensor) names.push_back(s.name);
  return names;
}

// The names of all that the operation reads.
std::vector<std::string> read_names(const Operation& op) {
  std::vector<std::string> names = input_names(op);
  for (const std::string& dy : output_gradient_names(op)) names.push_back(dy);
  return names;
}

// A name without its groups.
std::string last_of(const std::string& name) { return name.substr(name.rfind('/') + 1); }

std::string text_of(const Attribute& value, const std::string& where) {
  std::ostringstream text;
  text.precision(17);
  if (const auto* i = std::get_if<int64_t>(&value))
    text << *i;
  else if (const auto* d = std::get_if<double>(&value))
    text << *d;
  else if (const auto* s = std::get_if<std::string>(&value))
    text << *s;
  else
    fail(where, " is a list, expected one value");
  return text.str();
}

Tensor read_tensor(const Hdf5Reader& file, const Hdf5Entry& entry) {
  require(entry.kind == Kind::tensor, file.path(), ": \"", entry.name, "\" is ", entry.what,
          "; expected a tensor of numbers with at most ", Shape::kMax, " dimensions");
  return file.tensor(entry.name);
}

// Tensors of a group, by their names within it.
Tensors read_group(const Hdf5Reader& file, const std::string& group) {
  Tensors tensors;
  if (!file.has_group(group)) return tensors;
  for (const Hdf5Entry& entry : file.entries(group))
    tensors[last_of(entry.name)] = read_tensor(file, entry);
  return tensors;
}

// Flat files: a name says whether a tensor is an input or an output's gradient.
void read_flat(const Hdf5Reader& file, const Operation& op, OperationFile& f) {
  const std::vector<std::string> inputs = input_names(op), all = read_names(op);
  for (const Hdf5Entry& entry : file.entries()) {
    const bool known = contains(all, entry.name);
    if (!known && entry.kind != Kind::tensor) continue;
    if (!known) fail(file.path(), ": ", op.name(), ": ", unknown_name("tensor", entry.name, all));
    (contains(inputs, entry.name) ? f.inputs : f.output_gradients)[entry.name] =
        read_tensor(file, entry);
  }
}

// Refuses what stands where nothing is read: tensors beside the groups, groups beside the tensors,
// and names of the operation in a group that it does not have.
void check_layout(const Hdf5Reader& file, const Operation& op, bool grouped) {
  const std::vector<std::string> names = read_names(op);
  for (const Hdf5Entry& entry : file.entries()) {
    const bool group = contains(kGroups, entry.name);
    require(!group || entry.kind == Kind::group, file.path(), ": \"", entry.name, "\" is ",
            entry.what, "; expected a group");
    require(grouped || !group || entry.name == "options", file.path(), ": ", entry.name,
            "/ stands there and inputs/ does not; expected the inputs in inputs/");
    require(!grouped || !contains(names, entry.name), file.path(), ": \"", entry.name,
            "\" stands at the root beside inputs/, where it is not read; move it into ",
            contains(input_names(op), entry.name) ? "inputs/" : "grad_outputs/");
    if (group || contains(names, entry.name) || entry.kind != Kind::group) continue;
    for (const Hdf5Entry& inner : file.entries(entry.name))
      if (contains(names, last_of(inner.name)))
        fail(file.path(), ": \"", inner.name,
             "\" stands where it is not read: ", unknown_name("group", entry.name, kGroups));
  }
}

Settings read_options(const Hdf5Reader& file, const Operation& op) {
  for (const Setting& s : op.settings())
    for (const char* object : {"", "inputs"})
      require(!file.has_attribute(object, s.name), file.path(), ": attribute \"", s.name,
              "\" stands at ", *object ? "inputs/" : "the root",
              ", where it is not read; options are attributes of the group options/");
  Settings settings;
  if (!file.has_group("options")) return settings;
  for (const Hdf5Entry& entry : file.entries("options"))
    fail(file.path(), ": \"", entry.name, "\" is ", entry.what,
         "; an option is an attribute of options/");
  for (const std::string& name : file.attribute_names("options"))
    settings[name] =
        text_of(file.attribute("options", name), concat(file.path(), ": options/", name));
  return settings;
}

}  // namespace

std::vector<std::string> output_gradient_names(const Operation& op) {
  std::vector<std::string> names;
  for (const Field& f : op.outputs()) names.push_back(gradient_name(f.name));
  return names;
}

OperationFile read_operation_file(const std::string& path, const Operation& op) {
  const Hdf5Reader file(path, "operation file");
  OperationFile f;
  if (file.has_attribute("", "operation")) f.operation = file.text("", "operation");
  if (file.has_attribute("", "tolerance")) f.tolerance = file.number("", "tolerance");
  require(std::isfinite(f.tolerance) && f.tolerance >= 0, path, ": attribute \"tolerance\" is ",
          f.tolerance, ", expected a finite number of at least 0");
  f.grouped = file.has_group("inputs");
  check_layout(file, op, f.grouped);
  if (f.grouped) {
    f.inputs = read_group(file, "inputs");
    f.output_gradients = read_group(file, "grad_outputs");
    f.outputs = read_group(file, "outputs");
    f.gradients = read_group(file, "gradients");
  } else {
    read_flat(file, op, f);
  }
  require(!f.inputs.empty(), path, ": holds no tensors", f.grouped ? " in inputs/" : "", "; ",
          op.name(), " reads ", joined(read_names(op)));
  f.settings = read_options(file, op);
  return f;
}

}  // namespace weft::train
