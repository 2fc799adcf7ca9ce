// Matrix product with a weight stored as the field stores it, output features first:
//   y[r, o] = sum_i x[r, i] w[o, i] + bias[o]
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct Matmul {
  static constexpr std::string_view name = "matmul";

  template <class X>
  struct Inputs {
    X x, w, bias;
    auto fields() { return std::tie(x, w, bias); }
  };
  static constexpr Field kInputs[] = {
      {"x", "[R, I]"}, {"w", "[O, I]"}, {"bias", "[O]", /*optional=*/true}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, O]"}};

  struct Options {
    template <class F>
    void each(F&&) {}
  };
  struct Saved {};

  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static constexpr size_t kAdded = 1;  // w
  static void cuda_add_gradient(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                const Outputs<Tensor>& dy, const Tensor& sum);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static constexpr size_t kOnto = 0;  // x
  static void cuda_backward_onto(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                 const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

}  // namespace weft::kernels
