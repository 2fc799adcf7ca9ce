// The kernels of gated_linear backward: a pass over all tokens (prepare.cuh), one forwards over the
// sub-chunks of each head that makes the states at the starts of chunks again, one backwards for
// the gradients of the states at their ends (`chunk_states`, both in 64 x 64 parts of the state
// that know nothing of each other); then all chunks make the gradients of their tokens at once
// (`chunk_gradients`). README.md, Backward, has the equations; what it calls S and dS of a
// sub-chunk is made here from those of the chunk, product by product, the decay of a sub-chunk
// between two of them. Chunk states are kept in the dtype of q, as the products that read them want
// them.
#pragma once

#include <algorithm>

#include "kernels/gated_linear/states.cuh"

namespace weft::kernels::gated_linear {

// Warp (r, c) has sub-chunk r, part c of the columns.
template <class Real, int K>
struct TokenTiles {
  static constexpr int kColumnParts = sizeof(Real) == 2 ? 2 : 4;
  static constexpr int kThreads = 32 * kSubs * kColumnParts;
  // Two blocks share an SM where they fit: one computes while the other waits.
  static constexpr int kBlocks = sizeof(Real) == 2 && K <= 128 ? 2 : 1;
  // Columns of V at a time.
  static constexpr int kSlice = sizeof(Real) == 2 ? 64 : K <= 128 ? 32 : 16;
  using Wide = Smem<float, kTokens, K>;
  Smem<Real, kTokens, K> q, k;  // scale * q . up, k . down
  Smem<Real, K, kSlice> s, ds;
  Smem<Real, kTokens, kSlice> v, dout;
  // P, then dP: block (r, c) below the diagonal, what rounding takes from it in place (c, r).
  Smem<Real, kTokens, kTokens> p;
  Wide through_k, through_q;  // in the place of s and ds, of q and k
  // In the place of v and dout: [kSubs, K]; dP of each sub-chunk with itself, which is no operand.
  float* sums;
  Smem<float, kTokens, kSub> own;
  float* total;        // [kSubs, K]: decays over the sub-chunks; later what they give
  float *skip, *rest;  // [K], [2, K]: over sub-chunks 1 and 2; from 1, 2 to the end
  float* whole;        // [K]: <S, dS> after the chunk

  // The number of element (r + i, c) of a Wide from that of (r, c), r a multiple of 8: i known at
  // compile time, one operation.
  __device__ static constexpr int row_below(int spot, int i) {
    constexpr int kPanel = Wide::panel_cols;
    return (spot ^ (Wide::offset(i % 8, 0) / 4 % kPanel)) + i * kPanel;
  }

