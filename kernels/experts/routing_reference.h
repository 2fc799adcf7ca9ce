// The definitions of the router and of the moves of rows, and the cases worth testing.
#pragma once

#include <algorithm>

#include "kernels/contract/reference.h"
#include "kernels/experts/routing.h"

namespace weft::kernels {

template <>
struct Reference<Router> {
  template <class S>
  static void naive(Inputs<Router, View<S>> x, const Router::Options& o,
                    Outputs<Router, View<S>> y) {
    using std::exp, std::log;
    const int64_t R = x.logits.size(0), E = x.logits.size(1), k = o.top_k;
    std::vector<S> mean(static_cast<size_t>(E), S(0));
    std::vector<double> routed(static_cast<size_t>(E), 0);
    S z(0);
    for (int64_t r = 0; r < R; ++r) {
      S most = x.logits(r, 0), sum(0);
      for (int64_t e = 1; e < E; ++e) most = x.logits(r, e) > most ? x.logits(r, e) : most;
      for (int64_t e = 0; e < E; ++e) sum += exp(x.logits(r, e) - most);
      const S lse = most + log(sum);
      z += lse * lse;
      std::vector<S> p;
      for (int64_t e = 0; e < E; ++e) p.push_back(exp(x.logits(r, e) - lse));
      for (size_t e = 0; e < p.size(); ++e) mean[e] += p[e];
      const std::vector<size_t> chosen = choose(x.logits, o, r);
      S total(o.normalize ? 0 : 1);
      if (o.normalize)
        for (const size_t e : chosen) total += p[e];
      for (int64_t j = 0; j < k; ++j) {
        const size_t e = chosen[static_cast<size_t>(j)];
        y.weight(r, j) = p[e] / total;
        routed[e] += 1;
        if (o.index) view<int32_t>(o.index)(r, j) = static_cast<int32_t>(e);
      }
    }
    const auto rows = static_cast<double>(R > 0 ? R : 1);
    S balance(0);
    for (size_t e = 0; e < mean.size(); ++e)
      balance +=
          S(static_cast<double>(E) * routed[e] / (rows * static_cast<double>(k) * rows)) * mean[e];
    y.balance(0) = balance;
    y.z(0) = z / S(rows);
  }

  // The experts of a row: as given, or the largest logit, the next of those left, and so on.
  template <class S>
  static std::vector<size_t> choose(View<S> logits, const Router::Options& o, int64_t r) {
    std::vector<size_t> chosen;
    for (int64_t j = 0; j < o.top_k; ++j) {
      int64_t best = -1;
      for (int64_t e = 0; e < logits.size(1); ++e) {
        const bool taken =
            std::find(chosen.begin(), chosen.end(), static_cast<size_t>(e)) != chosen.end();
        if (!taken && (best < 0 || logits(r, e) > logits(r, best))) best = e;
      }
      chosen.push_back(static_cast<size_t>(o.forced ? view<const int32_t>(o.index)(r, j) : best));
    }
    return chosen;
  }

  static std::vector<Case<Router>> cases() {
    const auto make = [](const char* name, int64_t R, int64_t E, int64_t k, bool normalize) {
      return Case<Router>{name, {normal({R, E}, 1, "logits")}, {k, normalize, false, {}}};
    };
    std::vector<Case<Router>> list = {make("two of five", 9, 5, 2, true),
                                      make("not normalised", 9, 5, 3, false),
                                      make("one expert each", 7, 4, 1, true),
                                      make("one expert each, not normalised", 7, 4, 1, false),
                                      make("all experts", 5, 3, 3, true),
                                      make("one row", 1, 6, 2, true),
                                      make("no rows", 0, 4, 2, true),
                                      make("many rows", 100, 6, 2, true)};
    list.push_back(make("index asked for", 6, 5, 2, true));
    list.back().o.index = zeros({6, 2}, Dtype::i32);
    list.push_back(make("forced", 4, 5, 2, true));
    list.back().o.forced = true;
    list.back().o.index = tensor_of<int32_t>({3, 1, 0, 4, 2, 0, 4, 3}).reshape({4, 2});
    list.push_back(make("large logits", 5, 4, 2, true));
    list.back().x.logits = normal({5, 4}, 1, "logits", 30);
    list.push_back(make("transposed", 6, 4, 2, true));
    list.back().x.logits = normal({4, 6}, 1, "logits").transpose(0, 1);
    return list;
  }

