#include "kernels/contract/agreement.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>

#include "kernels/contract/rounding.h"

namespace weft::kernels {
namespace {

// Where a form may be further from the definition than its dtype's bound, and why.
struct Looser {
  const char* operation;
  const char* name;  // of the case
  const char* tensor;
  Dtype dtype;
  double bound;
};
constexpr Looser kLooser[] = {
    // The variance of one column is zero and so is dx, a difference of two equal numbers: their
    // rounding, 1e-8, is multiplied by eps^-1/2 = 316.
    {"layer_norm", "one column", "dx", Dtype::f32, 1e-3},
};

// Gradients that vanish by cancellation, where rounding is all that is left, and why.
struct Vanishing {
  const char* operation;
  const char* name;  // of the case
  const char* tensor;
};
constexpr Vanishing kVanishing[] = {
    // A number less its own mean.
    {"layer_norm", "one column", "dx"},
};

// What a gradient of a form on the CPU is measured by at least.
double gradient_floor(const Expected& e, const std::string& tensor) {
  if (e.dtype == Dtype::bf16) return floor_of(e.dtype);  // operands' rounding does not cancel
  for (const Vanishing& v : kVanishing)
    if (e.operation->name() == v.operation && e.name == v.name && tensor == v.tensor)
      return floor_of(e.dtype);
  return 0;
}

std::vector<int64_t> index_of(const Shape& shape, int64_t flat) {
  std::vector<int64_t> index(static_cast<size_t>(shape.dims()));
  for (int d = shape.dims() - 1; d >= 0; --d) {
    index[static_cast<size_t>(d)] = flat % shape[d];
    flat /= shape[d];
  }
  return index;
}

bool is_wide(const std::vector<Field>& fields, const std::string& name) {
  for (const Field& f : fields)
    if (name == f.name || name == gradient_name(f.name)) return f.wide;
  return false;
}

void compare(const Expected& e, const Tensors& got, const Tensors& expected,
             const std::vector<Field>& fields,
             const std::function<double(const std::string&)>& least, std::vector<Agreement>& list) {
  for (const auto& [name, wanted] : expected) {
    const auto found = got.find(name);
    require(found != got.end(), e.operation->name(), ": ", name, " was not computed");
    require(found->second.shape() == wanted.shape(), e.operation->name(), ": ", name, " has shape ",
            found->second.shape(), ", expected ", wanted.shape());
    const bool wide = is_wide(fields, name);
    Agreement a;
    a.tensor = name;
    const double floor = least(name);
    a.difference = difference(found->second, wanted, floor, name);
    if (e.dtype == Dtype::bf16) {
      a.bound = bound_of(e.operation->name(), e.name, name, Dtype::f32);
      if (!wide) a.bound += 1.5 * difference(wanted.to(Dtype::bf16), wanted, floor, name).error;
    } else {
      a.bound = bound_of(e.operation->name(), e.name, name, e.dtype);
    }
    list.push_back(std::move(a));
  }
}

std::vector<Agreement> agreement(const Expected& e, const Tensors& outputs,
                                 const Tensors& gradients,
                                 const std::function<double(const std::string&)>& least) {
  std::vector<Agreement> list;
  compare(
      e, outputs, e.outputs, e.operation->outputs(), [](const auto&) { return 0; }, list);
  compare(e, gradients, e.gradients, e.operation->inputs(), least, list);
  return list;
}

}  // namespace

bool within(double error, double bound) {
  return std::isfinite(error) && std::isfinite(bound) && error <= bound;
}

Difference difference(const Tensor& got, const Tensor& expected, double floor,
                      const std::string& name) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kLeast = std::numeric_limits<double>::min();  // zeros differ from zeros by none
  require(got.shape() == expected.shape(), "difference: ", got.shape(), " and ", expected.shape());
  const std::vector<double> a = to_doubles(got), b = to_doubles(expected);
  Difference d;
  double squares = 0, scale = 0, worst = -1;
  size_t at = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool empty_sums = name == "lse" && a[i] == -kInfinity && b[i] == -kInfinity;
    const bool finite = std::isfinite(a[i]) && std::isfinite(b[i]);
    const double gap = empty_sums ? 0 : finite ? std::abs(a[i] - b[i]) : kInfinity;
    if (std::isfinite(b[i])) scale += b[i] * b[i];
    squares += gap * gap;
    if (gap > worst) {
      worst = gap;
      at = i;
    }
  }
  if (a.empty()) return d;
  const double n = static_cast<double>(a.size());
  d.error = std::isfinite(squares)
                ? std::sqrt(squares / n) / std::max({std::sqrt(scale / n), floor, kLeast})
                : kInfinity;
  d.at = index_of(expected.shape(), static_cast<int64_t>(at));
  d.got = a[at];
  d.expected = b[at];
  return d;
}

