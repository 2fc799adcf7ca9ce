// Softmax attention, dense or within a sliding window:
//   x_ij = softcap * tanh(scale * q_i.k_j / softcap)      (scale * q_i.k_j where softcap is 0)
//   lse_i = log(sum_j exp(x_ij) + exp(sink)),   o_i = sum_j exp(x_ij - lse_i) v_j
// over the keys j that query i sees. Query row r stands at position S - T + r of its keys. A query
// that sees no key has o = 0, lse = -infinity (or the sink's logit), and sends no gradient.
#pragma once

#include "kernels/contract/flops.h"
#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct Attention {
  static constexpr std::string_view name = "attention";

  // Head h reads key head h / (H / Hk). Any strides will do, so that a part of a cache is no copy.
  template <class X>
  struct Inputs {
    X q, k, v, sink;
    auto fields() { return std::tie(q, k, v, sink); }
  };
  static constexpr Field kInputs[] = {{"q", "[B, T, H, K]"},
                                      {"k", "[B, S, Hk, K]"},
                                      {"v", "[B, S, Hk, V]"},
                                      {"sink", "[H]", /*optional=*/true, /*wide=*/true}};

  template <class X>
  struct Outputs {
    X o, lse;
    auto fields() { return std::tie(o, lse); }
  };
  static constexpr Field kOutputs[] = {{"o", "[B, T, H, V]"},
                                       {"lse", "[B, H, T]", /*optional=*/false, /*wide=*/true}};

  struct Options {
    double scale = 0;
    bool causal = true;
    int64_t window = 0;
    double softcap = 0;
    Tensor cu_seqlens;
    // i32 [1] on the device of q, or absent. Then k and v are a ring: row r holds the last position
    // p up to this one with p % S = r (any bits where there is none yet), and the only query, T =
    // 1, stands here and sees all positions held. So a step of generation is the same work wherever
    // it stands. Without a gradient.
    Tensor position;

    template <class F>
    void each(F&& f) {
      f("scale", scale, "factor of q.k; 0: K^-1/2");
      f("causal", causal, "a query sees no key after it");
      f("window", window,
        "keys that a query sees, itself included; not causal: |i - j| < window; 0: all");
      f("softcap", softcap, "bound on the scores, by tanh; 0: none");
      f("cu_seqlens", cu_seqlens,
        "[N + 1] i32, where packed documents begin and end; needs B = 1, S = T");
      f("position", position, "[1] i32, of the only query, for which k and v are a ring");
    }
  };

  struct Saved {
    Tensor o;    // [B, T, H, V]
    Tensor lse;  // [B, H, T]
  };

  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  // A call allocates scratch memory of some hundred kilobytes a thread; backward also [B, H, T],
  // and dq again for each part where B * Hk is below 4.
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  // On a GPU K and V are at most 256. Forward allocates an i32 a tile of 128 rows of a head, and
  // where few rows meet many keys (a decode step) [parts, B, T, H, V + 1]. Backward allocates an
  // i32 a tile of rows and of keys, and [B, H, T] three times.
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

}  // namespace weft::kernels
