// Linear attention that forgets per key channel:
//   S_t = diag(e^{g_t}) S_{t-1} + k_t v_t',   o_t = scale * S_t' q_t
// Gated linear attention and HGRN2 are its settings. Source: arXiv:2312.06635, 2404.07904.
#pragma once

#include "kernels/contract/flops.h"
#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct GatedLinear {
  static constexpr std::string_view name = "gated_linear";

  template <class X>
  struct Inputs {
    X q, k, v, g, initial_state;
    auto fields() { return std::tie(q, k, v, g, initial_state); }
  };
  // Value head h reads key head h / (H / Hk). g is a log decay, natural, <= 0. N is the number of
  // documents: B, or that of cu_seqlens.
  static constexpr Field kInputs[] = {{"q", "[B, T, Hk, K]"},
                                      {"k", "[B, T, Hk, K]"},
                                      {"v", "[B, T, H, V]"},
                                      {"g", "[B, T, H, K]", /*optional=*/false, /*wide=*/true},
                                      {"initial_state", "[N, H, K, V]", true, true}};

  // final_state is absent unless return_state.
  template <class X>
  struct Outputs {
    X o, final_state;
    auto fields() { return std::tie(o, final_state); }
  };
  static constexpr Field kOutputs[] = {{"o", "[B, T, H, V]"},
                                       {"final_state", "[N, H, K, V]", true, true}};

  struct Options {
    double scale = 0;
    bool return_state = true;
    Tensor cu_seqlens;
    template <class F>
    void each(F&& f) {
      f("scale", scale, "factor on q; 0 stands for K^-1/2");
      f("return_state", return_state, "make final_state");
      f("cu_seqlens", cu_seqlens, "[N + 1]");
    }
  };

  // Beside the inputs: the states at the starts of chunks 1, 2, ... of the grid. A chunk that
  // starts with a document leaves its place unset. The CUDA form keeps nothing, its backward makes
  // them again.
  struct Saved {
    Tensor states;  // [B, chunks - 1, H, K, V]
  };

  // Of a token and head, in sub-chunks of C tokens.
  static constexpr Flops flops(double K, double V) {
    constexpr double C = 16;
    return {4 * K * V + C * (2 * K + V), 12 * K * V + C * (5 * K + 2 * V)};
  }

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
