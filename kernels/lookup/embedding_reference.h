// The definition of the embedding, and the cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/lookup/embedding.h"

namespace weft::kernels {

template <>
struct Reference<Embedding> {
  template <class S>
  static void naive(Inputs<Embedding, View<S>> x, const Embedding::Options& o,
                    Outputs<Embedding, View<S>> y) {
    const View<const int32_t> ids = view<const int32_t>(o.ids);
    for (int64_t r = 0; r < ids.size(0); ++r)
      for (int64_t d = 0; d < x.weight.size(1); ++d) y.y(r, d) = x.weight(ids(r), d);
  }

  static std::vector<Case<Embedding>> cases() {
    const auto make = [](const char* name, int64_t V, int64_t D, std::vector<int32_t> ids) {
      return Case<Embedding>{name, {normal({V, D}, 1, "weight")}, {tensor_of(ids)}};
    };
    std::vector<Case<Embedding>> list = {make("repeated ids", 7, 5, {3, 0, 3, 6, 3, 0}),
                                         make("one row", 4, 3, {2}), make("no rows", 4, 3, {}),
                                         make("wider than a strip", 5, 67, {4, 4, 0, 1, 4})};
    std::vector<int32_t> many;
    for (int32_t r = 0; r < 90; ++r) many.push_back(r % 3 ? 4 : r * 7 % 6);
    list.push_back(make("an id in half of many rows", 7, 24, many));
    list.push_back(make("transposed table", 6, 6, {5, 1, 5}));
    list.back().x.weight = list.back().x.weight.transpose(0, 1);
    return list;
  }

  static Bench<Embedding> bench(int64_t T) {
    constexpr int64_t kVocabulary = 8192, kWidth = 512;
    const Tensor ids = empty({T}, Dtype::i32);
    for (int64_t t = 0; t < T; ++t)
      ids.data<int32_t>()[t] = static_cast<int32_t>(t * 2654435761 % kVocabulary);
    return {{normal({kVocabulary, kWidth}, 1, "weight")}, {ids}, {}};
  }

  static std::vector<GpuShape> gpu_shapes() {
    constexpr int64_t R = 32768, V = 50304;
    return {{.name = "embedding R32768 V50304 D768",
             .sizes = {{"R", R}, {"V", V}, {"D", 768}},
             .index = {{"ids", random_indices(R, V)}},
             .backward_reads_inputs = false}};
  }
};

}  // namespace weft::kernels