  static Bench<Router> bench(int64_t T) {
    return {{normal({T, 64}, 1, "logits")},
            {8, true, false, {}},
            rows_flops(64.0 * static_cast<double>(T))};
  }

  // An index that is given is meant to be used.
  static std::vector<std::string> prepare_written(Tensors& in, Settings& settings) {
    if (in.count("index")) {
      settings.emplace("forced", "true");
      return {"index"};
    }
    const auto logits = in.find("logits");
    const int64_t top_k = settings.count("top_k") ? std::atoll(settings["top_k"].c_str()) : 1;
    if (logits == in.end() || logits->second.dims() != 2) return {};  // refused later
    if (top_k < 1 || top_k > logits->second.size(1)) return {};
    in["index"] = empty({logits->second.size(0), top_k}, Dtype::i32);
    return {"index"};
  }
};

template <>
struct Reference<GroupedMatmul> {
  template <class S>
  static void naive(Inputs<GroupedMatmul, View<S>> x, const GroupedMatmul::Options& o,
                    Outputs<GroupedMatmul, View<S>> y) {
    const View<const int64_t> offsets = view<const int64_t>(o.offsets);
    for (int64_t e = 0; e < x.w.size(0); ++e)
      for (int64_t r = offsets(e); r < offsets(e + 1); ++r)
        for (int64_t out = 0; out < x.w.size(1); ++out) {
          S sum(0);
          for (int64_t i = 0; i < x.w.size(2); ++i) sum += x.x(r, i) * x.w(e, out, i);
          y.y(r, out) = sum;
        }
  }

  static std::vector<Case<GroupedMatmul>> cases() {
    const auto make = [](const char* name, int64_t I, int64_t O, std::vector<int64_t> offsets) {
      const auto E = static_cast<int64_t>(offsets.size()) - 1;
      return Case<GroupedMatmul>{name,
                                 {normal({offsets.back(), I}, 1, "x"), normal({E, O, I}, 1, "w")},
                                 {tensor_of(offsets)}};
    };
    std::vector<Case<GroupedMatmul>> list = {
        make("uneven", 5, 3, {0, 4, 5, 12}),  make("idle experts", 4, 6, {0, 0, 7, 7, 9, 9}),
        make("one expert", 3, 5, {0, 6}),     make("no rows", 3, 2, {0, 0, 0}),
        make("many rows", 2, 3, {0, 3, 150}), make("many columns", 24, 136, {0, 5, 5, 11}),
        make("long sums", 264, 8, {0, 3, 9})};
    list.push_back(make("transposed views", 4, 6, {0, 2, 6}));
    list.back().x.x = normal({4, 6}, 1, "x").transpose(0, 1);
    list.back().x.w = normal({2, 4, 6}, 1, "w").transpose(1, 2);
    return list;
  }

  static Bench<GroupedMatmul> bench(int64_t T) {
    constexpr int64_t kExperts = 8, kWidth = 512;
    std::vector<int64_t> offsets;
    for (int64_t e = 0; e <= kExperts; ++e) offsets.push_back(e * T / kExperts);
    return {{normal({T, kWidth}, 1, "x"), normal({kExperts, kWidth, kWidth}, 1, "w")},
            {tensor_of(offsets)},
            product_flops(static_cast<double>(T), kWidth, kWidth)};
  }
};

template <>
struct Reference<PermuteRows> {
  template <class S>
  static void naive(Inputs<PermuteRows, View<S>> x, const PermuteRows::Options& o,
                    Outputs<PermuteRows, View<S>> y) {
    const View<const int32_t> index = view<const int32_t>(o.index);
    for (int64_t q = 0; q < index.size(0); ++q)
      for (int64_t d = 0; d < x.x.size(1); ++d)
        y.y(q, d) = (x.weight ? x.weight(q) : S(1)) * x.x(index(q), d);
  }

