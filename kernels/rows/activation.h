// Functions of one number, alone (y = f(x)) and as a gate (y = f(a) b; with silu this is SwiGLU).
// Kinds: silu, gelu (by erf), gelu_tanh, relu, sigmoid, tanh, softplus, logsigmoid, elu1 (elu + 1),
// exp, square_relu. Derivatives at a kink are those of the left side.
// Sources: arXiv:1606.08415 (GELU), 1710.05941 (SiLU), 2002.05202 (gated), 2109.08668 (ReLU
// squared).
#pragma once

#include <string>

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct Activation {
  static constexpr std::string_view name = "activation";

  template <class X>
  struct Inputs {
    X x;
    auto fields() { return std::tie(x); }
  };
  static constexpr Field kInputs[] = {{"x", "[R, D]"}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, D]"}};

  struct Options {
    std::string kind = "silu";
    template <class F>
    void each(F&& f) {
      f("kind", kind,
        "silu, gelu, gelu_tanh, relu, sigmoid, tanh, softplus, logsigmoid, elu1, exp, square_relu");
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

struct GatedActivation {
  static constexpr std::string_view name = "gated_activation";

  template <class X>
  struct Inputs {
    X a, b;
    auto fields() { return std::tie(a, b); }
  };
  static constexpr Field kInputs[] = {{"a", "[R, D]"}, {"b", "[R, D]"}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, D]"}};

  using Options = Activation::Options;
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
