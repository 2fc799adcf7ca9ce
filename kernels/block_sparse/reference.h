// Block-sparse attention as it is written on paper, and as a stream: one key after the other with a
// running maximum and sum. Visibility is one predicate on positions; no lists of blocks here.
#pragma once

#include <cmath>

#include "core/random.h"
#include "kernels/block_sparse/block_sparse.h"
#include "kernels/block_sparse/patterns.h"
#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"

namespace weft::kernels {

template <>
struct Reference<BlockSparse> {
  using Options = BlockSparse::Options;

  // Whether query row t of batch row b sees key j.
  class Mask {
   public:
    Mask(const Options& o, int64_t T, int64_t S, int64_t H)
        : o_(o),
          shift_(S - T),
          heads_(H),
          mask_(view<const uint8_t>(batched(o.block_mask))),
          cu_(view<const int32_t>(o.cu_seqlens)) {}

    bool operator()(int64_t b, int64_t h, int64_t t, int64_t j) const {
      int64_t i = t + shift_, n = b;
      if (cu_) {
        while (cu_(n + 1) <= i) ++n;
        if (j < cu_(n) || j >= cu_(n + 1)) return false;
        i -= cu_(n), j -= cu_(n);
      }
      if (o_.causal && j > i) return false;
      const int64_t group = heads_ / mask_.size(1), row = o_.by_token ? t : i / o_.block;
      return mask_(mask_.size(0) == 1 ? 0 : n, h / group, row, j / o_.block) != 0;
    }

   private:
    const Options& o_;
    int64_t shift_, heads_;
    View<const uint8_t> mask_;
    View<const int32_t> cu_;
  };

  static double scale_of(const Options& o, int64_t K) {
    return o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(K));
  }

