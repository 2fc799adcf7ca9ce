// Softmax attention as it is written on paper, and as a stream: one key after the other with a
// running maximum and sum. No tiles here, and visibility is one predicate.
#pragma once

#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"

namespace weft::kernels {

template <>
struct Reference<Attention> {
  using Options = Attention::Options;

  // Whether query row t sees key j of its batch row.
  class Mask {
   public:
    Mask(const Options& o, int64_t T, int64_t S)
        : o_(o), shift_(S - T), cu_(view<const int32_t>(o.cu_seqlens)) {}

    bool operator()(int64_t t, int64_t j) const {
      const int64_t i = t + shift_;
      if (cu_ && document(i) != document(j)) return false;
      if (o_.causal && j > i) return false;
      return o_.window == 0 || std::abs(i - j) < o_.window;
    }

   private:
    int64_t document(int64_t i) const {
      int64_t n = 0;
      while (cu_(n + 1) <= i) ++n;
      return n;
    }
    const Options& o_;
    int64_t shift_;
    View<const int32_t> cu_;
  };

  static double scale_of(const Options& o, int64_t K) {
    return o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(K));
  }

  // q.k of one pair, scaled and capped.
  template <class S>
  static S score(const Inputs<Attention, View<S>>& x, const Options& o, int64_t b, int64_t t,
                 int64_t j, int64_t h) {
    using std::tanh;
    const int64_t hk = h / (x.q.size(2) / x.k.size(2));
    S sum = 0;
    for (int64_t c = 0; c < x.q.size(3); ++c) sum += x.q(b, t, h, c) * x.k(b, j, hk, c);
    sum *= S(scale_of(o, x.q.size(3)));
    return o.softcap > 0 ? S(o.softcap) * tanh(sum / S(o.softcap)) : sum;
  }

  template <class F>
  static void for_queries(int64_t B, int64_t H, int64_t T, const F& f) {
    for (int64_t b = 0; b < B; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t t = 0; t < T; ++t) f(b, h, t);
  }

  template <class S>
  static void naive(Inputs<Attention, View<S>> x, const Options& o, Outputs<Attention, View<S>> y) {
    using std::exp, std::log;
    const int64_t keys = x.k.size(1), group = x.q.size(2) / x.k.size(2);
    const Mask sees(o, x.q.size(1), keys);
    for_queries(x.q.size(0), x.q.size(2), x.q.size(1), [&](int64_t b, int64_t h, int64_t t) {
      std::vector<int64_t> seen;
      std::vector<S> scores;
      S most = -INFINITY, sum = 0, none = -INFINITY;
      for (int64_t j = 0; j < keys; ++j) {
        if (!sees(t, j)) continue;
        seen.push_back(j);
        scores.push_back(score(x, o, b, t, j, h));
        if (scores.back() > most) most = scores.back();
      }
      if (x.sink && x.sink(h) > most) most = x.sink(h);
      for (const S& s : scores) sum += exp(s - most);
      if (x.sink) sum += exp(x.sink(h) - most);
      const bool dead = scores.empty() && !x.sink;
      y.lse(b, h, t) = dead ? none : most + log(sum);
      for (int64_t c = 0; c < x.v.size(3); ++c) {
        S mean = 0;
        for (size_t n = 0; n < seen.size(); ++n)
          mean += exp(scores[n] - y.lse(b, h, t)) * x.v(b, seen[n], h / group, c);
        y.o(b, t, h, c) = mean;
      }
    });
  }

