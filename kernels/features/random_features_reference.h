// The definition of random features, and the cases worth testing.
#pragma once

#include "kernels/contract/reference.h"
#include "kernels/features/random_features.h"

namespace weft::kernels {

template <>
struct Reference<RandomFeatures> {
  template <class S>
  static void naive(Inputs<RandomFeatures, View<S>> x, const RandomFeatures::Options& o,
                    Outputs<RandomFeatures, View<S>> y) {
    using std::exp, std::cos, std::sin;
    const int64_t H = x.x.size(2), K = x.x.size(3), M = o.projection.size(1);
    const double scale = o.scale != 0 ? o.scale : std::pow(static_cast<double>(K), -0.25);
    const Tensor projection = o.projection.to(Dtype::f64);
    const View<const double> w = view<const double>(projection);
    const S by = 1 / std::sqrt(static_cast<double>(M));
    for (int64_t b = 0; b < x.x.size(0); ++b)
      for (int64_t t = 0; t < x.x.size(1); ++t)
        for (int64_t h = 0; h < H; ++h) {
          const S shift = x.shift ? x.shift(b, t, h) : S(0);
          S half = 0;  // |u|^2 / 2
          for (int64_t d = 0; d < K; ++d)
            half += S(0.5 * scale * scale) * x.x(b, t, h, d) * x.x(b, t, h, d);
          for (int64_t i = 0; i < M; ++i) {
            S p = 0;
            for (int64_t d = 0; d < K; ++d) p += S(scale * w(h, i, d)) * x.x(b, t, h, d);
            if (o.kind == "positive") {
              y.y(b, t, h, i) = by * exp(p - half - shift);
            } else {
              const S size = by * exp(half - shift);
              y.y(b, t, h, i) = size * cos(p);
              y.y(b, t, h, M + i) = size * sin(p);
            }
          }
        }
  }

  static Case<RandomFeatures> make(const char* name, const Shape& shape, int64_t M,
                                   const char* kind = "positive") {
    return {name,
            {normal(shape, 1, "x"), {}},
            {.kind = kind, .projection = normal({shape[2], M, shape[3]}, 1, "projection")}};
  }

  static std::vector<Case<RandomFeatures>> cases() {
    std::vector<Case<RandomFeatures>> list = {
        make("positive", {2, 5, 2, 4}, 7),
        make("trigonometric", {2, 5, 2, 4}, 7, "trigonometric"),
        make("one token, one feature, one column", {1, 1, 3, 1}, 1),
        make("one token, trigonometric", {1, 1, 2, 3}, 2, "trigonometric"),
        make("no tokens", {1, 0, 2, 4}, 3),
        make("features off the tiles", {1, 3, 1, 5}, 67),
        make("width off the tiles, trigonometric", {1, 2, 2, 35}, 65, "trigonometric"),
        make("rows off the tiles", {3, 11, 1, 3}, 2)};
    {
      auto& c = list.emplace_back(make("a shift", {2, 5, 2, 4}, 6));
      c.x.shift = normal({2, 5, 2}, 1, "shift", 3);
    }
    {
      auto& c = list.emplace_back(make("a shift, scale", {1, 6, 2, 3}, 5, "trigonometric"));
      c.x.shift = normal({1, 6, 2}, 1, "shift");
      c.o.scale = 0.7;
    }
    {  // exponents of -40, which the shift takes back
      auto& c = list.emplace_back(make("large, shifted", {1, 6, 2, 4}, 5));
      c.x.x = normal({1, 6, 2, 4}, 1, "x", 5);
      c.x.shift = largest_exponents(c.x.x, c.o.projection, RandomFeatures::scale_of(c.o, 4));
    }
    list.emplace_back(make("zeros", {1, 3, 2, 4}, 5)).x.x.zero();
    {
      auto& c = list.emplace_back(make("heads before tokens, projection in part", {2, 6, 3, 5}, 4));
      c.x.x = normal({2, 3, 6, 5}, 1, "x").transpose(1, 2);
      c.x.shift = normal({2, 3, 6}, 1, "shift").transpose(1, 2);
      c.o.projection = normal({3, 9, 7}, 1, "projection").slice(1, 2, 6).slice(2, 1, 6);
    }
    {
      auto& c = list.emplace_back(make("keys beside values, transposed", {2, 3, 4, 5}, 4));
      c.x.x = normal({2, 3, 5, 9}, 1, "x").slice(3, 2, 6).transpose(2, 3);
    }
    return list;
  }

  static Bench<RandomFeatures> bench(int64_t T) {
    constexpr int64_t H = 4, K = 64, M = 256;
    Case<RandomFeatures> c = make("", {1, T, H, K}, M);
    c.x.shift = zeros({1, T, H}, Dtype::f64);
    return {c.x, c.o, product_flops(static_cast<double>(T * H), K, M)};
  }
};

}  // namespace weft::kernels
