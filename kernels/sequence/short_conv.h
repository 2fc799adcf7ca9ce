// Causal convolution over a few tokens, each channel by itself:
//   y_t = act(sum_j w[:, j] x_{t - W + 1 + j} + bias),   act = silu or nothing
// w[:, W - 1] meets the current token. Tokens before the first of a document come from the state:
// the last W - 1 inputs, the newest last; they are zero where no state is given. `final_state` is
// the state after the document's last token; of a short document it still holds some of the initial
// one.
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct ShortConv {
  static constexpr std::string_view name = "short_conv";

  template <class X>
  struct Inputs {
    X x, w, bias, initial_state;
    auto fields() { return std::tie(x, w, bias, initial_state); }
  };
  static constexpr Field kInputs[] = {
      {"x", "[B, T, D]"},
      {"w", "[D, W]"},
      {"bias", "[D]", /*optional=*/true},
      {"initial_state", "[N, D, W - 1]", /*optional=*/true, /*wide=*/true}};

  template <class X>
  struct Outputs {
    X y, final_state;
    auto fields() { return std::tie(y, final_state); }
  };
  static constexpr Field kOutputs[] = {
      {"y", "[B, T, D]"}, {"final_state", "[N, D, W - 1]", /*optional=*/true, /*wide=*/true}};

  // final_state is absent unless return_state: training has no use for one per document.
  struct Options {
    bool silu = true;
    Tensor cu_seqlens;  // i32 [N + 1] on the CPU, or absent: then N = B
    bool return_state = true;
    template <class F>
    void each(F&& f) {
      f("silu", silu, "silu of the sum");
      f("cu_seqlens", cu_seqlens, "[N + 1]");
      f("return_state", return_state, "make final_state");
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
