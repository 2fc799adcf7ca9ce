// Mixers over kernels/linear: linear attention, retention, and simple GLA. (Mamba-2, the fourth, is
// in mamba.cpp.) Weights and wiring as in fla's layers of these names.
// Sources: arXiv:2006.16236 (linear attention), 2307.08621 (retention), 2312.06635 (GLA, whose gate
// simple GLA takes per head).
#include "kernels/linear/linear.h"

#include <optional>

#include "autograd/ops.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

// With a feature map f in place of exp(q.k):  o_t = sum_s f(q_t).f(k_s) v_s, divided by the sum of
// f(q_t).f(k_s) if `normalize`; then, if `output_norm`, an RMS norm per head.
class LinearAttention final : public Layer {
 public:
  LinearAttention(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 1)),
        map_(t.one_of("feature_map", {"elu1", "relu", "none"}, "elu1")),
        normalize_(t.boolean("normalize", map_ != "none")),
        eps_(t.number("eps", kEpsilon, 1e-6)),
        q_(b.within("q_proj"), spec.width, size_.Hk * size_.K, spec.init),
        k_(b.within("k_proj"), spec.width, size_.Hk * size_.K, spec.init),
        v_(b.within("v_proj"), spec.width, size_.H * size_.V, spec.init),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {
    if (normalize_ && map_ == "none")
      t.refuse("normalize",
               "without a feature map the divisor may be zero or negative; set "
               "normalize = false and output_norm = true");
    if (t.boolean("output_norm", !normalize_))
      norm_.emplace(b.within("norm"), size_.V, Norm::Kind::rms, 1e-5);
  }

  Var forward(const Var& x, Context& c) const override {
    const auto feature = [&](const Linear& project) {
      const Var y = heads(project(x), size_.Hk);
      return map_ == "none" ? y : activation(y, map_);
    };
    kernels::Linear::Options o;
    o.normalize = normalize_;
    o.eps = eps_;
    const Var y = recurrence<kernels::Linear>(
        {.q = feature(q_), .k = feature(k_), .v = heads(v_(x), size_.H)}, o, c);
    return o_(merged(norm_ ? (*norm_)(y) : y));
  }

  double flops_per_token(int64_t) const override { return size_.linear_flops(); }

 private:
  HeadSizes size_;
  std::string map_;
  bool normalize_;
  double eps_;
  Linear q_, k_, v_, o_;
  std::optional<Norm> norm_;
};

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
        norm_(b.within("g_norm_swish_gate"), size_.V, 1e-5),
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

  double flops_per_token(int64_t) const override { return size_.linear_flops(); }

 private:
  HeadSizes size_;
  double base_;
  Linear q_, k_, v_, g_;
  GatedNorm norm_;
  Linear o_;
  Tensor log_gamma_;  // [H]
};

// A gate per head and token: g = logsigmoid(gk_proj x) / 16; convolutions before q, k and v.
class SimpleGla final : public Layer {
 public:
  SimpleGla(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 1)),
        mixed_(b, spec, size_, t.integer("conv", kCount, 4)),
        gk_(b.within("gk_proj"), spec.width, size_.H, spec.init, /*bias=*/true),
        g_(b.within("g_proj"), spec.width, size_.H * size_.V, spec.init),
        norm_(b.within("g_norm_swish_gate"), size_.V, 1e-5),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {}

  Var forward(const Var& x, Context& c) const override {
    const auto [q, k, v] = mixed_(x, c);
    const Var g = autograd::scale(activation(wide(gk_(x)), "logsigmoid"), 1 / kGateTemperature);
    const Var y = recurrence<kernels::Linear>({.q = q, .k = k, .v = v, .g = g}, {}, c);
    return o_(merged(norm_(y, heads(g_(x), size_.H))));
  }

  double flops_per_token(int64_t) const override { return size_.linear_flops(); }

 private:
  HeadSizes size_;
  MixedQkv mixed_;
  Linear gk_, g_;
  GatedNorm norm_;
  Linear o_;
};

const RegisteredMixer linear_attention{"linear_attention", maker<LinearAttention>()};
const RegisteredMixer retention{"retention", maker<Retention>()};
const RegisteredMixer simple_gla{"simple_gla", maker<SimpleGla>()};

}  // namespace
}  // namespace weft::layers
