// Softmax attention: full or in a sliding window, queries in groups that share keys, rotary
// positions, soft cap, sinks, and norms of queries and keys.
// Weights as in Llama: q_proj, k_proj, v_proj, o_proj; q_norm and k_norm as in Qwen 3 and Gemma 3;
// sinks as in gpt-oss (a logit per head that takes probability and gives nothing).
// Sources: arXiv:2305.13245 (groups), 2104.09864 (rotary), 2408.00118 (soft cap), 2302.05442 (norms).
#include "kernels/attention/attention.h"

#include <algorithm>
#include <optional>

#include "autograd/kernel_op.h"
#include "layers/blocks.h"

namespace weft::layers {
namespace {

using autograd::apply;

class Attention final : public Layer {
 public:
  Attention(const Spec& spec, const TomlTable& t, const Builder& b)
      : H_(at_least(1, t, "heads", 4)),
        Hk_(at_least(1, t, "key_heads", H_)),
        K_(at_least(1, t, "head_dim", spec.width / H_)),
        window_(at_least(0, t, "window", 0)),
        rotary_(t.boolean("rotary", true)),
        base_(t.number("rotary_base", 10000)),
        softcap_(t.number("softcap", 0)),
        q_(b.within("q_proj"), spec.width, H_ * K_, spec.init, biased(t)),
        k_(b.within("k_proj"), spec.width, Hk_ * K_, spec.init, biased(t)),
        v_(b.within("v_proj"), spec.width, Hk_ * K_, spec.init, biased(t)),
        o_(b.within("o_proj"), H_ * K_, spec.width, spec.residual_init(), biased(t)) {
    if (H_ % Hk_ != 0) t.refuse("key_heads", H_, " heads cannot share ", Hk_, " key heads evenly");
    if (rotary_ && K_ % 2 != 0)
      t.refuse("head_dim", "head_dim is ", K_, "; rotary positions turn pairs, so it must be even");
    if (t.boolean("qk_norm", false)) {
      q_norm_.emplace(b.within("q_norm"), K_);
      k_norm_.emplace(b.within("k_norm"), K_);
    }
    if (t.boolean("sinks", false)) sinks_ = b.parameter("sinks", {H_}, Init::normal(spec.init));
  }

  Var forward(const Var& x, Context& c) const override {
    Var q = heads(q_(x), H_), k = heads(k_(x), Hk_), v = heads(v_(x), Hk_);
    if (q_norm_) {
      q = (*q_norm_)(q);
      k = (*k_norm_)(k);
    }
    if (rotary_) {
      q = rotated(q, base_, c);
      k = rotated(k, base_, c);
    }
    if (c.state) {
      const KeysAndValues all = appended(c, k.value(), v.value(), window_);
      k = all.k;
      v = all.v;
    }
    kernels::Attention::Options o;
    o.window = window_;
    o.softcap = softcap_;
    o.cu_seqlens = c.cu_seqlens;
    return o_(merged(apply<kernels::Attention>({q, k, v, sinks_}, o).o));
  }

  double flops_per_token(int64_t T) const override {
    const double n = static_cast<double>(T), W = static_cast<double>(window_);
    // Mean keys of a token: (1 + ... + T) / T, of which none sees more than W.
    const double keys = window_ == 0 || W >= n ? (n + 1) / 2 : W - W * (W - 1) / (2 * n);
    return 4 * keys * static_cast<double>(H_ * K_);
  }

 private:
  static bool biased(const TomlTable& t) { return t.boolean("bias", false); }

  int64_t H_, Hk_, K_, window_;
  bool rotary_;
  double base_, softcap_;
  Linear q_, k_, v_, o_;
  std::optional<Norm> q_norm_, k_norm_;
  Var sinks_;
};

const RegisteredMixer registered{"attention", maker<Attention>()};

}  // namespace
}  // namespace weft::layers
