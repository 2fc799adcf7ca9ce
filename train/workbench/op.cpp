#include "train/workbench/op.h"

#include <algorithm>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "core/file.h"
#include "core/hdf5.h"
#include "core/text.h"
#include "core/units.h"
#include "kernels/contract/agreement.h"
#include "kernels/contract/naive_memory.h"
#include "kernels/contract/rounding.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

using namespace kernels;

// The value of a flag: what follows "=", or the next word unless it is a flag itself, or "true".
std::string value_of(const std::string& word, const std::vector<std::string>& words, size_t& i) {
  if (const size_t equals = word.find('='); equals != std::string::npos)
    return word.substr(equals + 1);
  if (i + 1 < words.size() && words[i + 1].rfind("--", 0) != 0) return words[++i];
  return "true";
}

Dtype dtype_of_inputs(const Operation& op, const Tensors& inputs) {
  for (const Field& f : op.inputs())
    if (const auto found = inputs.find(f.name);
        found != inputs.end() && is_float(found->second.dtype()))
      return found->second.dtype();
  return Dtype::f32;
}

// Runs f and puts the file's name before what it complains of.
template <class F>
decltype(auto) in_file(const std::string& path, const F& f) {
  try {
    return f();
  } catch (const Error& error) {
    const std::string what = error.what();
    if (what.find(path) != std::string::npos) throw;
    fail(path, ": ", what);
  }
}

void check_gradients(const Operation& op, const Tensors& dy, const Tensors& outputs) {
  const std::vector<std::string> known = output_gradient_names(op);
  for (const auto& [name, d] : dy) {
    if (!contains(known, name)) fail(op.name(), ": ", unknown_name("output gradient", name, known));
    for (const auto& [output, y] : outputs)
      require(name != gradient_name(output) || d.shape() == y.shape(), op.name(), ": ", name,
              " has shape ", d.shape(), ", expected ", y.shape(), " as ", output);
  }
}

struct Run {
  Tensors outputs, gradients;
};

Run run(const Operation& op, const OperationFile& file, Settings settings, Form form, Dtype dtype,
        bool backward, Device device = kCpu) {
  Tensors inputs = on_device(device, rounded_to(dtype, file.inputs, op.inputs()));
  const std::vector<std::string> written = op.prepare_written(inputs, settings);
  if (form == Form::naive && backward) require_naive_memory(op.name(), inputs, settings);
  Run r;
  r.outputs = op.forward(form, inputs, settings);
  for (const std::string& name : written) r.outputs[name] = inputs.at(name);
  check_gradients(op, file.output_gradients, r.outputs);
  if (backward)
    r.gradients =
        op.backward(form, inputs, settings,
                    on_device(device, rounded_to(dtype, file.output_gradients, op.outputs())));
  return r;
}

// "[N + 1]" of "i32 [N + 1]: where documents begin".
std::string letters(const std::string& help) {
  const size_t begin = help.find('['), end = help.find(']');
  return begin < end && end != std::string::npos ? help.substr(begin, end + 1 - begin) : "";
}

void print_list(std::ostream& out) {
  const auto tensors = [](const std::vector<Field>& fields) {
    std::string line;
    for (const Field& f : fields)
      line += (line.empty() ? "" : "  ") + std::string(f.name) + " " + f.shape +
              (f.optional ? "?" : "");
    return line;
  };
  size_t width = 0;
  for (const Operation* op : operations()) width = std::max(width, op->name().size());
  for (const Operation* op : operations()) {
    std::string index;
    for (const Setting& s : op->settings())
      if (s.tensor) index += "  " + s.name + " " + letters(s.help);
    out << std::left << std::setw(static_cast<int>(width) + 2) << op->name()
        << tensors(op->inputs()) << (index.empty() ? "" : "  |") << index << "\n"
        << std::string(width + 2, ' ') << "-> " << tensors(op->outputs()) << "\n";
  }
  out << "\n?: may be absent. After |: integer tensors. `weft op NAME --help` shows the "
         "options.\n";
}

// A number with all its digits, or with six where those are the same number: 1e-06.
std::string shortest(const std::string& standard) {
  char* end = nullptr;
  const double v = std::strtod(standard.c_str(), &end);
  if (standard.empty() || *end != '\0') return standard;
  const std::string text = number_text("%g", v);
  return std::strtod(text.c_str(), nullptr) == v ? text : standard;
}

