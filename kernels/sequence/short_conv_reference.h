// The definition of the short convolution, and the cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/rows/activation_reference.h"
#include "kernels/sequence/short_conv.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {

template <>
struct Reference<ShortConv> {
  template <class S>
  static void naive(Inputs<ShortConv, View<S>> x, const ShortConv::Options& o,
                    Outputs<ShortConv, View<S>> y) {
    const int64_t D = x.x.size(2), W = x.w.size(1);
    const Documents documents(o.cu_seqlens, x.x.size(0), x.x.size(1));
    for (int64_t n = 0; n < documents.count(); ++n) {
      const int64_t row = documents.row(n), begin = documents.begin(n), end = documents.end(n);
      for (int64_t d = 0; d < D; ++d) {
        // The document's input at token t of the row; before its first token, the state's.
        const auto input = [&](int64_t t) {
          if (t >= begin) return x.x(row, t, d);
          return x.initial_state ? x.initial_state(n, d, t - begin + W - 1) : S(0);
        };
        for (int64_t t = begin; t < end; ++t) {
          S sum = x.bias ? x.bias(d) : S(0);
          for (int64_t j = 0; j < W; ++j) sum += x.w(d, j) * input(t - W + 1 + j);
          y.y(row, t, d) = o.silu ? definition::activation("silu", sum) : sum;
        }
        for (int64_t j = 0; o.return_state && j < W - 1; ++j)
          y.final_state(n, d, j) = input(end - W + 1 + j);
      }
    }
  }

  static Case<ShortConv> sample(const std::string& name, int64_t B, int64_t T, int64_t D, int64_t W,
                                bool bias, std::vector<int32_t> cu, bool state, bool silu = true) {
    Case<ShortConv> c{
        name, {normal({B, T, D}, 1, "x"), normal({D, W}, 1, "w"), {}, {}}, {silu, {}}};
    if (bias) c.x.bias = normal({D}, 1, "bias");
    if (!cu.empty()) c.o.cu_seqlens = tensor_of(cu);
    if (state)
      c.x.initial_state = normal({document_count(c.o.cu_seqlens, B), D, W - 1}, 1, "initial_state");
    return c;
  }

  static std::vector<Case<ShortConv>> cases() {
    std::vector<Case<ShortConv>> list = {
        sample("odd sizes", 2, 17, 5, 4, true, {}, false),
        sample("no silu", 2, 7, 5, 3, true, {}, false, false),
        sample("initial state", 3, 6, 4, 4, true, {}, true),
        sample("one token", 2, 1, 3, 4, false, {}, true),
        sample("one token, no state", 2, 1, 3, 4, true, {}, false),
        sample("two tokens", 2, 2, 3, 4, false, {}, true, false),
        sample("one tap", 2, 5, 3, 1, true, {}, true),
        sample("two taps", 1, 5, 3, 2, true, {}, true),
        sample("seven taps", 1, 9, 3, 7, true, {}, true),
        sample("many tokens", 2, 150, 3, 4, true, {}, true),
        sample("no tokens", 2, 0, 3, 4, true, {}, true),
        sample("packed", 1, 11, 3, 4, true, {0, 1, 3, 6, 11}, true),
        sample("packed, no state", 1, 11, 3, 4, false, {0, 5, 6, 8, 11}, false),
        sample("packed, seven taps", 1, 11, 2, 7, true, {0, 1, 3, 6, 11}, true, false),
        sample("packed across pieces", 1, 200, 2, 4, true, {0, 1, 63, 65, 127, 128, 200}, true)};
    list.push_back(sample("channels of a wider tensor", 2, 6, 4, 4, true, {}, true));
    list.back().x.x = normal({2, 6, 9}, 1, "x").slice(2, 3, 7);
    list.push_back(sample("channels before tokens", 2, 6, 4, 4, true, {}, true));
    list.back().x.x = normal({2, 4, 6}, 1, "x").transpose(1, 2);
    list.back().x.w = normal({4, 4}, 1, "w").transpose(0, 1);
    list.back().x.initial_state = normal({2, 3, 4}, 1, "initial_state").transpose(1, 2);
    list.push_back(sample("no state returned", 1, 11, 3, 4, false, {0, 5, 6, 8, 11}, true));
    list.back().o.return_state = false;
    return list;
  }

  static Bench<ShortConv> bench(int64_t T) {
    const Case<ShortConv> c = sample("", 1, T, 1024, 4, true, {}, false);
    return {c.x, c.o, rows_flops(12.0 * static_cast<double>(T * 1024))};
  }

  static std::vector<GpuShape> gpu_shapes() {
    return {{.name = "short_conv B8 T4096 D3072 W4",
             .sizes = {{"B", 8}, {"T", 4096}, {"D", 3072}, {"W", 4}, {"W - 1", 3}, {"N", 8}},
             .settings = {{"return_state", "false"}},
             .deviations = {{"w", 0.02}}}};
  }
};

}  // namespace weft::kernels
