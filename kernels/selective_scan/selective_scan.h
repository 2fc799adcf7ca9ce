// The selective scan of Mamba: K states a channel, each with its own decay, driven by the input.
//   step_t = softplus(dt_t + dt_bias),  A = -exp(A_log)
//   h_t    = exp(step_t A) h_{t-1} + step_t x_t B_t        for each channel, h [K]
//   o_t    = (C_t . h_t + D x_t) * silu(z_t)
// B_t and C_t are shared by all channels. Without D, z or dt_bias those parts are left out.
// Source: arXiv:2312.00752. Differs: the state comes in and goes out, with its gradients.
#pragma once

#include "kernels/contract/flops.h"
#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct SelectiveScan {
  static constexpr std::string_view name = "selective_scan";

  // E channels. N is the number of documents, B where none are given.
  template <class X>
  struct Inputs {
    X x, dt, A_log, B, C, D, z, dt_bias, initial_state;
    auto fields() { return std::tie(x, dt, A_log, B, C, D, z, dt_bias, initial_state); }
  };
  static constexpr Field kInputs[] = {
      {"x", "[B, T, E]"},
      {"dt", "[B, T, E]"},  // before bias and softplus
      {"A_log", "[E, K]", /*optional=*/false, /*wide=*/true},
      {"B", "[B, T, K]"},
      {"C", "[B, T, K]"},
      {"D", "[E]", /*optional=*/true, /*wide=*/true},
      {"z", "[B, T, E]", /*optional=*/true},
      {"dt_bias", "[E]", /*optional=*/true, /*wide=*/true},
      {"initial_state", "[N, E, K]", /*optional=*/true, /*wide=*/true}};

  // final_state is absent unless return_state.
  template <class X>
  struct Outputs {
    X o, final_state;
    auto fields() { return std::tie(o, final_state); }
  };
  static constexpr Field kOutputs[] = {
      {"o", "[B, T, E]"}, {"final_state", "[N, E, K]", /*optional=*/true, /*wide=*/true}};

  struct Options {
    Tensor cu_seqlens;
    bool return_state = true;
    template <class F>
    void each(F&& f) {
      f("cu_seqlens", cu_seqlens, "i32 [N + 1]: where packed documents begin and end; needs B = 1");
      f("return_state", return_state, "make final_state");
    }
  };

  // The state before each segment but the first of a row, which begins a document.
  struct Saved {
    // CPU: [B, segments - 1, K, E], 64 tokens each. CUDA: [B, segments - 1, E, K], 32 tokens each
    // and K a multiple of 16.
    Tensor states;
  };

  // An A_log from here on, up to infinity: any step forgets all, and A's own size matters no more.
  static constexpr float kFastest = 80;

  // Of a token and channel.
  static constexpr Flops flops(double K) { return {7 * K + 10, 20 * K + 25}; }

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