  // The streaming softmax: `most` and `sum` so far; whatever is gathered shrinks when `most` rises.
  template <class Real>
  static void recurrent(Inputs<Attention, View<Real>> x, const Options& o,
                        Outputs<Attention, View<Real>> y) {
    const int64_t V = x.v.size(3), group = x.q.size(2) / x.k.size(2);
    const Mask sees(o, x.q.size(1), x.k.size(1));
    for_queries(x.q.size(0), x.q.size(2), x.q.size(1), [&](int64_t b, int64_t h, int64_t t) {
      Real most = x.sink ? x.sink(h) : Real(-INFINITY), sum = x.sink ? 1 : 0;
      for (int64_t c = 0; c < V; ++c) y.o(b, t, h, c) = 0;
      for (int64_t j = 0; j < x.k.size(1); ++j) {
        if (!sees(t, j)) continue;
        const Real s = score(x, o, b, t, j, h), next = std::max(most, s);
        const Real shrink = std::exp(most - next), p = std::exp(s - next);
        sum = sum * shrink + p;
        for (int64_t c = 0; c < V; ++c)
          y.o(b, t, h, c) = y.o(b, t, h, c) * shrink + p * x.v(b, j, h / group, c);
        most = next;
      }
      y.lse(b, h, t) = sum > 0 ? most + std::log(sum) : Real(-INFINITY);
      for (int64_t c = 0; c < V && sum > 0; ++c) y.o(b, t, h, c) /= sum;
    });
  }

  // P = exp(x - lse) is computed again, key by key; delta = dout.o - dlse.
  template <class Real>
  static void recurrent_backward(Inputs<Attention, View<Real>> x, const Options& o,
                                 Outputs<Attention, View<Real>> dy,
                                 Inputs<Attention, View<Real>> dx) {
    const int64_t B = x.q.size(0), H = x.q.size(2), K = x.q.size(3), V = x.v.size(3);
    const int64_t group = H / x.k.size(2);
    const Tensor o_now = empty({B, x.q.size(1), H, V}, dtype_of<Real>());
    const Tensor lse_now = empty({B, H, x.q.size(1)}, dtype_of<Real>());
    const Outputs<Attention, View<Real>> y{view<Real>(o_now), view<Real>(lse_now)};
    recurrent<Real>(x, o, y);
    const Mask sees(o, x.q.size(1), x.k.size(1));
    for_queries(B, H, x.q.size(1), [&](int64_t b, int64_t h, int64_t t) {
      Real delta = -dy.lse(b, h, t);
      for (int64_t c = 0; c < V; ++c) delta += dy.o(b, t, h, c) * y.o(b, t, h, c);
      for (int64_t j = 0; j < x.k.size(1); ++j) {
        if (!sees(t, j)) continue;
        const Real s = score(x, o, b, t, j, h), p = std::exp(s - y.lse(b, h, t));
        Real dp = 0;
        for (int64_t c = 0; c < V; ++c) dp += dy.o(b, t, h, c) * x.v(b, j, h / group, c);
        Real ds = p * (dp - delta) * static_cast<Real>(scale_of(o, K));
        if (o.softcap > 0) ds *= 1 - (s / o.softcap) * (s / o.softcap);
        for (int64_t c = 0; c < V; ++c) dx.v(b, j, h / group, c) += p * dy.o(b, t, h, c);
        for (int64_t c = 0; c < K; ++c) {
          dx.q(b, t, h, c) += ds * x.k(b, j, h / group, c);
          dx.k(b, j, h / group, c) += ds * x.q(b, t, h, c);
        }
      }
      if (x.sink) dx.sink(h) -= std::exp(x.sink(h) - y.lse(b, h, t)) * delta;
    });
  }

  struct Sizes {
    int64_t B = 1, T = 1, S = 0, H = 1, Hk = 1, K = 4, V = 3;  // S = 0: as T
  };
  static Case<Attention> sample(const std::string& name, Sizes s, const Options& o = {}) {
    if (s.S == 0) s.S = s.T;
    return {name,
            {normal({s.B, s.T, s.H, s.K}, 1, "q"),
             normal({s.B, s.S, s.Hk, s.K}, 1, "k"),
             normal({s.B, s.S, s.Hk, s.V}, 1, "v"),
             {}},
            o};
  }