double floor_of(Dtype dtype) { return dtype == Dtype::f64 ? 1e-3 : 1e-2; }

double bound_of(const std::string& operation, const std::string& name, const std::string& tensor,
                Dtype dtype) {
  for (const Looser& l : kLooser)
    if (operation == l.operation && name == l.name && tensor == l.tensor && dtype == l.dtype)
      return l.bound;
  return dtype == Dtype::f64 ? 1e-10 : 1e-5;
}

Expected expected_of(const Operation& op, const NamedCase& c, Dtype dtype, Form judge) {
  Expected e;
  e.operation = &op;
  e.name = c.name;
  e.dtype = dtype;
  e.settings = c.settings;
  e.inputs = rounded_to(dtype, c.inputs, op.inputs());
  const Tensors exact = rounded_to(Dtype::f64, e.inputs, op.inputs());
  e.outputs = op.forward(judge, exact, c.settings);
  e.output_gradients = rounded_to(dtype, random_gradients(e.outputs, 1), op.outputs());
  e.gradients = op.backward(judge, exact, c.settings,
                            rounded_to(Dtype::f64, e.output_gradients, op.outputs()));
  return e;
}

std::vector<Agreement> agreement(const Expected& e, const Tensors& outputs,
                                 const Tensors& gradients) {
  return agreement(e, outputs, gradients,
                   [&](const std::string& name) { return gradient_floor(e, name); });
}

Errors rounding_errors(const Expected& e) {
  const Operation& op = *e.operation;
  require(e.dtype == Dtype::bf16, op.name(), ": rounding_errors() is for bf16, not ", e.dtype);
  const OperandRounding rounding;
  const Tensors in = rounded_to(Dtype::f64, e.inputs, op.inputs());
  const Tensors dy = rounded_to(Dtype::f64, e.output_gradients, op.outputs());
  Errors errors;
  const auto add = [&](const Tensors& got, const Tensors& expected,
                       const std::vector<Field>& fields, double floor) {
    for (const auto& [name, wanted] : expected) {
      const Tensor& t = got.at(name);
      const Tensor rounded = is_wide(fields, name) ? t : t.to(e.dtype);
      errors[name] = difference(rounded, wanted, floor, name).error;
    }
  };
  add(op.forward(Form::chunkwise, in, e.settings), e.outputs, op.outputs(), 0);
  add(op.backward(Form::chunkwise, in, e.settings, dy), e.gradients, op.inputs(),
      floor_of(e.dtype));
  return errors;
}

std::vector<Agreement> agreement_by_form(const Expected& e, const Tensors& outputs,
                                         const Tensors& gradients) {
  std::vector<Agreement> list =
      agreement(e, outputs, gradients, [&](const auto&) { return floor_of(e.dtype); });
  if (e.dtype != Dtype::bf16) return list;
  const Errors errors = rounding_errors(e);
  for (Agreement& a : list)
    a.bound = std::max(1.5 * errors.at(a.tensor),
                       bound_of(e.operation->name(), e.name, a.tensor, Dtype::f32));
  return list;
}

std::string text(const Agreement& a) {
  std::string at;
  for (const int64_t i : a.difference.at) at += (at.empty() ? "" : ", ") + std::to_string(i);
  char line[256];
  std::snprintf(line, sizeof line, "%s: error %.1e, bound %.1e, at [%s] got %.9g, expected %.9g",
                a.tensor.c_str(), a.difference.error, a.bound, at.c_str(), a.difference.got,
                a.difference.expected);
  return line;
}

Tensors rounded_to(Dtype dtype, const Tensors& tensors, const std::vector<Field>& fields) {
  Tensors out;
  for (const auto& [name, t] : tensors) {
    const bool narrow = !is_wide(fields, name);
    if (!is_float(t.dtype()))
      out[name] = t;
    else
      out[name] = t.to(dtype == Dtype::bf16 && !narrow ? Dtype::f32 : dtype);
  }
  return out;
}

Tensors on_device(Device device, const Tensors& tensors) {
  Tensors out;
  for (const auto& [name, t] : tensors) out[name] = is_float(t.dtype()) ? t.to(device) : t;
  return out;
}

Tensors random_gradients(const Tensors& outputs, uint64_t seed) {
  Tensors gradients;
  for (const auto& [name, y] : outputs) {
    const Tensor d = normal(y.shape(), seed, "gradient of " + name);
    const std::vector<double> values = to_doubles(y);
    for (size_t i = 0; i < values.size(); ++i)
      if (!std::isfinite(values[i])) d.data<double>()[i] = 0;
    gradients[gradient_name(name)] = d;
  }
  return gradients;
}

}  // namespace weft::kernels
