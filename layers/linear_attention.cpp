// Mixers over kernels/linear that never forget: linear attention behind a feature map, and fast
// weights, where a token says how strongly it is written. Linear attention has the weights and the
// wiring of fla's LinearAttention.
// Sources: arXiv:2006.16236 (linear attention), 2102.11174 (fast weights).
#include "kernels/linear/linear.h"

#include <optional>

#include "autograd/ops.h"
#include "layers/blocks.h"
#include "layers/feature_map.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

// With a feature map f in place of exp(q.k):  o_t = sum_s f(q_t).f(k_s) v_s, divided by the sum of
// f(q_t).f(k_s) if `normalize`; then, if `output_norm`, an RMS norm per head. Fast weights write
// alpha_t v_t in place of v_t, alpha = sigmoid(alpha_proj x) or softplus of it, and divide by
// nothing as a standard.
class LinearAttention : public Layer {
 public:
  LinearAttention(const Spec& spec, const TomlTable& t, const Builder& b, bool fast = false)
      : size_(head_sizes(spec, t, 1, 1)),
        map_(make_feature_map(spec, t, b, size_, "elu1")),
        normalize_(divides(t, *map_, fast)),
        eps_(t.number("eps", kEpsilon, map_->eps())),
        q_(b.within("q_proj"), spec.width, size_.Hk * size_.K, spec.init),
        k_(b.within("k_proj"), spec.width, size_.Hk * size_.K, spec.init),
        v_(b.within("v_proj"), spec.width, size_.H * size_.V, spec.init),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {
    if (fast) {
      alpha_.emplace(b.within("alpha_proj"), spec.width, size_.H, spec.init, /*bias=*/true);
      strength_ = t.one_of("alpha", {"sigmoid", "softplus"}, "sigmoid");
    }
    if (t.boolean("output_norm", !normalize_))
      norm_.emplace(b.within("norm"), size_.V, Norm::Kind::rms,
                    t.number("norm_eps", kEpsilon, 1e-5));
    else
      t.unused("norm_eps", "it has no use with output_norm = false; leave it out",
               t.overridden("output_norm"));
  }

  Var forward(const Var& x, Context& c) const override {
    const FeatureMap::Result f = (*map_)(heads(q_(x), size_.Hk), heads(k_(x), size_.Hk), c);
    kernels::Linear::Options o;
    o.normalize = normalize_;
    o.eps = eps_;
    o.scale = map_->scale();
    const Var y =
        recurrence<kernels::Linear>({.q = f.q, .k = f.k, .v = written(x), .g = f.g}, o, c);
    return o_(merged(norm_ ? (*norm_)(y) : y));
  }

  double flops_per_token(int64_t) const override {
    HeadSizes of_features = size_;
    of_features.K = map_->width();
    return of_features.flops<kernels::Linear>() + map_->flops();
  }
  int64_t longest_text() const override { return map_->longest_text(); }
  void at_step(int64_t step) override { map_->at_step(step); }

 private:
  static bool divides(const TomlTable& t, const FeatureMap& map, bool fast) {
    const Divisor divisor = map.divisor();
    const bool standard = divisor == Divisor::needed || (divisor == Divisor::possible && !fast);
    const bool divides = t.boolean("normalize", standard);
    if (divides && divisor == Divisor::unsafe)
      t.refuse("normalize",
               "with this feature map the divisor may be zero or negative; set normalize = false "
               "and output_norm = true");
    if (!divides && divisor == Divisor::needed)
      t.refuse("normalize",
               "this feature map knows weights only up to a common factor, which the divisor takes "
               "away; set normalize = true");
    return divides;
  }

  // What a token adds to the state for its key, [B, T, H, V].
  Var written(const Var& x) const {
    const Var v = heads(v_(x), size_.H);
    if (!alpha_) return v;
    return weighed(v, activation(wide((*alpha_)(x)), strength_));
  }

  HeadSizes size_;
  std::unique_ptr<FeatureMap> map_;
  bool normalize_;
  double eps_;
  Linear q_, k_, v_, o_;
  std::optional<Linear> alpha_;
  std::string strength_;
  std::optional<Norm> norm_;
};

class FastWeights final : public LinearAttention {
 public:
  FastWeights(const Spec& spec, const TomlTable& t, const Builder& b)
      : LinearAttention(spec, t, b, /*fast=*/true) {}
};

const RegisteredMixer linear_attention{"linear_attention", maker<LinearAttention>()};
const RegisteredMixer fast_weights{"fast_weights", maker<FastWeights>()};

}  // namespace
}  // namespace weft::layers