  __host__ __device__ explicit TokenTiles(Arena& arena)
      : q(arena.carve<Smem<Real, kTokens, K>>()), k(arena.carve<Smem<Real, kTokens, K>>()) {
    s = arena.carve<Smem<Real, K, kSlice>>();
    ds = arena.carve<Smem<Real, K, kSlice>>();
    constexpr int kMissing = Wide::bytes - 2 * Smem<Real, K, kSlice>::bytes;
    if constexpr (kMissing > 0) arena.carve<float>(kMissing / 4);
    v = arena.carve<Smem<Real, kTokens, kSlice>>();
    dout = arena.carve<Smem<Real, kTokens, kSlice>>();
    static_assert(2 * Smem<Real, kTokens, kSlice>::bytes >= kSubs * K * 4 + decltype(own)::bytes);
    p = arena.carve<Smem<Real, kTokens, kTokens>>();
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

  template <class Real>
  __device__ Channel(const CudaProblem<Real>& p, int b, int from, int n, int h, int d) {
    // What does not exist is read in the place of the last: all loads go out at once.
    const int last = min(max(n, 1), kSub) - 1, channel = min(d, p.K - 1), hk = h / p.group;
    const int t = min(from, p.documents.T - 1);
    const float* const g_row = p.g.at(b, t, h) + channel;
    const Real *const q_row = p.q.at(b, t, hk) + channel, *const k_row = p.k.at(b, t, hk) + channel;
    const int by_g = static_cast<int>(p.g.by_token), by_q = static_cast<int>(p.q.by_token);
    const int by_k = static_cast<int>(p.k.by_token);
#pragma unroll
    for (int i = 0; i < kSub; ++i) {
      const int64_t at = min(i, last);
      a[i] = g_row[at * by_g];
      q[i] = tile::to_float(q_row[at * by_q]);
      k[i] = tile::to_float(k_row[at * by_k]);
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
template <int N, class Real, int R, int C>
__device__ __forceinline__ void load_row(float (&x)[N], Smem<Real, R, C> tile, int r, int c) {
  constexpr int kUnit = Smem<Real, R, C>::unit_cols;
  static_assert(N % kUnit == 0);
#pragma unroll
  for (int i = 0; i < N; i += kUnit) {
    const uint4 unit = *reinterpret_cast<const uint4*>(tile.ptr(r, c + i));
    const uint32_t word[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (sizeof(Real) == 4) {
        x[i + j] = __uint_as_float(word[j]);
      } else {
        x[i + 2 * j] = tile::low_of(word[j]);
        x[i + 2 * j + 1] = tile::high_of(word[j]);
      }
    }
  }
}

// x as the operand of a product has it.
template <class Real>
__device__ __forceinline__ float rounded(float x) {
  return tile::to_float(tile::from_float<Real>(x));
}

// N numbers of a row of a state: from the tile, or, where the state is given in f32, from there;
// columns from `columns` on are zero.
template <int N, class Real, int R, int C>
__device__ __forceinline__ void load_state(float (&x)[N], const float* exact, int columns,
                                           Smem<Real, R, C> tile, int r, int c) {
  if (!exact) return load_row(x, tile, r, c);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = c + i < columns ? exact[c + i] : 0.f;
}

template <class Real, int K>
__global__ void __launch_bounds__(TokenTiles<Real, K>::kThreads, TokenTiles<Real, K>::kBlocks)
    chunk_gradients(const CudaProblem<Real> p, const Prepared<Real> x, const Gradients<Real> f) {
  using Tiles = TokenTiles<Real, K>;
  using Wide = typename Tiles::Wide;
  constexpr int kTokenThreads = Tiles::kThreads, kColumnParts = Tiles::kColumnParts;
  constexpr int kSlice = Tiles::kSlice, kWidth = K / kColumnParts, kBlocks = kSubs / kColumnParts;
  constexpr int kSliceWidth = kSlice / kColumnParts < 8 ? 8 : kSlice / kColumnParts;
  constexpr int kItems = (K * kSubs + kTokenThreads - 1) / kTokenThreads;
  constexpr bool kSplits = !std::is_same_v<Real, float>;  // dP as the sum of two operands
  Arena arena(tile::dynamic_memory());
  const Tiles w(arena);
  // Asked for anew in each part of the work, or the compiler would hold, and spill, the addresses
  // that it makes of them for all parts.
  int r, c;
  const auto take_place = [&] {
    const int warp = tile::warp_index();
    r = warp % 4;
    c = warp / 4;
  };
  const int heads = p.H / p.group;

  for (int work = blockIdx.x; work < p.B * f.chunks * heads; work += gridDim.x) {
    const int hk = work % heads, chunk = work / heads % f.chunks, b = work / heads / f.chunks;
    const int stop = min(p.documents.T, (chunk + 1) * kTokens);
    int n = p.documents.of(b, chunk * kTokens);
    for (int t = chunk * kTokens; t < stop; ++n) {
      const GridPiece piece = p.documents.from(p.documents.begin(n), p.documents.end(n), t);
      const int size = piece.size();
      t = piece.end;
      for (int h = hk * p.group; h < (hk + 1) * p.group; ++h) {
        __syncthreads();
        const float* const given_s = piece.first ? p.initial_state : nullptr;
        const float* const given_ds = piece.last ? f.dfinal_state : nullptr;
        const int64_t head = (int64_t{n} * p.H + h) * p.K * p.V;
        const auto fetch = [&](int v0) {
          const int columns = p.V - v0;
          load_rows_async<kTokenThreads>(w.v, p.v.at(b, piece.begin, h) + v0, p.v.by_token, size,
                                         columns);
          load_rows_async<kTokenThreads>(w.dout, f.dout.at(b, piece.begin, h) + v0, f.dout.by_token,
                                         size, columns);
          if (!piece.first)
            load_rows_async<kTokenThreads>(
                w.s, f.states + f.place(b, chunk - 1, h, p.H) * p.K * p.V + v0, p.V, p.K, columns);
          else if (given_s)
            load_tile(w.s, given_s + head + v0, p.V, p.K, columns);
          else
            zero_tile(w.s);
          if (!piece.last)
            load_rows_async<kTokenThreads>(
                w.ds, f.dstates + f.place(b, chunk, h, p.H) * p.K * p.V + v0, p.V, p.K, columns);
          else if (given_ds)
            load_tile(w.ds, given_ds + head + v0, p.V, p.K, columns);
          else
            zero_tile(w.ds);
          tile::async_commit();
        };
        load_rows_async<kTokenThreads>(w.q, x.q_up.at(b, piece.begin, h), x.q_up.by_token, size,
                                       p.K);
        load_rows_async<kTokenThreads>(w.k, x.k_down.at(b, piece.begin, h), x.k_down.by_token, size,
                                       p.K);
        tile::async_commit();
        fetch(0);
        for (int i = threadIdx.x; i < kSubs * K; i += kTokenThreads) {
          const int sub = i / K, d = i % K, from = piece.begin + kSub * sub;
          float total = 1.f;
          if (d < p.K && from < piece.end)
            total = has_total(piece, sub) ? x.total.at(b, x.cell(from), h)[d]
                                          : decay_over(p, b, h, from, piece.end, d);
          w.total[i] = total;
        }
        tile::async_wait<1>();
        __syncthreads();
        for (int d = threadIdx.x; d < K; d += kTokenThreads) {
          const float one = w.total[K + d], two = w.total[2 * K + d], three = w.total[3 * K + d];
          w.skip[d] = one * two;
          w.rest[d] = one * two * three;
          w.rest[K + d] = two * three;
        }
        __syncthreads();

        take_place();
        // P: the blocks of sub-chunk r with earlier ones, and that with itself.
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int j = c * kBlocks + block;
          if (j > r) break;
          Acc<kSub> scores;
          fill(scores, 0.f);
          if (j == r) {
            load_acc(scores, x.p.at(b, piece.begin + kSub * r, h), x.p.by_token, size - kSub * r,
                     kSub);
          } else {
            const float* const between = r - j == 3 ? w.skip : w.total + (j + 1) * K;
#pragma unroll 4
            for (int d = 0; d < K; d += kSub) {
              auto left = tile::load_frag<Real, kSub>(w.q, kSub * r, d);
              if (r - j > 1) scale_inner(left, between + d);
              mma_abt(scores, left, w.k, kSub * j, d);
            }
          }
          acc_to_smem(scores, w.p, kSub * r, kSub * j);
        }

        take_place();
        // What goes through the states, a slice of V at a time.
        Acc<kSub> dp[kBlocks];
        Acc<kWidth> dq, dk;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) fill(dp[block], 0.f);
        fill(dq, 0.f);
        fill(dk, 0.f);
        const float* const to_end = r == 2 ? w.total + 3 * K : w.rest + r % 2 * K;  // of r < 3
        float through[kItems] = {};  // <S, dS>: four lanes share a channel
        for (int v0 = 0; v0 < p.V; v0 += kSlice) {
          const int columns = p.V - v0;
          if (v0 > 0) {
            __syncthreads();
            fetch(v0);
          }
          tile::async_wait<0>();
          __syncthreads();

          take_place();
#pragma unroll
          for (int block = 0; block < kBlocks; ++block)
            if (c * kBlocks + block <= r)
              mma_abt<kSlice>(dp[block], w.dout, kSub * r, 0, w.v, kSub * (c * kBlocks + block), 0);
          mma_abt<kSlice>(dq, w.dout, kSub * r, 0, w.s, kWidth * c, 0);
          mma_abt<kSlice>(dk, w.v, kSub * r, 0, w.ds, kWidth * c, 0);
          if (f.dg)
#pragma unroll
            for (int at = 0; at < kItems; ++at) {
              const int item = threadIdx.x + at * kTokenThreads, d = item / 4;
              if (item >= K * 4 || d >= p.K) continue;
              constexpr int kShare = kSlice / 4;
              const int e = item % 4 * kShare;
              const int64_t row = head + int64_t{d} * p.V + v0;
              float one[kShare], other[kShare];
              load_state(one, given_s ? given_s + row : nullptr, columns, w.s, d, e);
              load_state(other, given_ds ? given_ds + row : nullptr, columns, w.ds, d, e);
#pragma unroll
              for (int i = 0; i < kShare; ++i) through[at] = fmaf(one[i], other[i], through[at]);
            }
          if (!f.dv || c * kSliceWidth >= kSlice) continue;
          take_place();
          // dV = (down . K . decay to the end) dS + P' dout
          Acc<kSliceWidth> dv;
          fill(dv, 0.f);
#pragma unroll 4
          for (int d = 0; d < K; d += kSub) {
            auto left = tile::load_frag<Real, kSub>(w.k, kSub * r, d);
            if (r < 3) scale_inner(left, to_end + d);
            mma_ab(dv, left, w.ds, d, kSliceWidth * c);
          }
          for (int i = r; i < kSubs; ++i)
            mma_atb<kSub>(dv, w.p, kSub * i, kSub * r, w.dout, kSub * i, kSliceWidth * c);
          store_acc(dv, f.dv.at(b, piece.begin + kSub * r, h) + v0 + kSliceWidth * c, f.dv.by_token,
                    size - kSub * r, columns - kSliceWidth * c);
        }

        take_place();
        __syncthreads();  // P, S, dS, v and dout are read
        if (f.dg) {
#pragma unroll
          for (int at = 0; at < kItems; ++at) {
            const int item = threadIdx.x + at * kTokenThreads;
            if (item >= K * 4) continue;
            const float sum = tile::quad_sum(through[at]);
            if (item % 4 == 0) w.whole[item / 4] = sum;
          }
          // What the chunk's own keys give to the state after it.
#pragma unroll
          for (int j = 0; j < kWidth; j += kSub) {
            Acc<kSub> part;
            acc_from_smem(part, w.k, kSub * r, kWidth * c + j);
            int i = 0;
            tile::each(part, [&](int, int, float& value) {
              value *= dk.x[(j + 8 * (i / 4)) / 8][i % 4];
              ++i;
            });
            const tile::Cols<kSub> sum = col_sum(part);
            if (tile::lane_index() >= 4) continue;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int d = kWidth * c + j + tile::acc_col(i / 2, i % 2);
              w.sums[r * K + d] = sum.x[i / 2][i % 2] * (r < 3 ? to_end[d] : 1.f);
            }
          }
        }
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int j = c * kBlocks + block;
          if (j == r) acc_to_smem(dp[block], w.own, kSub * r, 0);
          if (j >= r) break;
          acc_to_smem(dp[block], w.p, kSub * r, kSub * j);
          if constexpr (kSplits) {
            tile::each(dp[block], [](int, int, float& value) { value -= rounded<Real>(value); });
            acc_to_smem(dp[block], w.p, kSub * j, kSub * r);
          }
        }
        __syncthreads();
        if (f.dg)
          for (int d = threadIdx.x; d < K; d += kTokenThreads)
            w.whole[d] = w.whole[d] * w.total[d] * w.rest[d] + w.sums[d] + w.sums[K + d] +
                         w.sums[2 * K + d] + w.sums[3 * K + d];
        take_place();
        // From the states of the chunk to those of the sub-chunks:
        // dout S' after each earlier one, V dS' before each later one.
        for (int j = 0; j < r; ++j) {
          scale_cols(dq, tile::load_cols<kWidth>(w.total + j * K + kWidth * c));
          mma_ab<kSub>(dq, w.p, kSub * r, kSub * j, w.k, kSub * j, kWidth * c);
          if constexpr (kSplits)
            mma_ab<kSub>(dq, w.p, kSub * j, kSub * r, w.k, kSub * j, kWidth * c);
        }
        for (int i = kSubs - 1; i > r; --i) {
          scale_cols(dk, tile::load_cols<kWidth>(w.total + i * K + kWidth * c));
          mma_atb<kSub>(dk, w.p, kSub * i, kSub * r, w.q, kSub * i, kWidth * c);
          if constexpr (kSplits)
            mma_atb<kSub>(dk, w.p, kSub * r, kSub * i, w.q, kSub * i, kWidth * c);
        }
        __syncthreads();  // q and k are read
        acc_to_smem(dq, w.through_q, kSub * r, kWidth * c);
        acc_to_smem(dk, w.through_k, kSub * r, kWidth * c);
        __syncthreads();

        take_place();
        // What stays inside the sub-chunk, a channel at a time; then all is there. What flows over
        // a sub-chunk from earlier tokens to later ones is what flows over the chunk's end, plus
        // what ends in later sub-chunks, minus what starts there or in this one: all with the
        // operands that dq and dk were made from, so that what starts and ends there cancels.
        // A thread's own place in through_q takes its gates' gradients.
#pragma unroll 1
        for (int item = threadIdx.x; item < K * kSubs; item += kTokenThreads) {
          const int sub = item / K, d = item % K;
          const int from = piece.begin + kSub * sub, count = d < p.K ? piece.end - from : 0;
          const Channel own(p, b, from, count, h, d);
          // between[j]: decay from token j to token i
          float between[kSub], dk_within[kSub];
          float up = 1.f, ends = 0.f;
          const int64_t row = ((int64_t{b} * p.documents.T + from) * heads + hk) * p.K + d;
          const auto put = [&](Real* to, float* sums, int i, float value) {
            const int64_t at = row + int64_t{i} * (heads * p.K);
            if (!to) return;
            if (p.group == 1) {
              if (i < count) to[at] = tile::from_float<Real>(value);
            } else if (i < count) {
              if (h > hk * p.group) value += sums[at];
              if (h + 1 < (hk + 1) * p.group)
                sums[at] = value;
              else
                to[at] = tile::from_float<Real>(value);
            }
          };
          // Where tile(kSub * sub + i, d) of through_q and through_k lies.
          const int spot = Wide::offset(kSub * sub, d) / 4;
          const auto place = [&](int i) { return Tiles::row_below(spot, i); };
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
            const float through_q = w.through_q.data[place(i)];
            const float value = fmaf(up, through_q, within);
            w.through_q.data[place(i)] = own.q[i] * value;
            ends = fmaf(rounded<Real>(own.q[i] * up), through_q, ends);
            put(f.dq.data, f.dq_sum.data, i, p.scale * fmaf(dp_row[i], own.k[i], value));
          }
          float down = 1.f, sum = 0.f, starts = 0.f, gives = 0.f;
#pragma unroll
          for (int j = kSub - 1; j >= 0; --j) {
            const float through_k = w.through_k.data[place(j)];
            const float value = fmaf(down, through_k, dk_within[j]);
            put(f.dk.data, f.dk_sum.data, j, fmaf(w.own.at(kSub * sub + j, j), own.q[j], value));
            sum += w.through_q.data[place(j)] - own.k[j] * value;
            w.through_q.data[place(j)] = tile::mark_reset(own.a[j], sum);
            starts = fmaf(rounded<Real>(own.k[j] * down), through_k, starts);
            gives = fmaf(own.k[j] * down, through_k, gives);
            down *= own.a[j];
          }
          w.sums[item] = ends - starts;
          w.total[item] = gives - starts;
        }
        if (!f.dg) continue;
        __syncthreads();
        for (int item = threadIdx.x; item < K * kSubs; item += kTokenThreads) {
          const int sub = item / K, d = item % K, from = piece.begin + kSub * sub;
          if (d >= p.K) continue;
          float sum = w.total[item] + w.whole[d];
          for (int i = kSubs - 1; i > sub; --i) sum += w.sums[i * K + d];
          const int count = piece.end - from, by = static_cast<int>(f.dg.by_token);
          float* const dg = f.dg.at(b, from, h) + d;
          const int spot = Wide::offset(kSub * sub, d) / 4;
#pragma unroll
          for (int i = 0; i < kSub; ++i) {
            const float own = w.through_q.data[Tiles::row_below(spot, i)];
            if (i < count) dg[int64_t{i} * by] = tile::is_reset_mark(own) ? 0.f : own + sum;
          }
        }
      }
    }
  }
}

