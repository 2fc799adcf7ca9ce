// The definition of block means, document by document, and the cases worth testing.
#pragma once

#include "kernels/contract/reference.h"
#include "kernels/selection/block_means.h"

namespace weft::kernels {

template <>
struct Reference<BlockMeans> {
  template <class S>
  static void naive(Inputs<BlockMeans, View<S>> x, const BlockMeans::Options& o,
                    Outputs<BlockMeans, View<S>> y) {
    const int64_t B = x.x.size(0), T = x.x.size(1);
    const auto each = [&](const auto& f) {
      for (int64_t b = 0; b < B; ++b)
        for (int64_t h = 0; h < x.x.size(2); ++h)
          for (int64_t c = 0; c < x.x.size(3); ++c) f(b, h, c);
    };
    for (int64_t slot = 0; slot < y.y.size(1); ++slot)
      each([&](int64_t b, int64_t h, int64_t c) { y.y(b, slot, h, c) = S(0.0); });
    std::vector<int64_t> borders = {0, o.position ? to_ints(o.position)[0] + 1 : T};
    if (o.cu_seqlens) borders = to_ints(o.cu_seqlens);
    for (size_t n = 0; n + 1 < borders.size(); ++n)
      for (int64_t first = borders[n]; first <= borders[n + 1] - o.block; first += o.block)
        each([&](int64_t b, int64_t h, int64_t c) {
          S sum = 0.0;
          for (int64_t t = first; t < first + o.block; ++t) sum += x.x(b, t, h, c);
          y.y(b, first / o.block, h, c) = sum / S(static_cast<double>(o.block));
        });
  }

  static std::vector<Case<BlockMeans>> cases() {
    const auto make = [](const char* name, const Shape& shape, int64_t block) {
      Case<BlockMeans> c{name, {normal(shape, 1, "x")}, {}};
      c.o.block = block;
      return c;
    };
    std::vector<Case<BlockMeans>> list = {
        make("one token", {2, 1, 1, 3}, 4),
        make("blocks of one", {1, 5, 2, 3}, 1),
        make("two rows and a tail", {2, 23, 3, 5}, 4),
        make("no complete block", {1, 7, 2, 3}, 8),
        make("blocks of 64", {1, 130, 2, 4}, 64),
        make("packed", {1, 40, 2, 3}, 4),
        make("packed, blocks that touch", {1, 24, 1, 2}, 8),
        make("heads that are not neighbours", {2, 9, 3, 4}, 3),
    };
    list[5].o.cu_seqlens = tensor_of<int32_t>({0, 1, 2, 3, 17, 18, 25, 40});
    list[6].o.cu_seqlens = tensor_of<int32_t>({0, 7, 15, 24, 24});
    list[7].x.x = normal({2, 9, 4, 3}, 1, "x").transpose(2, 3);
    return list;
  }

  static Bench<BlockMeans> bench(int64_t T) {
    return {{normal({1, T, 4, 64}, 1, "x")}, {}, rows_flops(256.0 * static_cast<double>(T))};
  }
};

}  // namespace weft::kernels
