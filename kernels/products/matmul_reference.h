// The definition of the matrix product, and the cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/products/matmul.h"

namespace weft::kernels {

template <>
struct Reference<Matmul> {
  template <class S>
  static void naive(Inputs<Matmul, View<S>> x, const Matmul::Options&, Outputs<Matmul, View<S>> y) {
    for (int64_t r = 0; r < x.x.size(0); ++r)
      for (int64_t o = 0; o < x.w.size(0); ++o) {
        S sum = x.bias ? x.bias(o) : S(0);
        for (int64_t i = 0; i < x.x.size(1); ++i) sum += x.x(r, i) * x.w(o, i);
        y.y(r, o) = sum;
      }
  }

  static std::vector<Case<Matmul>> cases() {
    const auto make = [](const char* name, int64_t R, int64_t I, int64_t O, bool bias) {
      Case<Matmul> c{name, {normal({R, I}, 1, "x"), normal({O, I}, 1, "w"), {}}, {}};
      if (bias) c.x.bias = normal({O}, 1, "bias");
      return c;
    };
    std::vector<Case<Matmul>> list = {make("odd sizes", 7, 5, 3, true),
                                      make("one row", 1, 9, 4, false),
                                      make("no rows", 0, 3, 2, true), make("wide", 3, 2, 65, true)};
    list.push_back(make("transposed views", 6, 6, 6, false));
    list.back().x.x = list.back().x.x.transpose(0, 1);
    list.back().x.w = list.back().x.w.transpose(0, 1);
    return list;
  }

  static Bench<Matmul> bench(int64_t T) {
    constexpr int64_t kWidth = 512;
    return {{normal({T, kWidth}, 1, "x"), normal({kWidth, kWidth}, 1, "w"), {}},
            {},
            product_flops(static_cast<double>(T), kWidth, kWidth)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    constexpr int64_t R = 32768;
    std::vector<GpuShape> list;
    for (const auto& [I, O] : {std::pair<int64_t, int64_t>{768, 2304}, {768, 3072}, {3072, 768}})
      list.push_back({.name = sized_name("matmul", {{"R", R}, {"I", I}, {"O", O}}),
                      .sizes = {{"R", R}, {"I", I}, {"O", O}},
                      .flops = product_flops(R, static_cast<double>(I), static_cast<double>(O)),
                      .deviations = {{"w", 0.02}}});
    return list;
  }
};

}  // namespace weft::kernels
