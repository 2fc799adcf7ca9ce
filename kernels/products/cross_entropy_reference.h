// The definition of the loss, and the cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/products/cross_entropy.h"

namespace weft::kernels {

template <>
struct Reference<CrossEntropy> {
  template <class S>
  static void naive(Inputs<CrossEntropy, View<S>> x, const CrossEntropy::Options& o,
                    Outputs<CrossEntropy, View<S>> y) {
    using std::exp, std::log, std::tanh;
    const View<const int32_t> targets = view<const int32_t>(o.targets);
    const int64_t R = x.x.size(0), D = x.x.size(1), V = x.w.size(0);
    S loss(0), z(0);
    double labelled = 0;
    for (int64_t r = 0; r < R; ++r) {
      if (targets(r) == CrossEntropy::kIgnored) continue;
      std::vector<S> logits;
      for (int64_t v = 0; v < V; ++v) {
        S sum = x.bias ? x.bias(v) : S(0);
        for (int64_t d = 0; d < D; ++d) sum += x.x(r, d) * x.w(v, d);
        logits.push_back(o.softcap > 0 ? S(o.softcap) * tanh(sum / S(o.softcap)) : sum);
      }
      S most = logits[0], sum(0);
      for (const S& l : logits) most = l > most ? l : most;
      for (const S& l : logits) sum += exp(l - most);
      const S lse = most + log(sum);
      loss += lse - logits[static_cast<size_t>(targets(r))];
      z += lse * lse;
      labelled += 1;
    }
    const S count(labelled > 0 ? labelled : 1);
    y.loss(0) = loss / count;
    y.z(0) = z / count;
  }

  // `every`: each so-manyth row is labelled.
  static Case<CrossEntropy> sample(const std::string& name, int64_t R, int64_t D, int64_t V,
                                   int64_t every, bool bias = false, double softcap = 0) {
    std::vector<int32_t> targets;
    for (int64_t r = 0; r < R; ++r)
      targets.push_back(r % every ? CrossEntropy::kIgnored : static_cast<int32_t>((r * 7 + 3) % V));
    Case<CrossEntropy> c{
        name, {normal({R, D}, 1, "x"), normal({V, D}, 1, "w"), {}}, {tensor_of(targets), softcap}};
    if (bias) c.x.bias = normal({V}, 1, "bias");
    return c;
  }

  static std::vector<Case<CrossEntropy>> cases() {
    std::vector<Case<CrossEntropy>> list = {sample("odd sizes", 13, 5, 7, 1),
                                            sample("bias", 9, 4, 11, 1, true),
                                            sample("ignored rows", 14, 3, 5, 3, true),
                                            sample("soft cap", 9, 4, 6, 2, true, 2.0),
                                            sample("one row", 1, 4, 3, 1),
                                            sample("one entry", 3, 4, 1, 1),
                                            sample("no rows", 0, 4, 3, 1, true),
                                            sample("many rows", 70, 2, 8, 1),
                                            sample("many entries", 6, 8, 1003, 2, true)};
    list.push_back(sample("no labelled row", 5, 4, 3, 1, true));
    list.back().o.targets.fill(CrossEntropy::kIgnored);
    list.push_back(sample("large logits", 5, 4, 6, 1));
    list.back().x.x = normal({5, 4}, 1, "x", 40);
    list.push_back(sample("columns of wider matrices", 6, 4, 5, 2));
    list.back().x.x = normal({6, 9}, 1, "x").slice(1, 3, 7);
    list.back().x.w = normal({4, 5}, 1, "w").transpose(0, 1);
    return list;
  }

  static Bench<CrossEntropy> bench(int64_t T) {
    constexpr int64_t kWidth = 512, kVocabulary = 8192;
    const Case<CrossEntropy> c = sample("", T, kWidth, kVocabulary, 1);
    return {c.x, c.o, product_flops(static_cast<double>(T), kWidth, kVocabulary)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    constexpr int64_t R = 32768, V = 50304, D = 768;
    return {{.name = "cross_entropy R32768 V50304 D768",
             .sizes = {{"R", R}, {"V", V}, {"D", D}},
             .flops = product_flops(R, D, V),
             .deviations = {{"w", 0.02}},
             .index = {{"targets", random_indices(R, V)}}}};
  }
};

}  // namespace weft::kernels
