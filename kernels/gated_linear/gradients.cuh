// The kernels of gated_linear backward: a pass over all tokens (prepare.cuh), one forwards over the
// sub-chunks of each head that makes the states at the starts of chunks again, one backwards for the
// gradients of the states at their ends (`chunk_states`, both in 64 x 64 parts of the state that know
// nothing of each other); then all chunks make the gradients of their tokens at once
// (`chunk_gradients`). README.md, Backward, has the equations; what it calls S and dS of a sub-chunk is
// made here from those of the chunk, product by product, the decay of a sub-chunk between two of them.
// Chunk states are kept in the dtype of q, as the products that read them want them.
#pragma once

#include "kernels/gated_linear/prepare.cuh"

namespace weft::kernels::gated_linear {

using tile::Acc;
using tile::Arena;
using tile::Smem;

template <class T>
struct Gradients {
  TokenRows<const T> dout;
  const float* dfinal_state;
  T *states, *dstates;  // [B, chunks - 1, H, K, V]: at the starts of chunks 1, 2, ..; at the ends
  TokenRows<T> dq, dk, dv;
  TokenRows<float> dg;
  TokenRows<float> dq_sum, dk_sum;  // [B, T, Hk, K], over the heads that share a key
  float* dinitial_state;
  int chunks;

  // The place of a state after chunk c, or of its gradient, in states, dstates.
  __device__ int64_t place(int b, int c, int h, int H) const {
    return (int64_t{b} * (chunks - 1) + c) * H + h;
  }
};

// --- States --------------------------------------------------------------------------------------

inline constexpr int kPart = 64;           // channels and columns of V of a block
inline constexpr int kStateThreads = 128;  // 16 channels for each warp

template <class T>
struct StateTiles {
  Smem<T, kTokens, kPart> x, y;  // two of each
  Smem<float, 8, kPart> total;   // two

