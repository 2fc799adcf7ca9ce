// The definition of cosFormer's features, and the cases worth testing.
#pragma once

#include "kernels/contract/reference.h"
#include "kernels/features/cosine_features.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {

template <>
struct Reference<CosineFeatures> {
  template <class S>
  static void naive(Inputs<CosineFeatures, View<S>> x, const CosineFeatures::Options& o,
                    Outputs<CosineFeatures, View<S>> y) {
    using std::cos, std::sin;
    const int64_t B = x.x.size(0), T = x.x.size(1), H = x.x.size(2), K = x.x.size(3);
    const Documents documents(o.cu_seqlens, B, T);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = 0; t < T; ++t) {
        const auto p = static_cast<double>(o.offset + t - documents.begin(documents.of(b, t)));
        for (int64_t h = 0; h < H; ++h) {
          const S theta = x.frequency(h) * S(p);
          for (int64_t d = 0; d < K; ++d) {
            const S u = x.x(b, t, h, d), positive = u <= S(0) ? S(0) : u;
            y.y(b, t, h, d) = positive * cos(theta);
            y.y(b, t, h, K + d) = positive * sin(theta);
          }
        }
      }
  }

  static Case<CosineFeatures> make(const char* name, const Shape& shape) {
    return {name, {normal(shape, 1, "x"), normal({shape[2]}, 1, "frequency", 0.3)}, {}};
  }

  static std::vector<Case<CosineFeatures>> cases() {
    std::vector<Case<CosineFeatures>> list = {
        make("two rows", {2, 7, 3, 5}), make("one token", {2, 1, 2, 3}),
        make("one column", {1, 4, 1, 1}), make("no tokens", {1, 0, 2, 4}),
        make("rows off the blocks", {2, 37, 1, 2})};
    list.emplace_back(make("width off the warps", {1, 3, 2, 35}));
    list.emplace_back(make("far on", {1, 2, 2, 4})).o.offset = 60;
    list.emplace_back(make("a frequency of zero", {1, 5, 2, 4})).x.frequency.zero();
    {
      auto& c = list.emplace_back(make("packed", {1, 11, 2, 4}));
      c.o.cu_seqlens = tensor_of<int32_t>({0, 1, 3, 6, 11});
    }
    {
      auto& c = list.emplace_back(make("packed, offset", {1, 9, 1, 3}));
      c.o.cu_seqlens = tensor_of<int32_t>({0, 4, 5, 9});
      c.o.offset = 5;
    }
    list.emplace_back(make("heads before tokens", {2, 6, 3, 5})).x.x =
        normal({2, 3, 6, 5}, 1, "x").transpose(1, 2);
    list.emplace_back(make("keys beside values, transposed", {2, 3, 5, 4})).x.x =
        normal({2, 3, 4, 11}, 1, "x").slice(3, 2, 7).transpose(2, 3);
    return list;
  }

  static Bench<CosineFeatures> bench(int64_t T) {
    Case<CosineFeatures> c = make("", {1, T, 8, 64});
    return {c.x, c.o, rows_flops(3.0 * static_cast<double>(T * 8 * 64))};
  }
};

}  // namespace weft::kernels
