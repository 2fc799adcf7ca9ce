// The functions of one number at the places where a piece of them ends.
#include "kernels/rows/functions.h"

#include <cmath>

#include "core/device.h"
#include "kernels/contract/agreement.h"
#include "tests/catch.h"

namespace weft::kernels {
namespace {

// f(x) and f'(x) of a kind at these numbers, where dy is one; by an operation and form.
struct Curve {
  std::vector<double> values, slopes;
};

Curve curve_of(const std::string& op, const std::string& kind, Form form, Device device,
               Dtype dtype, const std::vector<double>& at) {
  const Tensor x = tensor_of(at).reshape({1, -1}).to(dtype).to(device);
  const Tensor one = full(x.shape(), 1, dtype, device);
  const bool gate = op == "gated_activation";
  const Tensors in = gate ? Tensors{{"a", x}, {"b", one}} : Tensors{{"x", x}};
  const Tensors y = operation(op).forward(form, in, {{"kind", kind}});
  const Tensors dx = operation(op).backward(form, in, {{"kind", kind}}, {{"dy", one}});
  return {to_doubles(y.at("y")), to_doubles(dx.at(gate ? "da" : "dx"))};
}

// f(op, kind, form, dtype) for every function, form and dtype that the device has.
template <class F>
void each_function(Device device, const std::vector<Dtype>& dtypes, F&& f) {
  for (const std::string op : {"activation", "gated_activation"})
    for (const std::string& kind : Activations::names())
      for (const Dtype dtype : dtypes)
        for (const Form form : operation(op).forms()) {
          if (device.is_cuda() && form != Form::chunkwise) continue;
          INFO(op << " " << kind << ", " << name_of(form) << " in " << dtype << " on " << device);
          f(op, kind, form, dtype);
        }
}

// Zeros are common, as of a channel that is not used, or of a product of two of them.
void check_zeros(Device device, const std::vector<Dtype>& dtypes) {
  // As many as fill vectors of any width, and some more.
  std::vector<double> left(37, -1e-6), zero(37, 0);
  for (size_t i = 0; i < zero.size(); i += 2) zero[i] = -0.0;
  each_function(device, dtypes, [&](const auto& op, const auto& kind, Form form, Dtype dtype) {
    const Curve expected = curve_of(op, kind, form, device, dtype, left),
                got = curve_of(op, kind, form, device, dtype, zero);
    for (size_t i = 0; i < zero.size(); ++i) {
      CHECK(got.values[i] == Approx(expected.values[i]).margin(1e-5));
      CHECK(got.slopes[i] == Approx(expected.slopes[i]).margin(1e-5));
    }
  });
}

// A number that is none must reach the check that names its source.
void check_not_a_number(Device device, const std::vector<Dtype>& dtypes) {
  const std::vector<double> none(37, NAN);
  each_function(device, dtypes, [&](const auto& op, const auto& kind, Form form, Dtype dtype) {
    const Curve curve = curve_of(op, kind, form, device, dtype, none);
    for (const double value : curve.values) CHECK(std::isnan(value));
  });
}

}  // namespace

TEST_CASE("functions: what is not a number stays none, whatever the function") {
  check_not_a_number(kCpu, {Dtype::f64, Dtype::f32, Dtype::bf16});
}

TEST_CASE("cuda functions: what is not a number stays none, whatever the function", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  check_not_a_number(kCuda, {Dtype::f32, Dtype::bf16});
}

TEST_CASE("functions: at zero, of either sign, a slope is that of the left side") {
  check_zeros(kCpu, {Dtype::f64, Dtype::f32, Dtype::bf16});
}

TEST_CASE("cuda functions: at zero, of either sign, a slope is that of the left side", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  check_zeros(kCuda, {Dtype::f32, Dtype::bf16});
}

}  // namespace weft::kernels