  __host__ __device__ explicit StateTiles(Arena& arena)
      : x(arena.carve<Smem<T, kTokens, kPart>>()) {
    arena.carve<Smem<T, kTokens, kPart>>();
    y = arena.carve<Smem<T, kTokens, kPart>>();
    arena.carve<Smem<T, kTokens, kPart>>();
    total = arena.carve<Smem<float, 8, kPart>>();
    arena.carve<Smem<float, 8, kPart>>();
  }
};

// By sub-chunks. Forwards:  S  <- total . S  + (down . K)' V
// Backwards:                dS <- total . dS + (scale up . Q)' dout
template <class T, bool kBackwards>
__global__ void __launch_bounds__(kStateThreads)
    chunk_states(const CudaProblem<T> p, const Prepared<T> x, const Gradients<T> f,
                 const int parts_k, const int parts_v) {
  Arena arena(tile::dynamic_memory());
  const StateTiles<T> w(arena);
  const int warp = tile::warp_index();
  int index = blockIdx.x;
  const int v0 = index % parts_v * kPart, k0 = index / parts_v % parts_k * kPart;
  index /= parts_v * parts_k;
  const int h = index % p.H, n = index / p.H;
  const int b = p.documents.row(n), begin = p.documents.begin(n), end = p.documents.end(n);

  const auto after = [&](const Segment& piece) {
    return kBackwards ? p.documents.up_to(begin, end, piece.begin)
                      : p.documents.from(begin, end, piece.end);
  };
  const auto is_final = [&](const Segment& piece) { return kBackwards ? piece.first : piece.last; };
  const auto fetch = [&](const Segment& piece, int stage) {
    const int t = piece.begin, size = piece.size();
    const T* const left = kBackwards ? x.q_up.at(b, t, h) : x.k_down.at(b, t, h);
    load_tile_async(stage_of(w.x, stage), left + k0, x.q_up.by_token, size, p.K - k0);
    const TokenRows<const T>& right = kBackwards ? f.dout : p.v;
    load_tile_async(stage_of(w.y, stage), right.at(b, t, h) + v0, right.by_token, size, p.V - v0);
    const int subs = (size + kSub - 1) / kSub;
    load_tile_async(stage_of(w.total, stage), x.total.at(b, x.cell(t), h) + k0, x.total.by_token,
                    piece.last ? subs - 1 : subs, p.K - k0);
    tile::async_commit();
  };

  Acc<kPart> s;
  const int rows = p.K - k0 - 16 * warp, columns = p.V - v0;
  const int64_t at_head = ((int64_t{n} * p.H + h) * p.K + k0 + 16 * warp) * p.V + v0;
  const float* const from = kBackwards ? f.dfinal_state : p.initial_state;
  fill(s, 0.f);
  if (from) load_acc(s, from + at_head, p.V, rows, columns);
  const auto keep = [&](int c) {
    const int64_t at = (f.place(b, c, h, p.H) * p.K + k0 + 16 * warp) * p.V + v0;
    store_acc(s, (kBackwards ? f.dstates : f.states) + at, p.V, rows, columns);
  };
  const bool to_the_end = kBackwards && f.dinitial_state;

  Segment piece =
      kBackwards ? p.documents.up_to(begin, end, end) : p.documents.from(begin, end, begin);
  if (is_final(piece) && !to_the_end) return;
  fetch(piece, 0);
  for (int turn = 0;; ++turn) {
    const int stage = turn & 1;
    if (kBackwards && !piece.last) keep(piece.chunk);
    if (is_final(piece) && !to_the_end) break;
    tile::async_wait<0>();
    __syncthreads();
    if (!is_final(piece)) fetch(after(piece), 1 - stage);
    const auto total = stage_of(w.total, stage);
    const int subs = (piece.size() + kSub - 1) / kSub;
    if (kBackwards && piece.last && from) {
      const int d = threadIdx.x, start = piece.begin + kSub * (subs - 1);
      if (d < kPart && k0 + d < p.K)
        total.at(subs - 1, d) = decay_over(p, b, h, start, piece.end, k0 + d);
      __syncthreads();
    }
    for (int i = 0; i < subs; ++i) {
      const int sub = kBackwards ? subs - 1 - i : i;
      tile::Rows factor;
#pragma unroll
      for (int r = 0; r < 2; ++r) factor.x[r] = total.at(sub, 16 * warp + tile::acc_row(2 * r));
      scale_rows(s, factor);
      mma_ab(s, tile::load_frag_t<T, kSub>(stage_of(w.x, stage), kSub * sub, 16 * warp),
             stage_of(w.y, stage), kSub * sub, 0);
    }
    if (is_final(piece)) break;
    if (!kBackwards) keep(piece.chunk);
    piece = after(piece);
    if (!kBackwards && piece.last) break;
  }
  if (kBackwards && f.dinitial_state) store_acc(s, f.dinitial_state + at_head, p.V, rows, columns);
}

// --- Tokens --------------------------------------------------------------------------------------

// Warp (r, c) has sub-chunk r, part c of the columns.
inline constexpr int kColumnParts = 4, kTokenThreads = 32 * kSubs * kColumnParts;

// The larger of two places for the same memory.
template <class T, int K>
struct TokenTiles {
  // Columns of V at a time.
  static constexpr int kSlice = sizeof(T) == 2 ? 64 : K <= 128 ? 32 : 16;
  using Wide = Smem<float, kTokens, K>;
  Smem<T, kTokens, K> q, k;  // scale * q . up, k . down
  Smem<T, K, kSlice> s, ds;
  Smem<T, kTokens, kSlice> v, dout;
  // P, then dP: block (r, c) below the diagonal, what rounding takes from it in place (c, r).
  Smem<T, kTokens, kTokens> p;
  Wide through_k, through_q;  // in the place of s and ds, of q and k
  // In the place of v and dout: [kSubs, K]; dP of each sub-chunk with itself, which is no operand.
  float* sums;
  Smem<float, kTokens, kSub> own;
  float* total;        // [kSubs, K]: decays over the sub-chunks
  float *skip, *rest;  // [K], [2, K]: over sub-chunks 1 and 2; from 1, 2 to the end
  float* whole;        // [K]: <S, dS> after the chunk

