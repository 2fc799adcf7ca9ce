#include "train/workbench/results.h"

#include <cmath>
#include <filesystem>

#include "core/hdf5.h"
#include "core/text.h"
#include "train/workbench/operation_file.h"

namespace weft::train {
namespace {

using namespace kernels;
using Kind = Hdf5Entry::Kind;

const std::vector<std::string> kGroups = {"outputs", "gradients", "inputs"};

std::string last_of(const std::string& name) { return name.substr(name.rfind('/') + 1); }

std::vector<std::string> names_of(const Tensors& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, t] : tensors) names.push_back(name);
  return names;
}

// The dtype that an answer must have; bf16 may come as f32, for many languages have no bf16.
bool takes(Dtype wanted, Dtype got) {
  if (!is_float(wanted)) return !is_float(got);
  return got == wanted || (wanted == Dtype::bf16 && got == Dtype::f32);
}

// How `got` differs in form from what is wanted; empty where it does not.
std::string misfit(const TensorInfo& got, Dtype dtype, const Shape& shape) {
  if (got.shape != shape) return concat("has shape ", got.shape, ", expected ", shape);
  if (takes(dtype, got.dtype)) return "";
  if (!is_float(dtype)) return concat("is ", got.dtype, ", expected integers");
  return concat("is ", got.dtype, ", expected ", dtype, dtype == Dtype::bf16 ? " or f32" : "");
}

// Where two tensors of one shape differ first, to the bit for floats of one dtype.
std::string change(const Tensor& now, const Tensor& before) {
  if (now.shape() != before.shape())
    return concat("has shape ", now.shape(), ", the case has ", before.shape());
  if (same_bits(now, before)) return "";
  const std::vector<double> a = to_doubles(now), b = to_doubles(before);
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i])))
      return concat("was changed: element ", i, " is ", a[i], ", the case has ", b[i]);
  return "";
}

class Reading {
 public:
  Reading(const Hdf5Reader& file, const CaseFile& c, const Question& q, ResultFile& r)
      : file_(file), case_(c), question_(q), result_(r) {}

  void run() {
    if (file_.has_attribute("", "declined")) result_.declined = reason();
    for (const Hdf5Entry& entry : file_.entries()) {
      if (contains(kGroups, entry.name) && entry.kind == Kind::group)
        group(entry.name);
      else
        add("", concat("\"", entry.name, "\" stands at the root, where nothing is read; expected ",
                       "the groups outputs/ and gradients/"));
    }
  }

 private:
  void add(const std::string& tensor, const std::string& text) {
    result_.findings.push_back({tensor, text});
  }

  std::string reason() const {
    const Attribute value = file_.attribute("", "declined");
    const auto* text = std::get_if<std::string>(&value);
    return text && !text->empty() ? *text : "no reason given";
  }

  void group(const std::string& name) {
    for (const Hdf5Entry& entry : file_.entries(name)) {
      const std::string tensor = last_of(entry.name);
      try {
        if (entry.kind != Kind::tensor)
          add(tensor, concat(entry.name, " is ", entry.what, ", expected a tensor of numbers"));
        else if (name == "inputs")
          input(tensor);
        else if (name == "gradients")
          answer(entry.name, tensor, case_.operation->inputs(), question_.expected.gradients);
        else if (question_.written.count(tensor) > 0)
          answer(entry.name, tensor, {}, question_.written);
        else if (question_.given.count(tensor) > 0 && !is_float(question_.given.at(tensor).dtype()))
          input(tensor, "outputs/");  // an index that forces the choice may be handed back
        else
          answer(entry.name, tensor, case_.operation->outputs(), question_.expected.outputs);
      } catch (const Error& error) {
        add(tensor, error.what());
      }
    }
  }

  void input(const std::string& tensor, const std::string& group = "inputs/") {
    const auto given = question_.given.find(tensor);
    if (given == question_.given.end())
      return add("", concat(group, tensor, ": ",
                            unknown_name("input", tensor, names_of(question_.given))));
    const std::string text = change(file_.tensor(group + tensor), given->second);
    if (!text.empty()) add("", concat("input ", tensor, " ", text));
  }

  void answer(const std::string& path, const std::string& tensor, const std::vector<Field>& fields,
              const Tensors& expected) {
    const auto wanted = expected.find(tensor);
    if (wanted == expected.end()) {
      Tensors all = expected;
      if (&expected == &question_.expected.outputs)
        all.insert(question_.written.begin(), question_.written.end());
      return add(
          "", concat(path, " is not asked for: ", unknown_name("tensor", tensor, names_of(all))));
    }
    const Tensors form = rounded_to(case_.dtype, {{tensor, wanted->second}}, fields);
    const std::string text =
        misfit(file_.info(path), form.at(tensor).dtype(), wanted->second.shape());
    if (!text.empty()) return add(tensor, text);
    result_.answers[tensor] = file_.tensor(path);
  }

  const Hdf5Reader& file_;
  const CaseFile& case_;
  const Question& question_;
  ResultFile& result_;
};

}  // namespace

ResultFile read_result(const std::string& path, const CaseFile& c, const Question& q) {
  ResultFile r;
  std::error_code error;
  r.there = std::filesystem::exists(path, error);
  if (!r.there) return r;
  try {
    const Hdf5Reader file(path, "result");
    Reading(file, c, q, r).run();
  } catch (const Error& e) {
    r.findings.push_back({"", e.what()});
  }
  return r;
}

std::vector<Finding> check_case(const std::string& folder, const CaseFile& c, const Question& q) {
  std::vector<Finding> findings;
  try {
    const OperationFile f = read_operation_file(concat(folder, "/", c.file), *c.operation);
    for (const auto& [now, before] : {std::pair(&f.inputs, &q.given),
                                      std::pair(&f.output_gradients, &q.expected.output_gradients)})
      for (const auto& [name, t] : *before) {
        const auto found = now->find(name);
        const std::string text = found == now->end() ? "is gone" : change(found->second, t);
        if (!text.empty())
          findings.push_back({"", concat("input ", name, " ", text, ", in ", c.file)});
      }
  } catch (const Error& e) {
    findings.push_back({"", concat("the case's file is not as it was written: ", e.what())});
  }
  return findings;
}

}  // namespace weft::train
