// What the mixers of softmax attention share: projections to heads, and the cache of keys and
// values. Weights as in Llama: q_proj, k_proj, v_proj, o_proj; q_norm and k_norm as in Qwen 3 and
// Gemma 3, or over all heads as in OLMo 2; a gate in q_proj, behind the query of each head, as in
// Qwen3-Next. Sources: arXiv:2305.13245 (groups), 2104.09864 (rotary), 2302.05442 (norms of queries
// and keys), 2505.06708 (output gate), 2309.00071 (YaRN), 2407.21783 (Llama 3).
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "layers/blocks.h"

namespace weft::layers {

// Reads the keys of rotary positions of heads of width K; where `rotary` is false they have no use.
kernels::Rotary::Options rotary_positions(const TomlTable& t, const Spec& spec, bool rotary,
                                          int64_t K);

// Reads heads, key_heads, head_dim, scale, the keys of rotary positions, qk_norm, output_gate and
// bias.
class HeadProjections {
 public:
  HeadProjections(const Spec& spec, const TomlTable& t, const Builder& b);

  struct Result {
    Var q, k, v;  // [B, T, H, K], [B, S, Hk, K], [B, S, Hk, K]
    Var gate;     // [B, T, H, K] before its sigmoid, or absent
  };
  // Keys and values come with those of the state in front of them; window as in appended().
  Result operator()(const Var& x, Context& c, int64_t window) const {
    return behind_past(of(x, c), c, window);
  }
  // The same in two steps: what x alone gives (T = S), and then with the state's in front.
  Result of(const Var& x, const Context& c) const;
  // Queries, keys and values of other projections, with the norms and positions of these.
  Result placed(Result raw, const Context& c) const;
  Result behind_past(Result own, Context& c, int64_t window) const;
  // [B, T, H, K] to [B, T, D].
  Var out(const Var& o, const Var& gate) const {
    return o_(merged(gate ? gated(gate, o, "sigmoid") : o));
  }

  int64_t H() const { return H_; }
  int64_t Hk() const { return Hk_; }
  int64_t K() const { return K_; }
  double scale() const { return scale_; }  // factor of q.k; 0: K^-1/2
  double factor() const {                  // the same as a number
    return scale_ > 0 ? scale_ : 1 / std::sqrt(static_cast<double>(K_));
  }

 private:
  Var normed(const std::optional<Norm>& norm, const Var& x) const;

  int64_t H_, Hk_;
  bool rotary_;
  int64_t K_;
  double scale_;
  kernels::Rotary::Options rotation_;
  bool output_gate_;
  Linear q_, k_, v_, o_;
  bool whole_norm_ = false;
  std::optional<Norm> q_norm_, k_norm_;
};

// Keys and values of softmax attention, [B, S, Hk, K] and [B, S, Hk, V]: those kept in the state
// and the new ones behind them. window > 0: what no later token can see is dropped, so that the
// state holds 2 * window rows at most, and no more than c.capacity where that is enough; window =
// 0: room for c.capacity rows, more where that is too few.
// Where c.place says the position, they are a ring of c.capacity rows, or of `window` if that is
// less.
struct KeysAndValues {
  Tensor k, v;
};
// The same of any tensors [B, S, ...] by name.
struct CachedRows {
  const char* name;
  Tensor rows;  // the new ones, then all
};
void append(Context& c, std::vector<CachedRows>& list, int64_t window);
KeysAndValues appended(Context& c, const Tensor& k, const Tensor& v, int64_t window);

}  // namespace weft::layers
