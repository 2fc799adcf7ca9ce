// The definition of the rotary embedding, and the cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/sequence/rotary.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {

template <>
struct Reference<Rotary> {
  static double rate(const Rotary::Options& o, int64_t pair, int64_t width) {
    const auto i = static_cast<double>(pair);
    const double r = std::pow(o.base, -2.0 * i / static_cast<double>(width));
    const double s = o.ramp_by_rate ? r : i;
    double m = 1;
    if (o.ramp_begin < o.ramp_end) {
      m = s <= o.ramp_begin ? 0 : (s - o.ramp_begin) / (o.ramp_end - o.ramp_begin);
    } else if (o.ramp_begin > o.ramp_end) {
      m = s >= o.ramp_begin ? 0 : (o.ramp_begin - s) / (o.ramp_begin - o.ramp_end);
    }
    if (m > 1) m = 1;
    return r - r * m * (1 - 1 / o.factor);
  }

  template <class S>
  static void naive(Inputs<Rotary, View<S>> x, const Rotary::Options& o,
                    Outputs<Rotary, View<S>> y) {
    const int64_t B = x.x.size(0), T = x.x.size(1), H = x.x.size(2), K = x.x.size(3);
    const int64_t width = o.width ? o.width : K, pairs = width / 2;
    const Documents documents(o.cu_seqlens, B, T);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t t = 0; t < T; ++t) {
        const auto position =
            static_cast<double>(o.offset + t - documents.begin(documents.of(b, t)));
        for (int64_t h = 0; h < H; ++h) {
          for (int64_t i = 0; i < pairs; ++i) {
            const double angle = position * rate(o, i, width);
            const int64_t first = o.interleaved ? 2 * i : i;
            const int64_t second = o.interleaved ? 2 * i + 1 : i + pairs;
            const S u = x.x(b, t, h, first), v = x.x(b, t, h, second);
            const S cosine = S(o.magnitude * std::cos(angle));
            const S sine = S(o.magnitude * std::sin(angle));
            y.y(b, t, h, first) = u * cosine - v * sine;
            y.y(b, t, h, second) = u * sine + v * cosine;
          }
          for (int64_t i = width; i < K; ++i) y.y(b, t, h, i) = x.x(b, t, h, i);
        }
      }
  }

  static std::vector<Case<Rotary>> cases() {
    const Shape shape{2, 7, 3, 10};
    const Tensor cu = tensor_of<int32_t>({0, 1, 3, 6, 11});
    std::vector<Case<Rotary>> list = {
        {"halves", {normal(shape, 1, "x")}, {}},
        {"neighbours", {normal(shape, 1, "x")}, {.interleaved = true}},
        {"part of the width", {normal(shape, 1, "x")}, {.base = 500, .width = 6}},
        {"part of the width, neighbours",
         {normal(shape, 1, "x")},
         {.width = 4, .interleaved = true, .offset = 3}},
        {"one token, far on", {normal({1, 1, 2, 8}, 1, "x")}, {.offset = 1000}},
        {"no tokens", {normal({1, 0, 2, 8}, 1, "x")}, {}},
        {"many tokens", {normal({1, 37, 1, 2}, 1, "x")}, {.base = 3}},
        {"packed", {normal({1, 11, 2, 4}, 1, "x")}, {.cu_seqlens = cu}},
        {"packed, neighbours",
         {normal({1, 11, 2, 4}, 1, "x")},
         {.interleaved = true, .offset = 5, .cu_seqlens = cu}}};
    list.push_back({"slower", {normal(shape, 1, "x")}, {.offset = 5, .factor = 4}});
    list.push_back(
        {"slower from pair to pair",
         {normal({1, 9, 2, 16}, 1, "x")},
         {.base = 500, .factor = 8, .ramp_begin = 1, .ramp_end = 5.5, .magnitude = 1.2}});
    list.push_back({"slower below a rate",
                    {normal({1, 9, 2, 18}, 1, "x")},
                    {.base = 500,
                     .width = 16,
                     .interleaved = true,
                     .factor = 8,
                     .ramp_begin = 0.4,
                     .ramp_end = 0.02,
                     .ramp_by_rate = true}});
    const Tensor joint = normal({2, 5, 3, 12}, 1, "x");
    list.push_back({"keys beside values", {joint.slice(3, 2, 8)}, {}});
    list.push_back({"heads before tokens", {normal({2, 3, 5, 6}, 1, "x").transpose(1, 2)}, {}});
    list.push_back({"transposed head", {normal({2, 5, 6, 3}, 1, "x").transpose(2, 3)}, {}});
    return list;
  }

  static Bench<Rotary> bench(int64_t T) {
    return {
        {normal({1, T, 8, 128}, 1, "x")}, {}, rows_flops(3.0 * static_cast<double>(T * 8 * 128))};
  }

  static std::vector<GpuShape> gpu_shapes() {
    return {{.name = "rotary B4 T4096 H16 K128",
             .sizes = {{"B", 4}, {"T", 4096}, {"H", 16}, {"K", 128}},
             .backward_reads_inputs = false}};
  }
};

}  // namespace weft::kernels