template <class Real>
void launch_backward(const CudaProblem<Real>& p, const Prepared<Real>& x,
                     const Gradients<Real>& f) {
  launch_prepare(p, x);
  Arena size;
  StateTiles<Real>{size};
  const int parts_k = static_cast<int>(ceil_div(p.K, kPart));
  const int parts_v = static_cast<int>(ceil_div(p.V, kPart));
  const int64_t blocks = int64_t{p.documents.N} * p.H * parts_k * parts_v;
  const int64_t gradients = f.chunks > 1 || f.dinitial_state ? blocks : 0;
  const int64_t states = f.chunks > 1 ? blocks : 0;
  if (gradients > 0)
    launch(chunk_states<Real>, gradients + states, kStateThreads, size.used(), p, x, f, parts_k,
           parts_v, static_cast<int>(gradients));
  for_padded_width<Real>(p.K, [&]<int K>() {
    using Tiles = TokenTiles<Real, K>;
    Arena tiles;
    Tiles{tiles};
    const int64_t work = int64_t{p.B} * f.chunks * (p.H / p.group);
    const int64_t resident = Tiles::kBlocks * cuda_sms();
    launch(chunk_gradients<Real, K>, std::min(work, resident), Tiles::kThreads, tiles.used(), p, x,
           f);
  });
}

extern template void launch_backward(const CudaProblem<float>&, const Prepared<float>&,
                                     const Gradients<float>&);  // f32.cu

}  // namespace weft::kernels::gated_linear
