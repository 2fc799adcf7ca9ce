// A gate that is the key's counterpart, as HGRN2 has it. With the part f that a channel keeps:
//   f = bound + (1 - bound) sigmoid(x),   k = 1 - f,   g = log f
// Neither is made of the other, so each is exact where the other is near 0.
// Source: arXiv:2404.07904.
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct ForgetGate {
  static constexpr std::string_view name = "forget_gate";

  template <class X>
  struct Inputs {
    X x;
    auto fields() { return std::tie(x); }
  };
  static constexpr Field kInputs[] = {{"x", "[R, D]"}};

  template <class X>
  struct Outputs {
    X k, g;
    auto fields() { return std::tie(k, g); }
  };
  static constexpr Field kOutputs[] = {{"k", "[R, D]"},
                                       {"g", "[R, D]", /*optional=*/false, /*wide=*/true}};

  struct Options {
    double bound = 0;
    template <class F>
    void each(F&& f) {
      f("bound", bound, "the least part that is kept, 0 to below 1");
    }
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
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

}  // namespace weft::kernels