  // q.k of one pair, scaled and capped.
  template <class S>
  static S score(const Inputs<BlockSparse, View<S>>& x, const Options& o, int64_t b, int64_t t,
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
  static void naive(Inputs<BlockSparse, View<S>> x, const Options& o,
                    Outputs<BlockSparse, View<S>> y) {
    using std::exp, std::log;
    const int64_t keys = x.k.size(1), group = x.q.size(2) / x.k.size(2);
    const Mask sees(o, x.q.size(1), keys, x.q.size(2));
    for_queries(x.q.size(0), x.q.size(2), x.q.size(1), [&](int64_t b, int64_t h, int64_t t) {
      std::vector<int64_t> seen;
      std::vector<S> scores;
      S most = -INFINITY, sum = 0, none = -INFINITY;
      for (int64_t j = 0; j < keys; ++j) {
        if (!sees(b, h, t, j)) continue;
        seen.push_back(j);
        scores.push_back(score(x, o, b, t, j, h));
        if (scores.back() > most) most = scores.back();
      }
      for (const S& s : scores) sum += exp(s - most);
      y.lse(b, h, t) = scores.empty() ? none : most + log(sum);
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
  static void recurrent(Inputs<BlockSparse, View<Real>> x, const Options& o,
                        Outputs<BlockSparse, View<Real>> y) {
    const int64_t V = x.v.size(3), group = x.q.size(2) / x.k.size(2);
    const Mask sees(o, x.q.size(1), x.k.size(1), x.q.size(2));
    for_queries(x.q.size(0), x.q.size(2), x.q.size(1), [&](int64_t b, int64_t h, int64_t t) {
      Real most = Real(-INFINITY), sum = 0;
      for (int64_t c = 0; c < V; ++c) y.o(b, t, h, c) = 0;
      for (int64_t j = 0; j < x.k.size(1); ++j) {
        if (!sees(b, h, t, j)) continue;
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
  static void recurrent_backward(Inputs<BlockSparse, View<Real>> x, const Options& o,
                                 Outputs<BlockSparse, View<Real>> dy,
                                 Inputs<BlockSparse, View<Real>> dx) {
    const int64_t B = x.q.size(0), H = x.q.size(2), K = x.q.size(3), V = x.v.size(3);
    const int64_t group = H / x.k.size(2);
    const Tensor o_now = empty({B, x.q.size(1), H, V}, dtype_of<Real>());
    const Tensor lse_now = empty({B, H, x.q.size(1)}, dtype_of<Real>());
    const Outputs<BlockSparse, View<Real>> y{view<Real>(o_now), view<Real>(lse_now)};
    recurrent<Real>(x, o, y);
    const Mask sees(o, x.q.size(1), x.k.size(1), x.q.size(2));
    for_queries(B, H, x.q.size(1), [&](int64_t b, int64_t h, int64_t t) {
      Real delta = -dy.lse(b, h, t);
      for (int64_t c = 0; c < V; ++c) delta += dy.o(b, t, h, c) * y.o(b, t, h, c);
      for (int64_t j = 0; j < x.k.size(1); ++j) {
        if (!sees(b, h, t, j)) continue;
        const Real s = score(x, o, b, t, j, h), p = std::exp(s - y.lse(b, h, t));
        Real dp = 0;
        for (int64_t c = 0; c < V; ++c) dp += dy.o(b, t, h, c) * x.v(b, j, h / group, c);
        Real ds = p * (dp - delta) * static_cast<Real>(scale_of(o, K));
        if (o.softcap > 0) ds *= 1 - static_cast<Real>((s / o.softcap) * (s / o.softcap));
        for (int64_t c = 0; c < V; ++c) dx.v(b, j, h / group, c) += p * dy.o(b, t, h, c);
        for (int64_t c = 0; c < K; ++c) {
          dx.q(b, t, h, c) += ds * x.k(b, j, h / group, c);
          dx.k(b, j, h / group, c) += ds * x.q(b, t, h, c);
        }
      }
    });
  }

  // Each block set with probability `density`.
  static Tensor random_mask(const Shape& shape, double density) {
    const Tensor mask = empty(shape, Dtype::u8);
    const Random random(1, stream_of("mask"));
    for (int64_t i = 0; i < mask.numel(); ++i)
      mask.data<uint8_t>()[i] = random.uniform(static_cast<uint64_t>(i)) < density;
    return mask;
  }

  struct Sizes {
    int64_t B = 1, T = 1, S = 0, H = 1, Hk = 1, K = 4, V = 3;  // S = 0: as T
    int64_t block = 8, heads = 1;                              // of the mask
    double density = 0.5;
  };
  static Case<BlockSparse> sample(const std::string& name, Sizes s) {
    if (s.S == 0) s.S = s.T;
    const int64_t n = block_count(s.S, s.block);
    Options o;
    o.block = s.block;
    o.block_mask = random_mask({s.heads, n, n}, s.density);
    return {name,
            {normal({s.B, s.T, s.H, s.K}, 1, "q"), normal({s.B, s.S, s.Hk, s.K}, 1, "k"),
             normal({s.B, s.S, s.Hk, s.V}, 1, "v")},
            o};
  }

  // Each query's row of the mask becomes that of the first of its block of `alike`.
  static void share(Case<BlockSparse>& c, int64_t alike) {
    c.o.alike = alike;
    const Tensor& mask = c.o.block_mask;
    const int64_t T = mask.size(2), shift = c.x.k.size(1) - T;
    const std::vector<int64_t> cu =
        c.o.cu_seqlens ? to_ints(c.o.cu_seqlens) : std::vector<int64_t>{0, T + shift};
    for (size_t n = 0; n + 1 < cu.size(); ++n)
      for (int64_t i = cu[n]; i < cu[n + 1]; ++i)
        if (const int64_t first = i - (i - cu[n]) % alike; first >= shift && first < i)
          mask.select(2, i - shift).copy_from(mask.select(2, first - shift));
        else if (i > shift && first < shift)
          mask.select(2, i - shift).copy_from(mask.select(2, 0));
  }

  static std::vector<Case<BlockSparse>> cases() {
    std::vector<Case<BlockSparse>> list = {
        sample("one token", {.B = 2, .H = 2, .density = 1}),
        sample("blocks of eight", {.B = 2, .T = 33, .H = 2}),
        sample("a mask a head", {.T = 70, .H = 4, .Hk = 2, .block = 16, .heads = 4}),
        sample("all blocks", {.T = 67, .H = 2, .block = 16, .density = 1}),
        sample("no block", {.T = 20, .H = 2, .density = 0}),
        sample("dead rows", {.T = 50, .H = 2, .V = 5, .block = 4, .heads = 2, .density = 0.15}),
        sample("blocks of one", {.T = 24, .block = 1, .density = 0.3}),
        sample("blocks of a tile", {.T = 150, .block = 64, .density = 0.7}),
        sample("blocks beyond a tile", {.T = 150, .block = 100, .density = 0.7}),
        sample("blocks off the tile", {.T = 130, .block = 24}),
        sample("one large block", {.T = 9, .block = 64, .density = 1}),
        sample("both ways", {.T = 33, .H = 2, .heads = 2}),
        sample("soft cap", {.T = 33, .H = 2}),
        sample("keys ahead", {.B = 2, .T = 9, .S = 75, .H = 2}),
        sample("one query on many keys", {.T = 1, .S = 77, .H = 2, .block = 16, .density = 0.7}),
        sample("packed", {.T = 70, .H = 2}),
        sample("packed both ways", {.T = 70, .H = 2, .Hk = 2, .block = 16, .heads = 2}),
        sample("large scores", {.T = 40, .H = 2}),
        sample("bigbird", {.T = 90, .H = 2}),
        sample("a mask a row", {.B = 3, .T = 40, .H = 4, .Hk = 2, .heads = 2}),
        sample("packed, a mask a document", {.T = 70, .H = 2, .heads = 2}),
        sample("by token", {.B = 2, .T = 70, .H = 2, .heads = 2}),
        sample("by token, keys ahead", {.B = 2, .T = 9, .S = 75, .H = 2, .block = 16}),
        sample("by token, one query", {.B = 2, .T = 1, .S = 77, .H = 2, .block = 16}),
        sample("packed, by token", {.T = 70, .H = 4, .Hk = 2, .heads = 2}),
        sample("by token, more queries than keys", {.T = 75, .S = 9, .H = 2, .block = 1}),
        sample("packed, by token, alike", {.T = 70, .H = 2, .heads = 2}),
        sample("by token, alike, keys ahead", {.B = 2, .T = 30, .S = 75, .H = 2}),
        sample("by token, blocks of 64", {.T = 150, .block = 64, .density = 0.7}),
    };
    for (Case<BlockSparse>& c : list) {
      if (c.name.ends_with("both ways")) c.o.causal = false;
      if (c.name.starts_with("packed")) c.o.cu_seqlens = tensor_of<int32_t>({0, 1, 30, 31, 70});
      if (c.name == "soft cap") c.o.softcap = 1.5, c.o.scale = 0.7;
      if (c.name == "large scores") c.x.q = normal({1, 40, 2, 4}, 1, "q", 100);
      const int64_t B = c.x.q.size(0), n = c.o.block_mask.size(2), heads = c.o.block_mask.size(0);
      if (c.name.ends_with("a mask a row")) c.o.block_mask = random_mask({B, heads, n, n}, 0.5);
      if (c.name.ends_with("a document")) c.o.block_mask = random_mask({4, heads, n, n}, 0.5);
      c.o.by_token = c.name.find("by token") != std::string::npos;
      if (c.o.by_token) c.o.block_mask = random_mask({B, heads, c.x.q.size(1), n}, 0.4);
      if (c.name.ends_with("more queries than keys")) c.o.causal = false;
      if (c.name.find("alike") != std::string::npos) share(c, 4);
      if (c.name == "bigbird") c.o.block_mask = bigbird_blocks(2, 12, 2, 1, 0);
    }
    return list;
  }

  // BigBird's causal form: the first block, the last three and three random ones of 64 tokens.
  static Bench<BlockSparse> bench(int64_t T) {
    constexpr int64_t H = 4, K = 64;
    const Shape shape{1, T, H, K};
    Options o;
    o.block_mask = bigbird_blocks(H, block_count(T, o.block), 3, 1, 0);
    double pairs = 0;
    for (int64_t h = 0; h < H; ++h) pairs += causal_pairs(o.block_mask, h, o.block, T);
    return {{normal(shape, 1, "q"), normal(shape, 1, "k"), normal(shape, 1, "v")},
            o,
            softmax_flops(pairs, K, K)};
  }

  // Blocks of 64 of which a query sees its own and every eighth before it.
  static std::vector<GpuShape> gpu_shapes() {
    constexpr int64_t T = 16384, kStep = 8;
    const Tensor mask = strided_blocks(block_count(T, 64), kStep);
    GpuShape shape = softmax_shape("block_sparse", 1, T, 16, 128, causal_pairs(mask, 0, 64, T));
    shape.name += concat(" strided", kStep);
    shape.settings["block"] = "64";
    shape.index["block_mask"] = mask;
    return {shape};
  }
};

}  // namespace weft::kernels
