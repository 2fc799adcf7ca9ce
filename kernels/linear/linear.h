// Linear attention whose state forgets by one number per head, or not at all:
//   S_t = e^{a_t} S_{t-1} + k_t v_t',   o_t = scale * S_t' q_t,   a_t = g_t + log_gamma
// With `normalize` also z_t = e^{a_t} z_{t-1} + k_t and o_t is divided by scale * z_t . q_t + eps.
// Linear attention, retention, simple GLA and Mamba-2 (q = C, k = B, v = dt * x, g = dt * A) are
// its settings. Source: arXiv:2006.16236, 2307.08621, 2405.21060.
#pragma once

#include "kernels/contract/flops.h"
#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct Linear {
  static constexpr std::string_view name = "linear";

  template <class X>
  struct Inputs {
    X q, k, v, g, log_gamma, initial_state, initial_z;
    auto fields() { return std::tie(q, k, v, g, log_gamma, initial_state, initial_z); }
  };
  // Value head h reads key head h / (H / Hk). g and log_gamma are log decays, natural, <= 0;
  // absent, they are 0. N is the number of documents: B, or that of cu_seqlens.
  static constexpr Field kInputs[] = {{"q", "[B, T, Hk, K]"},
                                      {"k", "[B, T, Hk, K]"},
                                      {"v", "[B, T, H, V]"},
                                      {"g", "[B, T, H]", /*optional=*/true, /*wide=*/true},
                                      {"log_gamma", "[H]", true, true},
                                      {"initial_state", "[N, H, K, V]", true, true},
                                      {"initial_z", "[N, H, K]", true, true}};

  // final_state is absent unless return_state, final_z unless also normalize.
  template <class X>
  struct Outputs {
    X o, final_state, final_z;
    auto fields() { return std::tie(o, final_state, final_z); }
  };
  static constexpr Field kOutputs[] = {{"o", "[B, T, H, V]"},
                                       {"final_state", "[N, H, K, V]", true, true},
                                       {"final_z", "[N, H, K]", true, true}};

  struct Options {
    double scale = 0;
    bool normalize = false;
    double eps = 1e-6;
    bool return_state = true;
    Tensor cu_seqlens;
    template <class F>
    void each(F&& f) {
      f("scale", scale, "factor on q; 0 stands for K^-1/2");
      f("normalize", normalize, "divide by scale * z . q + eps, z the decayed sum of keys");
      f("eps", eps, "added to that denominator");
      f("return_state", return_state, "make final_state (and final_z)");
      f("cu_seqlens", cu_seqlens, "[N + 1]");
    }
  };

  // Beside the inputs. States are those at the starts of chunks 1, 2, ... of the grid; a chunk that
  // starts with a document leaves its place unset. The CUDA form keeps neither states nor sums, its
  // backward makes them again.
  struct Saved {
    Tensor states;          // [B, chunks - 1, H, K, V]
    Tensor sums;            // [B, chunks - 1, H, K], z, with normalize
    Tensor o, denominator;  // [B, T, H, V], [B, T, H], with normalize
  };

  // Of a token and head, in chunks of C tokens.
  static constexpr Flops flops(double K, double V) {
    constexpr double C = 64;
    return {4 * K * V + C * (K + V), 8 * K * V + C * (3 * K + 2 * V)};
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
