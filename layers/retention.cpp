// Mixers over kernels/linear whose heads forget at fixed rates: retention and Lightning attention.
// Retention has the weights and the wiring of fla's MultiScaleRetention, Lightning attention those
// of transformers' MiniMaxLightningAttention. Sources: arXiv:2307.08621, 2501.08313.
#include "kernels/linear/linear.h"

#include <cmath>

#include "autograd/ops.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

// The state of head h forgets by 1 - 2^(-5 - h) a token: o = o_proj(norm(o) silu(g_proj x)).
class Retention final : public Layer {
 public:
  Retention(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 2)),
        base_(t.number("rotary_base", kRotaryBase, 10000)),
        q_(b.within("q_proj"), spec.width, size_.Hk * size_.K, spec.init),
        k_(b.within("k_proj"), spec.width, size_.Hk * size_.K, spec.init),
        v_(b.within("v_proj"), spec.width, size_.H * size_.V, spec.init),
        g_(b.within("g_proj"), spec.width, size_.H * size_.V, spec.init),
        norm_(b.within("g_norm_swish_gate"), size_.V, t.number("norm_eps", kEpsilon, 1e-5)),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()),
        log_gamma_(b.wide().buffer({size_.H},
                                   [](int64_t h) { return std::log1p(-std::exp2(-5.0 - h)); })) {
    if (size_.K % 2 != 0)
      t.refuse("key_width", "key_width is ", size_.K,
               "; rotary positions turn pairs, so it must be even");
  }

  Var forward(const Var& x, Context& c) const override {
    const Var q = rotated(heads(q_(x), size_.Hk), base_, c);
    const Var k = rotated(heads(k_(x), size_.Hk), base_, c);
    const Var y = recurrence<kernels::Linear>(
        {.q = q, .k = k, .v = heads(v_(x), size_.H), .log_gamma = Var(log_gamma_)}, {}, c);
    return o_(merged(norm_(y, heads(g_(x), size_.H))));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::Linear>(); }

 private:
  HeadSizes size_;
  double base_;
  Linear q_, k_, v_, g_;
  GatedNorm norm_;
  Linear o_;
  Tensor log_gamma_;  // [H]
};

// Lightning attention as in MiniMax-01: q, k, v = silu(projections), and the state of head h, which
// counts from 1, in layer l of L forgets by e^{-s}, s = 2^(-8 h / H) (1 - l / (L - 1) + 1e-5).
// Weights are not scaled; o = out_proj(norm(o) sigmoid(output_gate x)), one norm over all heads.
class Lightning final : public Layer {
 public:
  Lightning(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 1)),
        q_(b.within("q_proj"), spec.width, size_.Hk * size_.K, spec.init),
        k_(b.within("k_proj"), spec.width, size_.Hk * size_.K, spec.init),
        v_(b.within("v_proj"), spec.width, size_.H * size_.V, spec.init),
        g_(b.within("output_gate"), spec.width, size_.H * size_.V, spec.init),
        norm_(b.within("norm"), size_.H * size_.V, t.number("norm_eps", kEpsilon, 1e-6), "sigmoid"),
        o_(b.within("out_proj"), size_.H * size_.V, spec.width, spec.residual_init()),
        log_gamma_(
            b.wide().buffer({size_.H}, [&](int64_t h) { return -slope(spec, size_.H, h); })) {}

  Var forward(const Var& x, Context& c) const override {
    const auto part = [&](const Linear& project, int64_t H) {
      return heads(activation(project(x), "silu"), H);
    };
    kernels::Linear::Options o;
    o.scale = 1;
    const Var y = recurrence<kernels::Linear>({.q = part(q_, size_.Hk),
                                               .k = part(k_, size_.Hk),
                                               .v = part(v_, size_.H),
                                               .log_gamma = Var(log_gamma_)},
                                              o, c);
    return o_(norm_(merged(y), g_(x)));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::Linear>(); }

 private:
  static double slope(const Spec& spec, int64_t H, int64_t h) {
    const double layer = static_cast<double>(spec.layer),
                 last = static_cast<double>(spec.layers - 1);
    const double factor = 1 - layer / (last + 1e-5) + 1e-5;
    return std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(H)) * factor;
  }

  HeadSizes size_;
  Linear q_, k_, v_, g_;
  GatedNorm norm_;
  Linear o_;
  Tensor log_gamma_;  // [H]
};

const RegisteredMixer retention{"retention", maker<Retention>()};
const RegisteredMixer lightning{"lightning", maker<Lightning>()};

}  // namespace
}  // namespace weft::layers
