// Normalisations of a row, whole or in groups of D / groups neighbouring columns:
//   rms_norm    y = x r w                     r = (mean x^2 + eps)^-1/2
//   layer_norm  y = (x - mean x) r w + b      r = (variance + eps)^-1/2
//   gated_norm  y = n(x) w a(z)  or  n(x a(z)) w,   n the RMS norm, a a gate's activation
//   l2_norm     y = x r                       r = (sum x^2 + eps)^-1/2
// With a residual, rms_norm and layer_norm are those of sum = x + residual, and give the sum beside
// y: a residual stream is read once where it is added to and normalised.
// They keep r (layer_norm: the mean as well) and make the rest again in the backward pass. Sources:
// arXiv:1607.06450 (layer), 1910.07467 (RMS), 1803.08494 (groups), 2405.21060 (gate first).
#pragma once

#include <string>

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct RmsNorm {
  static constexpr std::string_view name = "rms_norm";

  template <class X>
  struct Inputs {
    X x, weight, residual;
    auto fields() { return std::tie(x, weight, residual); }
  };
  static constexpr Field kInputs[] = {{"x", "[R, D]"},
                                      {"weight", "[D]", /*optional=*/true},
                                      {"residual", "[R, D]", /*optional=*/true}};

  template <class X>
  struct Outputs {
    X y, sum;  // sum is there where residual is
    auto fields() { return std::tie(y, sum); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, D]"}, {"sum", "[R, D]", /*optional=*/true}};

  struct Options {
    double eps = 1e-6;
    int64_t groups = 1;
    template <class F>
    void each(F&& f) {
      f("eps", eps, "added to the mean of squares");
      f("groups", groups, "groups of columns, each normalised by itself");
    }
  };
  struct Saved {
    Tensor rstd;  // [R, groups]
    Tensor sum;   // the output
  };

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
  static constexpr size_t kOnto = 0, kResidual = 2;  // x, residual
  static constexpr size_t kSum = 1;                  // output sum
  static void cuda_backward_onto(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                 const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

struct LayerNorm {
  static constexpr std::string_view name = "layer_norm";

  template <class X>
  struct Inputs {
    X x, weight, bias, residual;
    auto fields() { return std::tie(x, weight, bias, residual); }
  };
  static constexpr Field kInputs[] = {{"x", "[R, D]"},
                                      {"weight", "[D]", /*optional=*/true},
                                      {"bias", "[D]", /*optional=*/true},
                                      {"residual", "[R, D]", /*optional=*/true}};

  template <class X>
  struct Outputs {
    X y, sum;  // sum is there where residual is
    auto fields() { return std::tie(y, sum); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, D]"}, {"sum", "[R, D]", /*optional=*/true}};

  struct Options {
    double eps = 1e-5;
    int64_t groups = 1;
    template <class F>
    void each(F&& f) {
      f("eps", eps, "added to the variance");
      f("groups", groups, "groups of columns, each normalised by itself");
    }
  };
  struct Saved {
    Tensor mean, rstd;  // [R, groups]
    Tensor sum;         // the output
  };

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
  static constexpr size_t kOnto = 0, kResidual = 3;  // x, residual
  static constexpr size_t kSum = 1;                  // output sum
  static void cuda_backward_onto(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                 const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

struct GatedNorm {
  static constexpr std::string_view name = "gated_norm";

  template <class X>
  struct Inputs {
    X x, z, weight;
    auto fields() { return std::tie(x, z, weight); }
  };
  static constexpr Field kInputs[] = {
      {"x", "[R, D]"}, {"z", "[R, D]"}, {"weight", "[D]", /*optional=*/true}};

  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[R, D]"}};

  struct Options {
    double eps = 1e-6;
    int64_t groups = 1;
    bool gate_first = false;
    std::string gate = "silu";
    template <class F>
    void each(F&& f) {
      f("eps", eps, "added to the mean of squares");
      f("groups", groups, "groups of columns, each normalised by itself");
      f("gate_first", gate_first, "normalise x a(z), not x");
      f("gate", gate, "a: silu or sigmoid");
    }
  };
  struct Saved {
    Tensor rstd;  // [R, groups]
  };

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

struct L2Norm {
  static constexpr std::string_view name = "l2_norm";

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
    double eps = 1e-6;
    template <class F>
    void each(F&& f) {
      f("eps", eps, "added to the sum of squares, inside the root");
    }
  };
  struct Saved {
    Tensor rstd;  // [R, 1]
  };

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
