// Random features of softmax attention (FAVOR+): Performer's map, and the trigonometric one that
// came before it. The projections of a layer are drawn anew every `redraw` steps; each draw is a
// function of seed, layer, head and number, so a run that goes on draws what it would have drawn.
// Source: arXiv:2009.14794.
#include <algorithm>

#include "autograd/kernel_op.h"
#include "kernels/features/projection.h"
#include "kernels/features/random_features.h"
#include "layers/feature_map.h"

namespace weft::layers {
namespace {

using kernels::RandomFeatures;

class Favor : public FeatureMap {
 public:
  // `most`: rows of a projection as a standard, for the kernels of a GPU take 256 features.
  Favor(const Spec& spec, const TomlTable& t, const Builder& b, const HeadSizes& size, int64_t most)
      : size_(size),
        redraw_(t.integer("redraw", kCount, 1000)),
        draw_{.heads = size.Hk,
              .features = t.integer("features", kSize, std::min(most, features_of(size.K))),
              .width = size.K,
              .orthogonal = t.boolean("orthogonal", true),
              .seed = spec.seed,
              .layer = spec.layer},
        projection_(b.wide().buffer({size.Hk, draw_.features, size.K}, [](int64_t) { return 0; })) {
    fill();
  }

  void at_step(int64_t step) override {
    const int64_t draw = redraw_ > 0 ? step / redraw_ : 0;
    if (draw == draw_.draw) return;
    draw_.draw = draw;
    fill();
  }
  double flops() const override {
    return 4 * static_cast<double>(size_.Hk * size_.K * draw_.features);
  }
  double scale() const override { return 1; }

 protected:
  // K log K, as the bound of the paper's theorem 4 grows, in tiles of 16.
  static int64_t features_of(int64_t K) {
    const double k = static_cast<double>(K);
    return (std::max<int64_t>(1, std::llround(k * std::log(k))) + 15) / 16 * 16;
  }
  Var features(const Var& x, const char* kind, const Tensor& shift = {}) const {
    RandomFeatures::Options o;
    o.kind = kind;
    o.projection = projection_;
    return autograd::apply<RandomFeatures>({x, shift ? Var(shift) : Var()}, o).y;
  }
  Tensor exponents(const Var& x) const {
    return kernels::largest_exponents(x.value(), projection_,
                                      RandomFeatures::scale_of({}, size_.K));
  }

  HeadSizes size_;
  int64_t redraw_;
  kernels::Projection draw_;
  Tensor projection_;  // [Hk, M, K]

 private:
  void fill() {
    if (projection_.is_meta()) return;
    const Tensor drawn = kernels::random_projection(draw_).to(projection_.dtype());
    projection_.copy_from(drawn.to(projection_.device()));
  }
};

// The shifts of exponents cancel in the quotient: a query's is its own, and keys share the largest
// so far. They are constants, for what does not depend on them has no gradient by them.
class Positive final : public Favor {
 public:
  Positive(const Spec& spec, const TomlTable& t, const Builder& b, const HeadSizes& size)
      : Favor(spec, t, b, size, 256) {}
  Result operator()(const Var& q, const Var& k, Context& c) const override {
    const auto keys = kernels::running_shift(exponents(k), remembered(c, "shift"), c.cu_seqlens,
                                             size_.H / size_.Hk);
    remember(c, "shift", Var(keys.last));
    return {features(q, "positive", exponents(q)), features(k, "positive", keys.shift),
            Var(keys.g)};
  }
  int64_t width() const override { return draw_.features; }
  Divisor divisor() const override { return Divisor::needed; }
  double eps() const override { return 1e-30; }  // what is added would not cancel
  double flops() const override { return 2 * Favor::flops(); }
};

class Trigonometric final : public Favor {
 public:
  Trigonometric(const Spec& spec, const TomlTable& t, const Builder& b, const HeadSizes& size)
      : Favor(spec, t, b, size, 128) {}
  Result operator()(const Var& q, const Var& k, Context&) const override {
    return {features(q, "trigonometric"), features(k, "trigonometric"), {}};
  }
  int64_t width() const override { return 2 * draw_.features; }
  Divisor divisor() const override { return Divisor::unsafe; }
};

const RegisteredFeatureMap positive{"favor+", feature_map_maker<Positive>()};
const RegisteredFeatureMap trigonometric{"trigonometric", feature_map_maker<Trigonometric>()};

}  // namespace
}  // namespace weft::layers
