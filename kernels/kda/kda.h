// The delta rule with a gate a key channel (Kimi Delta Attention): a memory that overwrites what a
// key holds, and whose rows fade each at a rate of its own.
//   Sbar_t = diag(e^{g_t}) S_{t-1}
//   S_t    = Sbar_t + beta_t k_t (v_t - Sbar_t' k_t)'
//   o_t    = scale * S_t' q_t
// q and k are taken as they come. beta |k|^2 must be at most 2, or the state grows without bound.
// Source: arXiv:2510.26692.
#pragma once

#include <cmath>

#include "kernels/contract/flops.h"
#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct Kda {
  static constexpr std::string_view name = "kda";

  // Value head h uses key head h / (H / Hk). N is the number of documents, B where none are given.
  template <class X>
  struct Inputs {
    X q, k, v, beta, g, initial_state;
    auto fields() { return std::tie(q, k, v, beta, g, initial_state); }
  };
  static constexpr Field kInputs[] = {
      {"q", "[B, T, Hk, K]"},
      {"k", "[B, T, Hk, K]"},
      {"v", "[B, T, H, V]"},
      {"beta", "[B, T, H]", /*optional=*/false, /*wide=*/true},  // in [0, 2]
      {"g", "[B, T, H, K]", /*optional=*/false, /*wide=*/true},  // log decay in nats, <= 0
      {"initial_state", "[N, H, K, V]", /*optional=*/true, /*wide=*/true}};

  // final_state is absent unless return_state.
  template <class X>
  struct Outputs {
    X o, final_state;
    auto fields() { return std::tie(o, final_state); }
  };
  static constexpr Field kOutputs[] = {
      {"o", "[B, T, H, V]"}, {"final_state", "[N, H, K, V]", /*optional=*/true, /*wide=*/true}};

  struct Options {
    double scale = 0;
    bool return_state = true;
    Tensor cu_seqlens;
    template <class F>
    void each(F&& f) {
      f("scale", scale, "factor on q; 0 means K^-1/2");
      f("return_state", return_state, "make final_state");
      f("cu_seqlens", cu_seqlens, "i32 [N + 1]: where packed documents begin and end; needs B = 1");
    }
    double factor(int64_t K) const {
      return scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(K));
    }
  };

  // The state before each chunk but the first of a row. A chunk that starts with a document leaves
  // its place unset. On a GPU in the dtype of v and transposed, [.., V, K]; and what each token
  // wrote.
  struct Saved {
    Tensor states;   // [B, chunks - 1, H, K, V]
    Tensor written;  // [B, T, H, V]
  };

  // Of a token and head, in sub-chunks of C tokens.
  static constexpr Flops flops(double K, double V) {
    constexpr double C = 16;
    return {6 * K * V + C * (3 * K + 2 * V), 16 * K * V + C * (9 * K + 7 * V)};
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
