// How far results are from the definition: the measure, and the bounds that the forms of an
// operation are held to. The gradient certificate, `weft op --check` and the tests share them.
//
// The error of a tensor is relative RMS: rms(got - expected) / max(rms(expected), floor). The floor
// belongs to gradients that vanish by cancellation, where rounding is all that is left; it is 1e-3
// in f64 and 1e-2 below, numbers of order one being what cases hold. Outputs have none, however
// small they are. Of the CPU's gradients in f64 and f32 only those of a table have one; in bf16 and
// on a GPU all of them do, since rounded operands do not cancel.
//
// What is expected is the naive form in f64, on inputs and output gradients rounded to the dtype in
// question, so that it is the form that is judged and not the rounding of what it was given.
//   f64, f32  bound_of(), a number a dtype; the looser ones stand in a table with their reasons
//   bf16      on the CPU, 1.5 times the best that the dtype allows, which is the error of the
//             expected numbers rounded to bf16, plus the bound of f32, in which the arithmetic is
//             done. Fields that stay f32 beside bf16 ones ("wide") have the bound of f32.
//   bf16 of   1.5 times rounding_errors(), which is what the tensor cores' operands of bf16 cost in
//   a GPU     the form at best; nothing is added, but where that is below the bound of f32 (a wide
//             output without products, an output that bf16 holds exactly) the bound is that of f32.
#pragma once

#include <string>
#include <vector>

#include "kernels/contract/operation.h"

namespace weft::kernels {

// Whether an error keeps its bound: both must be numbers, and finite. A kernel's NaN passes
// nothing, and neither does a bound that came out infinite. Every verdict on numbers is made here.
bool within(double error, double bound);

struct Difference {
  double error = 0;         // relative RMS; infinite where either holds NaN or an infinity
  std::vector<int64_t> at;  // where the two differ most
  double got = 0, expected = 0;
};

// Shapes must be equal, dtypes need not. `floor` as above. Of a tensor named "lse", the logarithm
// of a sum that may be empty, -infinity in both agrees; no other infinity agrees with anything.
Difference difference(const Tensor& got, const Tensor& expected, double floor,
                      const std::string& name = "");
double floor_of(Dtype dtype);  // for gradients alone; see above
// Of one tensor of an operation in f64 or f32. `name` is the case's, for those with a bound of
// their own.
double bound_of(const std::string& operation, const std::string& name, const std::string& tensor,
                Dtype dtype);

// A case in one dtype, and what is expected of it.
struct Expected {
  const Operation* operation = nullptr;
  std::string name;  // the case's
  Dtype dtype = Dtype::f64;
  Settings settings;
  Tensors inputs;              // rounded to dtype, index tensors with them
  Tensors output_gradients;    // random, likewise; zero where an output is not finite
  Tensors outputs, gradients;  // f64
};
// `judge`: the form, in f64, that says what is expected; the definition, or chunkwise at sizes that
// it is too slow for.
Expected expected_of(const Operation& operation, const NamedCase& c, Dtype dtype,
                     Form judge = Form::naive);

// One tensor of a form against the definition.
struct Agreement {
  std::string tensor;  // "o", "dq"
  Difference difference;
  double bound = 0;
  bool passed() const { return within(difference.error, bound); }
};
std::vector<Agreement> agreement(const Expected& expected, const Tensors& outputs,
                                 const Tensors& gradients);

// For a case in bf16, the error of each output and gradient of the chunkwise form evaluated in f64
// with inputs, outputs and operands of matrix products rounded to bf16 and all else exact. Its
// outputs are rounded before its backward pass reads them, as a form that keeps them in bf16 would
// have them; its gradients are rounded like their inputs. kernels/contract/rounding.h says what is
// a product.
using Errors = std::map<std::string, double>;
Errors rounding_errors(const Expected& expected);
// agreement() of a GPU's form with bounds from those errors; the same as above where dtype is f32.
std::vector<Agreement> agreement_by_form(const Expected& expected, const Tensors& outputs,
                                         const Tensors& gradients);

// "dq: error 3.1e-04, bound 1.0e-05, at [0, 3, 1] got 0.25, expected 0.5".
std::string text(const Agreement& a);

// Tensors of float types in `dtype`; those whose field is wide are f32 where dtype is bf16.
// `names` are those of the fields, or of their gradients.
Tensors rounded_to(Dtype dtype, const Tensors& tensors, const std::vector<Field>& fields);

// Tensors of float types on `device`; index tensors stay where they are.
Tensors on_device(Device device, const Tensors& tensors);

// Random output gradients for `outputs`, by gradient name, f64.
Tensors random_gradients(const Tensors& outputs, uint64_t seed);

}  // namespace weft::kernels
