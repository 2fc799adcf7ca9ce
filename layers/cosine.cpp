// cosFormer's map: relu, weighed by the cosine of the distance. The weight of a distance of
// `horizon` is zero, and beyond it weights would be negative; no text may be longer. A learned
// horizon is one a head, `horizon` / sigmoid(p), so it never becomes shorter than the text.
// Source: arXiv:2202.08791.
#include <numbers>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/features/cosine_features.h"
#include "layers/feature_map.h"

namespace weft::layers {
namespace {

class Cosine final : public FeatureMap {
 public:
  Cosine(const Spec& spec, const TomlTable& t, const Builder& b, const HeadSizes& size)
      : size_(size),
        horizon_(t.integer("horizon", {1, 1 << 30}, std::max<int64_t>(1, spec.context))) {
    if (horizon_ < spec.context)
      t.refuse("horizon", "horizon is ", horizon_, ", shorter than the context of ", spec.context,
               ": at distances beyond it weights would be negative");
    const double frequency = std::numbers::pi / (2 * static_cast<double>(horizon_));
    if (t.boolean("learned_horizon", false))
      reach_ = b.wide().parameter("horizon_logit", {size.Hk}, Init::constant(kStart));
    frequency_ = b.wide().buffer({size.Hk}, [&](int64_t) { return frequency; });
  }

  Result operator()(const Var& q, const Var& k, Context& c) const override {
    require_within(c, q.size(1));
    kernels::CosineFeatures::Options o;
    if (c.place)
      o.position = c.place;
    else
      o.offset = c.position;
    o.cu_seqlens = c.cu_seqlens;
    Var frequency(frequency_);
    if (reach_) {
      const Var part = activation(autograd::reshape(reach_, {1, -1}), "sigmoid");
      frequency = autograd::multiply(autograd::reshape(part, {-1}), frequency);
    }
    const auto features = [&](const Var& x) {
      return autograd::apply<kernels::CosineFeatures>({x, frequency}, o).y;
    };
    return {features(q), features(k), {}};
  }
  int64_t width() const override { return 2 * size_.K; }
  double scale() const override { return 1; }
  int64_t longest_text() const override { return horizon_; }

 private:
  static constexpr double kStart = 2;  // a learned horizon starts 1.14 times as long

  void require_within(const Context& c, int64_t T) const {
    // Where the host does not know the position, the text has at most the state's capacity, and its
    // last token is fed to no step.
    int64_t longest = c.place ? c.capacity - 1 : c.position + T;
    if (c.cu_seqlens && !c.cu_seqlens.is_meta()) {
      longest = 0;
      const int32_t* const cu = c.cu_seqlens.data<int32_t>();
      for (int64_t n = 0; n + 1 < c.cu_seqlens.numel(); ++n)
        longest = std::max<int64_t>(longest, cu[n + 1] - cu[n]);
    }
    require(longest <= horizon_, "cosine: a text of ", longest,
            " tokens is longer than the horizon of ", horizon_,
            ", beyond which weights would be negative; set a longer horizon");
  }

  HeadSizes size_;
  int64_t horizon_;
  Var reach_;         // [Hk], or absent
  Tensor frequency_;  // [Hk]: that of `horizon`
};

const RegisteredFeatureMap registered{"cosine", feature_map_maker<Cosine>()};

}  // namespace
}  // namespace weft::layers