  __host__ __device__ explicit TokenTiles(Arena& arena)
      : q(arena.carve<Smem<T, kTokens, K>>()), k(arena.carve<Smem<T, kTokens, K>>()) {
    s = arena.carve<Smem<T, K, kSlice>>();
    ds = arena.carve<Smem<T, K, kSlice>>();
    constexpr int kMissing = Wide::bytes - 2 * Smem<T, K, kSlice>::bytes;
    if constexpr (kMissing > 0) arena.carve<float>(kMissing / 4);
    v = arena.carve<Smem<T, kTokens, kSlice>>();
    dout = arena.carve<Smem<T, kTokens, kSlice>>();
    static_assert(2 * Smem<T, kTokens, kSlice>::bytes >= kSubs * K * 4 + decltype(own)::bytes);
    p = arena.carve<Smem<T, kTokens, kTokens>>();
    through_k.data = reinterpret_cast<float*>(s.data);
    through_q.data = reinterpret_cast<float*>(q.data);
    sums = reinterpret_cast<float*>(v.data);
    own.data = sums + kSubs * K;
    total = arena.carve<float>(kSubs * K);
    skip = arena.carve<float>(K);
    rest = arena.carve<float>(2 * K);
    whole = arena.carve<float>(K);
  }
};

// What a thread has of one channel of a sub-chunk: gates as factors, q times scale, k.
struct Channel {
  float a[kSub], q[kSub], k[kSub];

  template <class T>
  __device__ Channel(const CudaProblem<T>& p, int b, int from, int n, int h, int d) {
    // What does not exist is read in the place of the last: all loads go out at once.
    const int last = max(min(n, kSub), 1) - 1, channel = min(d, p.K - 1), hk = h / p.group;
#pragma unroll
    for (int i = 0; i < kSub; ++i) {
      const int t = min(from + min(i, last), p.documents.T - 1);
      a[i] = p.g.at(b, t, h)[channel];
      q[i] = tile::to_float(p.q.at(b, t, hk)[channel]);
      k[i] = tile::to_float(p.k.at(b, t, hk)[channel]);
    }
#pragma unroll
    for (int i = 0; i < kSub; ++i) {
      const bool inside = i < n && d < p.K;
      a[i] = inside ? tile::ex2(tile::kLog2e * a[i]) : 1.f;
      q[i] = inside ? p.scale * q[i] : 0.f;
      k[i] = inside ? k[i] : 0.f;
    }
  }
};

// N numbers of a row of a tile.
template <int N, class T, int R, int C>
__device__ __forceinline__ void load_row(float (&x)[N], Smem<T, R, C> tile, int r, int c) {
  constexpr int kUnit = Smem<T, R, C>::unit_cols;
  static_assert(N % kUnit == 0);
#pragma unroll
  for (int i = 0; i < N; i += kUnit) {
    const uint4 unit = *reinterpret_cast<const uint4*>(tile.ptr(r, c + i));
    const uint32_t word[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (sizeof(T) == 4) {
        x[i + j] = __uint_as_float(word[j]);
      } else {
        x[i + 2 * j] = tile::low_of(word[j]);
        x[i + 2 * j + 1] = tile::high_of(word[j]);
      }
    }
  }
}

// x as the operand of a product has it.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return tile::to_float(tile::from_float<T>(x));
}

// N numbers of a row of a state: from the tile, or, where the state is given in f32, from there; columns
// from `columns` on are zero.
template <int N, class T, int R, int C>
__device__ __forceinline__ void load_state(float (&x)[N], const float* exact, int columns,
                                           Smem<T, R, C> tile, int r, int c) {
  if (!exact) return load_row(x, tile, r, c);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = c + i < columns ? exact[c + i] : 0.f;
}

