// A learned map: relu(W x + b), W and b of their own for each head, and for queries and keys. A
// model that was trained with softmax learns them to stand for it (T2R). W starts as the identity,
// so the map starts as relu.
// Source: arXiv:2103.13076.
#include "autograd/ops.h"
#include "layers/feature_map.h"

namespace weft::layers {
namespace {

class T2r final : public FeatureMap {
 public:
  T2r(const Spec& spec, const TomlTable& t, const Builder& b, const HeadSizes& size)
      : size_(size),
        features_(t.integer("features", kSize, size.K)),
        q_(b.within("feature_map.q"), spec, *this),
        k_(b.within("feature_map.k"), spec, *this) {}

  Result operator()(const Var& q, const Var& k, Context&) const override {
    return {q_(q), k_(k), {}};
  }
  int64_t width() const override { return features_; }
  double flops() const override {
    return 4 * static_cast<double>(size_.Hk * size_.K) * static_cast<double>(features_);
  }

 private:
  class Side {
   public:
    Side(const Builder& b, const Spec& spec, const T2r& map)
        : heads_(map.size_.Hk), width_(map.features_) {
      const int64_t K = map.size_.K, F = width_;
      const Init identity =
          Init::function([K, F](int64_t i, double) { return i / K % F == i % K ? 1.0 : 0.0; });
      weight_ = b.parameter("weight", {heads_ * F, K}, F == K ? identity : Init::normal(spec.init));
      bias_ = b.parameter("bias", {heads_ * F}, Init::constant(0));
    }
    // [B, T, Hk, K] to [B, T, Hk, F].
    Var operator()(const Var& x) const {
      const int64_t B = x.size(0), T = x.size(1), K = x.size(3);
      std::vector<Var> all;
      for (int64_t h = 0; h < heads_; ++h) {
        const Var one = autograd::reshape(autograd::slice(x, 2, h, h + 1), {B * T, K});
        const int64_t begin = h * width_, end = begin + width_;
        const Var y = product(one, autograd::slice(weight_, 0, begin, end),
                              autograd::slice(bias_, 0, begin, end));
        all.push_back(autograd::reshape(activation(y, "relu"), {B, T, 1, width_}));
      }
      return autograd::concat(all, 2);
    }

   private:
    int64_t heads_, width_;
    Var weight_, bias_;
  };

  HeadSizes size_;
  int64_t features_;
  Side q_, k_;
};

const RegisteredFeatureMap registered{"t2r", feature_map_maker<T2r>()};

}  // namespace
}  // namespace weft::layers