  static std::vector<Case<Attention>> cases() {
    Options both, window, narrow, own, wide, capped, packed, packed_both, scaled;
    both.causal = false;
    window.window = 17;
    narrow.window = 2;
    own.window = 1;
    wide.window = 65, wide.causal = false;
    capped.softcap = 1.5, capped.window = 33;
    packed.cu_seqlens = tensor_of<int32_t>({0, 1, 30, 31, 70});
    packed_both = packed, packed_both.causal = false, packed_both.window = 9;
    scaled.scale = 0.3;
    std::vector<Case<Attention>> list = {
        sample("one token", {.B = 2, .H = 2}),
        sample("two tokens", {.T = 2, .H = 2, .Hk = 2}),
        sample("groups of three", {.B = 2, .T = 9, .H = 6, .Hk = 2, .K = 5}),
        sample("one tile", {.T = 64}, scaled),
        sample("off the tile", {.T = 131}),
        sample("both ways", {.T = 65, .H = 2, .V = 5}, both),
        sample("window", {.T = 70, .H = 2}, window),
        sample("window of two", {.T = 66}, narrow),
        sample("window of the token itself", {.T = 17}, own),
        sample("window both ways", {.T = 100}, wide),
        sample("window beyond the keys", {.T = 12}, wide),
        sample("soft cap", {.T = 67, .H = 2}, capped),
        sample("keys ahead", {.B = 2, .T = 5, .S = 70, .H = 2}),
        sample("keys ahead in a window", {.T = 33, .S = 99}, window),
        sample("one query on many keys", {.T = 1, .S = 77, .H = 2}),
        sample("queries before all keys", {.T = 20, .S = 7, .H = 2}),
        sample("packed", {.T = 70, .H = 2}, packed),
        sample("packed both ways", {.T = 70, .H = 2}, packed_both),
        sample("sinks", {.B = 2, .T = 35, .H = 4, .Hk = 2}, window),
        sample("sinks, packed", {.T = 70, .H = 2}, packed),
        sample("sinks where nothing is seen", {.T = 9, .S = 4, .H = 2}),
        sample("large scores", {.T = 40, .H = 2}),
        sample("views", {.B = 2, .T = 19, .S = 23, .H = 2}),
    };
    for (Case<Attention>& c : list) {
      if (c.name.starts_with("sinks")) c.x.sink = normal({c.x.q.size(2)}, 1, "sink", 2);
      if (c.name == "large scores") c.x.q = normal({1, 40, 2, 4}, 1, "q", 100);
      if (c.name != "views") continue;
      // Parts of larger tensors, as a cache hands them out, and a transposed one.
      c.x.k = normal({2, 40, 3, 4}, 1, "k").slice(1, 0, 23).slice(2, 1, 2);
      c.x.v = normal({2, 23, 3, 1}, 1, "v").transpose(2, 3);
    }
    return list;
  }

  // Dense and causal; with the option `window` set it is the sliding window.
  static Bench<Attention> bench(int64_t T) {
    constexpr int64_t H = 4, K = 64;
    const auto x = sample("", {.T = T, .H = H, .Hk = H, .K = K, .V = K}).x;
    return {x, {}, H * softmax_flops(pairs(T), K, K)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    std::vector<GpuShape> list = {softmax_shape("attention", 4, 4096, 16, 128, pairs(4096)),
                                  softmax_shape("attention", 32, 1024, 12, 64, pairs(1024)),
                                  softmax_shape("attention", 1, 16384, 16, 128, pairs(16384))};
    const auto windowed = [&](int64_t B, int64_t T, int64_t window) {
      list.push_back(softmax_shape("attention", B, T, 16, 128, pairs(T) - pairs(T - window)));
      list.back().name += concat(" window", window);
      list.back().settings["window"] = std::to_string(window);
    };
    windowed(4, 4096, 512);
    windowed(1, 16384, 1024);
    return list;
  }

 private:
  // Of a query and a key not after it.
  static double pairs(int64_t T) { return static_cast<double>(T) * static_cast<double>(T + 1) / 2; }
};

}  // namespace weft::kernels