template <class T, int K>
__global__ void __launch_bounds__(kTokenThreads)
    chunk_gradients(const CudaProblem<T> p, const Prepared<T> x, const Gradients<T> f) {
  using Tiles = TokenTiles<T, K>;
  constexpr int kSlice = Tiles::kSlice, kWidth = K / kColumnParts;
  constexpr int kSliceWidth = kSlice / kColumnParts < 8 ? 8 : kSlice / kColumnParts;
  constexpr int kItems = (K * kSubs + kTokenThreads - 1) / kTokenThreads;
  constexpr bool kSplits = !std::is_same_v<T, float>;  // dP as the sum of two operands
  Arena arena(tile::dynamic_memory());
  const Tiles w(arena);
  const int warp = tile::warp_index(), r = warp % 4, c = warp / 4;
  const int heads = p.H / p.group, hk = blockIdx.x % heads;
  const int chunk = blockIdx.x / heads % f.chunks, b = blockIdx.x / heads / f.chunks;
  const int stop = min(p.documents.T, (chunk + 1) * kTokens);

  int n = p.documents.of(b, chunk * kTokens);
  for (int t = chunk * kTokens; t < stop; ++n) {
    const Segment piece = p.documents.from(p.documents.begin(n), p.documents.end(n), t);
    const int size = piece.size();
    t = piece.end;
    for (int h = hk * p.group; h < (hk + 1) * p.group; ++h) {
      __syncthreads();
      load_tile_async(w.q, x.q_up.at(b, piece.begin, h), x.q_up.by_token, size, p.K);
      load_tile_async(w.k, x.k_down.at(b, piece.begin, h), x.k_down.by_token, size, p.K);
      tile::async_commit();
      for (int i = threadIdx.x; i < kSubs * K; i += kTokenThreads) {
        const int sub = i / K, d = i % K, from = piece.begin + kSub * sub;
        float total = 1.f;
        if (d < p.K && from < piece.end)
          total = has_total(piece, sub) ? x.total.at(b, x.cell(from), h)[d]
                                        : decay_over(p, b, h, from, piece.end, d);
        w.total[i] = total;
      }
      tile::async_wait<0>();
      __syncthreads();
      for (int d = threadIdx.x; d < K; d += kTokenThreads) {
        const float one = w.total[K + d], two = w.total[2 * K + d], three = w.total[3 * K + d];
        w.skip[d] = one * two;
        w.rest[d] = one * two * three;
        w.rest[K + d] = two * three;
      }
      __syncthreads();

      // P: the blocks of sub-chunk r with earlier ones, and that with itself.
      if (c <= r) {
        const int j = c;
        Acc<kSub> scores;
        fill(scores, 0.f);
        if (j == r) {
          load_acc(scores, x.p.at(b, piece.begin + kSub * r, h), x.p.by_token, size - kSub * r,
                   kSub);
        } else {
          const float* const between = r - j == 3 ? w.skip : w.total + (j + 1) * K;
#pragma unroll 4
          for (int d = 0; d < K; d += kSub) {
            auto left = tile::load_frag<T, kSub>(w.q, kSub * r, d);
            if (r - j > 1) scale_inner(left, between + d);
            mma_abt(scores, left, w.k, kSub * j, d);
          }
        }
        acc_to_smem(scores, w.p, kSub * r, kSub * j);
      }

      // What goes through the states, a slice of V at a time.
      Acc<kSub> dp;
      Acc<kWidth> dq, dk;
      fill(dp, 0.f);
      fill(dq, 0.f);
      fill(dk, 0.f);
      float through[kItems] = {};  // <S, dS>: four lanes share a channel
      const float* const given_s = piece.first ? p.initial_state : nullptr;
      const float* const given_ds = piece.last ? f.dfinal_state : nullptr;
      for (int v0 = 0; v0 < p.V; v0 += kSlice) {
        __syncthreads();
        const int columns = p.V - v0;
        load_tile_async(w.v, p.v.at(b, piece.begin, h) + v0, p.v.by_token, size, columns);
        load_tile_async(w.dout, f.dout.at(b, piece.begin, h) + v0, f.dout.by_token, size, columns);
        const int64_t head = (int64_t{n} * p.H + h) * p.K * p.V + v0;
        if (!piece.first)
          load_tile_async(w.s, f.states + f.place(b, chunk - 1, h, p.H) * p.K * p.V + v0, p.V, p.K,
                          columns);
        else if (given_s)
          load_tile(w.s, given_s + head, p.V, p.K, columns);
        else
          zero_tile(w.s);
        if (!piece.last)
          load_tile_async(w.ds, f.dstates + f.place(b, chunk, h, p.H) * p.K * p.V + v0, p.V, p.K,
                          columns);
        else if (given_ds)
          load_tile(w.ds, given_ds + head, p.V, p.K, columns);
        else
          zero_tile(w.ds);
        tile::async_commit();
        tile::async_wait<0>();
        __syncthreads();

        if (c <= r) mma_abt<kSlice>(dp, w.dout, kSub * r, 0, w.v, kSub * c, 0);
        mma_abt<kSlice>(dq, w.dout, kSub * r, 0, w.s, kWidth * c, 0);
        mma_abt<kSlice>(dk, w.v, kSub * r, 0, w.ds, kWidth * c, 0);
        if (f.dg)
#pragma unroll
          for (int at = 0; at < kItems; ++at) {
            const int item = threadIdx.x + at * kTokenThreads, d = item / 4;
            if (item >= K * 4 || d >= p.K) continue;
            constexpr int kShare = kSlice / 4;
            const int e = item % 4 * kShare;
            const int64_t row = head + int64_t{d} * p.V;
            float one[kShare], other[kShare];
            load_state(one, given_s ? given_s + row : nullptr, columns, w.s, d, e);
            load_state(other, given_ds ? given_ds + row : nullptr, columns, w.ds, d, e);
#pragma unroll
            for (int i = 0; i < kShare; ++i) through[at] = fmaf(one[i], other[i], through[at]);
          }
        if (!f.dv || c * kSliceWidth >= kSlice) continue;
        // dV = (down . K . decay to the end) dS + P' dout
        Acc<kSliceWidth> dv;
        fill(dv, 0.f);
        const float* const to_end = r == 2 ? w.total + 3 * K : w.rest + r % 2 * K;
#pragma unroll 4
        for (int d = 0; d < K; d += kSub) {
          auto left = tile::load_frag<T, kSub>(w.k, kSub * r, d);
          if (r < 3) scale_inner(left, to_end + d);
          mma_ab(dv, left, w.ds, d, kSliceWidth * c);
        }
        for (int i = r; i < kSubs; ++i)
          mma_atb<kSub>(dv, w.p, kSub * i, kSub * r, w.dout, kSub * i, kSliceWidth * c);
        store_acc(dv, f.dv.at(b, piece.begin + kSub * r, h) + v0 + kSliceWidth * c, f.dv.by_token,
                  size - kSub * r, columns - kSliceWidth * c);
      }

      __syncthreads();  // P, S, dS, v and dout are read
      if (f.dg) {
        acc_to_smem(dk, w.through_k, kSub * r, kWidth * c);
#pragma unroll
        for (int at = 0; at < kItems; ++at) {
          const int item = threadIdx.x + at * kTokenThreads;
          if (item >= K * 4) continue;
          const float sum = tile::quad_sum(through[at]);
          if (item % 4 == 0) w.whole[item / 4] = sum;
        }
      }
      if (c == r) acc_to_smem(dp, w.own, kSub * r, 0);
      if (c < r) {
        acc_to_smem(dp, w.p, kSub * r, kSub * c);
        if constexpr (kSplits) {
          tile::each(dp, [](int, int, float& value) { value -= rounded<T>(value); });
          acc_to_smem(dp, w.p, kSub * c, kSub * r);
        }
      }
      __syncthreads();
      // From the states of the chunk to those of the sub-chunks:
      // dout S' after each earlier one, V dS' before each later one.
      for (int j = 0; j < r; ++j) {
        scale_cols(dq, tile::load_cols<kWidth>(w.total + j * K + kWidth * c));
        mma_ab<kSub>(dq, w.p, kSub * r, kSub * j, w.k, kSub * j, kWidth * c);
        if constexpr (kSplits) mma_ab<kSub>(dq, w.p, kSub * j, kSub * r, w.k, kSub * j, kWidth * c);
      }
      for (int i = kSubs - 1; i > r; --i) {
        scale_cols(dk, tile::load_cols<kWidth>(w.total + i * K + kWidth * c));
        mma_atb<kSub>(dk, w.p, kSub * i, kSub * r, w.q, kSub * i, kWidth * c);
        if constexpr (kSplits)
          mma_atb<kSub>(dk, w.p, kSub * r, kSub * i, w.q, kSub * i, kWidth * c);
      }
      // <S, dS> after the chunk: what goes through it, and what its own keys give.
      if (f.dg) {
        for (int item = threadIdx.x; item < K * kSubs; item += kTokenThreads) {
          const int sub = item / K, d = item % K, from = piece.begin + kSub * sub;
          const int last = max(min(kSub, piece.end - from), 1) - 1, channel = min(d, p.K - 1);
          float gate[kSub], key[kSub];
#pragma unroll
          for (int j = 0; j < kSub; ++j) {
            const int at = min(from + min(j, last), p.documents.T - 1);
            gate[j] = p.g.at(b, at, h)[channel];
            key[j] = tile::to_float(p.k.at(b, at, hk)[channel]);
          }
          const float rest = sub == 3 ? 1.f : sub == 2 ? w.total[3 * K + d] : w.rest[sub * K + d];
          float down = 1.f, sum = 0.f;
#pragma unroll
          for (int j = kSub - 1; j >= 0; --j) {
            if (j >= piece.end - from || d >= p.K) continue;
            sum = fmaf(rounded<T>(key[j] * down) * rest, w.through_k.at(kSub * sub + j, d), sum);
            down *= tile::ex2(tile::kLog2e * gate[j]);
          }
          w.sums[item] = sum;
        }
        __syncthreads();
        for (int d = threadIdx.x; d < K; d += kTokenThreads)
          w.whole[d] = w.whole[d] * w.total[d] * w.rest[d] + w.sums[d] + w.sums[K + d] +
                       w.sums[2 * K + d] + w.sums[3 * K + d];
      }
      __syncthreads();  // q and k are read
      acc_to_smem(dq, w.through_q, kSub * r, kWidth * c);
      acc_to_smem(dk, w.through_k, kSub * r, kWidth * c);
      __syncthreads();

      // What stays inside the sub-chunk, a channel at a time; then all is there. What flows over a
      // sub-chunk from earlier tokens to later ones is what flows over the chunk's end, plus what
      // ends in later sub-chunks, minus what starts there or in this one: all with the operands that
      // dq and dk were made from, so that what starts and ends there cancels.
      float dg[kItems][kSub], rest[kItems];
#pragma unroll
      for (int at = 0; at < kItems; ++at) {
        const int item = threadIdx.x + at * kTokenThreads, sub = item / K, d = item % K;
        const int from = piece.begin + kSub * sub, count = d < p.K ? piece.end - from : 0;
        if (item >= K * kSubs) continue;
        const Channel own(p, b, from, count, h, d);
        // between[j]: decay from token j to token i
        float between[kSub], dk_within[kSub];
        float up = 1.f, ends = 0.f;
        const bool first = h == hk * p.group, last = h + 1 == (hk + 1) * p.group;
        const auto put = [&](const TokenRows<T>& to, const TokenRows<float>& sums, int i,
                             float value) {
          if (i >= count || !to) return;
          if (p.group > 1) {
            float& sum = sums.at(b, from + i, hk)[d];
            if (!first) value += sum;
            if (!last) sum = value;
          }
          if (last) to.at(b, from + i, hk)[d] = tile::from_float<T>(value);
        };
#pragma unroll
        for (int i = 0; i < kSub; ++i) {
          float dp_row[kSub];
          load_row(dp_row, w.own, kSub * sub + i, 0);
          float within = 0.f;
#pragma unroll
          for (int j = 0; j < i; ++j) {
            between[j] *= own.a[i];
            const float weight = between[j] * dp_row[j];
            within = fmaf(weight, own.k[j], within);
            dk_within[j] = fmaf(weight, own.q[i], dk_within[j]);
          }
          between[i] = 1.f;
          dk_within[i] = 0.f;
          up *= own.a[i];
          const float through_q = w.through_q.at(kSub * sub + i, d);
          const float value = fmaf(up, through_q, within);
          dg[at][i] = own.q[i] * value;
          ends = fmaf(rounded<T>(own.q[i] * up), through_q, ends);
          put(f.dq, f.dq_sum, i, p.scale * fmaf(dp_row[i], own.k[i], value));
        }
        float down = 1.f, sum = 0.f, starts = 0.f, gives = 0.f;
#pragma unroll
        for (int j = kSub - 1; j >= 0; --j) {
          const float through_k = w.through_k.at(kSub * sub + j, d);
          const float value = fmaf(down, through_k, dk_within[j]);
          put(f.dk, f.dk_sum, j, fmaf(w.own.at(kSub * sub + j, j), own.q[j], value));
          sum += dg[at][j] - own.k[j] * value;
          dg[at][j] = sum;
          starts = fmaf(rounded<T>(own.k[j] * down), through_k, starts);
          gives = fmaf(own.k[j] * down, through_k, gives);
          down *= own.a[j];
        }
        w.sums[item] = ends - starts;
        rest[at] = gives - starts;
      }
      if (!f.dg) continue;
      __syncthreads();
#pragma unroll
      for (int at = 0; at < kItems; ++at) {
        const int item = threadIdx.x + at * kTokenThreads, sub = item / K, d = item % K;
        const int from = piece.begin + kSub * sub;
        if (item >= K * kSubs || d >= p.K) continue;
        float sum = rest[at] + w.whole[d];
        for (int i = kSubs - 1; i > sub; --i) sum += w.sums[i * K + d];
#pragma unroll
        for (int i = 0; i < kSub; ++i)
          if (from + i < piece.end) f.dg.at(b, from + i, h)[d] = dg[at][i] + sum;
      }
    }
  }
}

template <class T>
void launch_backward(const CudaProblem<T>& p, const Prepared<T>& x, const Gradients<T>& f) {
  launch_prepare(p, x);
  Arena size;
  StateTiles<T>{size};
  const int parts_k = static_cast<int>(ceil_div(p.K, kPart));
  const int parts_v = static_cast<int>(ceil_div(p.V, kPart));
  const int64_t blocks = int64_t{p.documents.N} * p.H * parts_k * parts_v;
  if (f.chunks > 1)
    launch(chunk_states<T, false>, blocks, kStateThreads, size.used(), p, x, f, parts_k, parts_v);
  if (f.chunks > 1 || f.dinitial_state)
    launch(chunk_states<T, true>, blocks, kStateThreads, size.used(), p, x, f, parts_k, parts_v);
  for_padded_width<T>(p.K, [&]<int K>() {
    Arena tiles;
    TokenTiles<T, K>{tiles};
    launch(chunk_gradients<T, K>, int64_t{p.B} * f.chunks * (p.H / p.group), kTokenThreads,
           tiles.used(), p, x, f);
  });
}

extern template void launch_backward(const CudaProblem<float>&, const Prepared<float>&,
                                     const Gradients<float>&);  // f32.cu

}  // namespace weft::kernels::gated_linear