  static std::vector<Case<PermuteRows>> cases() {
    const auto make = [](const char* name, int64_t R, int64_t D, bool weight,
                         std::vector<int32_t> index) {
      const auto Q = static_cast<int64_t>(index.size());
      Case<PermuteRows> c{name, {normal({R, D}, 1, "x"), {}}, {tensor_of(index)}};
      if (weight) c.x.weight = normal({Q}, 1, "weight");
      return c;
    };
    std::vector<Case<PermuteRows>> list = {
        make("each row twice", 4, 5, true, {2, 0, 3, 1, 1, 3, 0, 2}),
        make("no weight", 5, 3, false, {4, 2, 2, 0}), make("no rows taken", 3, 2, true, {}),
        make("wider than a strip", 3, 67, true, {2, 2, 0})};
    list.push_back(make("transposed", 5, 4, true, {4, 1, 1}));
    list.back().x.x = normal({4, 5}, 1, "x").transpose(0, 1);
    return list;
  }

  static Bench<PermuteRows> bench(int64_t T) {
    const Tensor index = empty({2 * T}, Dtype::i32);
    for (int64_t q = 0; q < 2 * T; ++q)
      index.data<int32_t>()[q] = static_cast<int32_t>(q * 2654435761 % T);
    return {{normal({T, 512}, 1, "x"), {}}, {index}, {}};
  }
};

template <>
struct Reference<CombineRows> {
  template <class S>
  static void naive(Inputs<CombineRows, View<S>> x, const CombineRows::Options& o,
                    Outputs<CombineRows, View<S>> y) {
    const View<const int32_t> index = view<const int32_t>(o.index);
    const int64_t k = x.weight.size(1);
    for (int64_t r = 0; r < x.weight.size(0); ++r)
      for (int64_t d = 0; d < x.x.size(1); ++d) {
        S sum(0);
        for (int64_t j = 0; j < k; ++j) sum += x.weight(r, j) * x.x(index(r * k + j), d);
        y.y(r, d) = sum;
      }
  }

  static std::vector<Case<CombineRows>> cases() {
    const auto make = [](const char* name, int64_t Q, int64_t D, int64_t k,
                         std::vector<int32_t> index) {
      const int64_t R = static_cast<int64_t>(index.size()) / k;
      return Case<CombineRows>{
          name, {normal({Q, D}, 1, "x"), normal({R, k}, 1, "weight")}, {tensor_of(index)}};
    };
    std::vector<Case<CombineRows>> list = {
        make("two each", 6, 5, 2, {2, 0, 5, 3, 1, 4}), make("one each", 3, 4, 1, {2, 0, 1}),
        make("rows taken twice", 3, 4, 3, {0, 0, 2, 2, 0, 2}), make("no rows", 3, 2, 2, {}),
        make("wider than a strip", 4, 67, 2, {3, 0, 1, 2})};
    list.push_back(make("transposed views", 5, 4, 2, {4, 1, 0, 3}));
    list.back().x.x = normal({4, 5}, 1, "x").transpose(0, 1);
    list.back().x.weight = normal({2, 2}, 1, "weight").transpose(0, 1);
    return list;
  }

  static Bench<CombineRows> bench(int64_t T) {
    const Tensor index = empty({2 * T}, Dtype::i32);
    for (int64_t q = 0; q < 2 * T; ++q)
      index.data<int32_t>()[q] = static_cast<int32_t>(q * 7 % (2 * T));
    return {{normal({2 * T, 512}, 1, "x"), normal({T, 2}, 1, "weight")},
            {index},
            rows_flops(4.0 * static_cast<double>(T * 512))};
  }
};

}  // namespace weft::kernels