void print_help(const Operation& op, std::ostream& out) {
  const auto row = [&](const std::string& name, const std::string& text, const std::string& more) {
    const std::string gap(text.size() < 18 || more.empty() ? 0 : 2, ' ');
    out << "  " << std::left << std::setw(18) << name << std::setw(18) << text << gap << more
        << "\n";
  };
  out << "weft op " << op.name() << " IN.h5 OUT.h5 [flags]\n\ninputs\n";
  for (const Field& f : op.inputs())
    row(f.name, f.shape,
        std::string(f.optional ? "may be left out; " : "") + "gradient " + gradient_name(f.name));
  bool first = true;
  for (const Setting& s : op.settings()) {
    if (!s.tensor) continue;
    if (first) out << "integer tensors\n";
    first = false;
    row(s.name, s.help, "");
  }
  out << "outputs\n";
  for (const Field& f : op.outputs()) row(f.name, f.shape, "gradient " + gradient_name(f.name));
  first = true;
  for (const Setting& s : op.settings()) {
    if (s.tensor) continue;
    if (first) out << "options\n";
    first = false;
    row("--" + s.name, shortest(s.standard), s.help);
  }
  std::vector<std::string> forms;
  for (const Form form : op.forms()) forms.push_back(name_of(form));
  out << "flags of every operation\n";
  row("--form", "chunkwise", joined(forms, " | "));
  row("--dtype", "the first input's", "f64 | f32 | bf16");
  row("--device", "cpu", "cpu | cuda, where the chunkwise form runs in f32 and bf16");
  row("--backward", "", "write gradients too; implied by output gradients in the file, those that");
  row("", "", "are absent are zero");
  out << "\nexample\n  weft op " << op.name() << " in.h5 out.h5 --backward --dtype f64\n";
}

constexpr const char* kUsage = R"(Run one operation on the tensors of an HDF5 file, or check a file.

usage
  weft op NAME IN.h5 OUT.h5 [--backward] [--form F] [--dtype T] [--OPTION VALUE]...
  weft op NAME --help       every tensor and option of an operation
  weft op --list            all operations with their tensors
  weft op --check FILE...   compare a file's outputs/ and gradients/ with ours, in all forms;
                            exits with 1 on a mismatch

The input file holds tensors by name at its root, or in inputs/, with output gradients in
grad_outputs/ and options as attributes of options/; flags override these. The output file is laid
out alike.

example
  weft op attention in.h5 out.h5 --backward --window 512 --dtype f64
)";

// A file that cannot be read is reported at the end, after all other files were compared.
int check_files(const OpArguments& a, std::ostream& out) {
  int failed = 0, seen = 0;
  std::string refused;
  const Device device = device_from(a.device);
  const Dtype exact = device.is_cuda() ? Dtype::f32 : Dtype::f64;
  const Dtype dtype = a.dtype.empty() ? exact : dtype_from(a.dtype);
  const auto compare = [&](const std::string& path) {
    const Hdf5Reader file(path, "operation file");
    require(file.has_attribute("", "operation"), path,
            ": has no attribute \"operation\" at its root; expected a name of `weft op --list`");
    const Operation& op =
        in_file(path, [&]() -> decltype(auto) { return operation(file.text("", "operation")); });
    out << path << "\n";
    bool compared = false;
    for (const Form form : op.forms()) {
      if (!a.form.empty() && form != form_from(a.form)) continue;
      if (device.is_cuda() && form != Form::chunkwise) continue;
      compared = true;
      for (const OpCheck& c : check_operation_file(path, form, dtype, device)) {
        out << "  " << std::left << std::setw(10) << c.form
            << (c.passed() ? " ok      " : " FAILED  ") << c.text << "\n";
        ++seen;
        failed += !c.passed();
      }
    }
    require(compared, path, ": nothing to compare: ", op.name(), " has no ", a.form, " form on ",
            a.device);
    flush_output();
  };
  for (const std::string& path : a.check) {
    try {
      compare(path);
    } catch (const Error& e) {
      refused += (refused.empty() ? "" : "\n") + std::string(e.what());
    }
  }
  if (seen > 0)
    out << seen << " tensors compared in " << name_of(dtype) << ", " << failed << " failed\n";
  if (!refused.empty()) fail(refused);
  return failed ? 1 : 0;
}

}  // namespace

OpArguments op_arguments(const std::vector<std::string>& words) {
  OpArguments a;
  std::vector<std::string> places;
  bool checking = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "-h") {
      a.help = true;
    } else if (word.rfind("--", 0) != 0) {
      (checking ? a.check : places).push_back(word);
    } else {
      std::string name = word.substr(
          2, word.find('=') == std::string::npos ? std::string::npos : word.find('=') - 2);
      std::replace(name.begin(), name.end(), '-', '_');
      if (name == "help")
        a.help = true;
      else if (name == "list")
        a.list = true;
      else if (name == "backward")
        a.backward = true;
      else if (name == "check")
        checking = true;
      else if (name == "form")
        a.form = value_of(word, words, i);
      else if (name == "dtype")
        a.dtype = value_of(word, words, i);
      else if (name == "device")
        a.device = value_of(word, words, i);
      else
        a.settings[name] = value_of(word, words, i);
    }
  }
  require(places.size() <= 3, "op: \"", places.size() > 3 ? places[3] : "",
          "\" is one word too many; expected NAME IN.h5 OUT.h5");
  if (!places.empty()) a.name = places[0];
  if (places.size() > 1) a.in = places[1];
  if (places.size() > 2) a.out = places[2];
  require(!checking || !a.check.empty(), "op --check: no file given");
  return a;
}

// What the tensor cores' rounding costs at best: the chunkwise form in f64 with operands of
// products, inputs and results rounded to bf16.
Run rounded_form(const Operation& op, const OperationFile& file, bool backward) {
  const OperandRounding rounding;
  OperationFile f = file;
  f.inputs = rounded_to(Dtype::bf16, f.inputs, op.inputs());
  f.output_gradients = rounded_to(Dtype::bf16, f.output_gradients, op.outputs());
  Run r = run(op, f, f.settings, Form::chunkwise, Dtype::f64, backward);
  return {rounded_to(Dtype::bf16, r.outputs, op.outputs()),
          rounded_to(Dtype::bf16, r.gradients, op.inputs())};
}

std::vector<OpCheck> check_operation_file(const std::string& path, Form form, Dtype dtype,
                                          Device device) {
  return in_file(path, [&] {
    const Operation& op = operation(Hdf5Reader(path, "operation file").text("", "operation"));
    const OperationFile f = read_operation_file(path, op);
    const bool backward = !f.gradients.empty();
    int64_t numbers = 0;
    for (const Tensors& expected : {f.outputs, f.gradients})
      for (const auto& [name, t] : expected) numbers += t.numel();
    require(numbers > 0, path, ": nothing to compare: outputs/ and gradients/ hold no numbers");
    const Run r = run(op, f, f.settings, form, dtype, backward, device);
    // What rounding inputs and results does on its own, below f64: ours against ours, so that wrong
    // numbers of the file do not widen their own bound.
    const bool by_form = device.is_cuda() && dtype == Dtype::bf16;
    const Run exact = dtype == Dtype::f64
                          ? Run{f.outputs, f.gradients}
                          : run(op, f, f.settings, Form::naive, Dtype::f64, backward);
    const Run best = dtype == Dtype::f64 ? exact
                     : by_form           ? rounded_form(op, f, backward)
                                         : run(op, f, f.settings, Form::naive, dtype, backward);
    std::vector<OpCheck> list;
    const auto compare = [&](const Tensors& got, const Tensors& rounded, const Tensors& unrounded,
                             const Tensors& expected, double floor) {
      for (const auto& [name, wanted] : expected) {
        const auto found = got.find(name);
        require(found != got.end(), op.name(), " has no ", name, " to compare");
        Agreement a{name, difference(found->second, wanted, floor, name), 0};
        const double least =
            bound_of(op.name(), "", name, dtype == Dtype::bf16 ? Dtype::f32 : dtype);
        const double rounding =
            1.5 * difference(rounded.at(name), unrounded.at(name), floor, name).error;
        a.bound = std::max(by_form ? std::max(least, rounding) : least + rounding, f.tolerance);
        list.push_back({name_of(form), name, a.difference.error, a.bound, text(a)});
      }
    };
    compare(r.outputs, best.outputs, exact.outputs, f.outputs, 0);
    compare(r.gradients, best.gradients, exact.gradients, f.gradients, floor_of(dtype));
    return list;
  });
}

int run_op(const OpArguments& a, std::ostream& out) {
  if (a.list) {
    print_list(out);
    return 0;
  }
  if (!a.check.empty()) return check_files(a, out);
  if (a.help && a.name.empty()) {
    out << kUsage;
    return 0;
  }
  require(!a.name.empty(), "op: no operation named; expected NAME IN.h5 OUT.h5, ",
          "`weft op --list` shows the names");
  const Operation& op = operation(a.name);
  if (a.help) {
    print_help(op, out);
    return 0;
  }
  require(!a.out.empty(), "op ", a.name, ": expected IN.h5 OUT.h5; `weft op ", a.name,
          " --help` shows the tensors");
  const Device device = device_from(a.device);
  const Form form = form_from(a.form.empty() ? "chunkwise" : a.form);
  require(!device.is_cuda() || form == Form::chunkwise, "op: the ", a.form,
          " form runs on the CPU; leave out --device cuda");

  require_output(a.out, {a.in});
  const OperationFile file = read_operation_file(a.in, op);
  Settings settings = file.settings;
  for (const auto& [name, value] : a.settings) settings[name] = value;
  const Dtype dtype = a.dtype.empty() ? dtype_of_inputs(op, file.inputs) : dtype_from(a.dtype);
  require(is_float(dtype), "op: ", dtype, " is no type to compute in; known: f64 f32 bf16");
  const Run r = in_file(a.in, [&] {
    return run(op, file, settings, form, dtype, a.backward || !file.output_gradients.empty(),
               device);
  });

  Hdf5Writer writer(a.out);
  writer.attribute("", "operation", op.name());
  writer.attribute("", "form", name_of(form));
  writer.attribute("", "dtype", std::string(name_of(dtype)));
  for (const auto& [name, t] : r.outputs)
    writer.tensor((file.grouped ? "outputs/" : "") + name, t.to(kCpu).contiguous());
  for (const auto& [name, t] : r.gradients)
    writer.tensor((file.grouped ? "gradients/" : "") + name, t.to(kCpu).contiguous());
  writer.commit();
  std::ostream& told = is_standard_output(a.out) ? std::cerr : out;
  told << a.out << ": " << r.outputs.size() << " outputs, " << r.gradients.size()
       << " gradients of " << op.name() << " (" << name_of(form) << ", " << name_of(dtype) << ")\n";
  return 0;
}

}  // namespace weft::train
