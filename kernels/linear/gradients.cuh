// The kernels of linear backward: one pass over the chunks of each head makes the states at their
// starts again and the gradients of the states at their ends (`chunk_states`, states.cuh); then all
// chunks make the gradients of their tokens at once (`chunk_gradients`). README.md, Backward, has
// the equations. Chunk states are kept in the dtype of q, as the products that read them want them.
#pragma once

#include "kernels/linear/gates.cuh"
#include "kernels/linear/states.cuh"

namespace weft::kernels::linear {

template <class Real>
struct Gradients {
  StateGradient<Real> state;
  TokenRows<const Real> o;
  KeptStates<Real> before, after;  // of the chunks, and gradients
  TokenRows<Real> dq, dk, dv;
  float *dd, *dg;      // [B, T, H]
  double* gate_parts;  // [B, chunks, H]
  int chunks;
};

// dd = - dout . o / denominator, a warp for each token and head.
template <class Real>
__global__ void __launch_bounds__(256)
    denominator_gradients(const CudaProblem<Real> p, const Gradients<Real> f) {
  const int64_t row = int64_t{blockIdx.x} * 8 + tile::warp_index();
  if (row >= int64_t{p.B} * p.documents.T * p.H) return;
  const int h = static_cast<int>(row % p.H), t = static_cast<int>(row / p.H % p.documents.T);
  const int b = static_cast<int>(row / p.H / p.documents.T);
  const Real *const dout = f.state.dout.at(b, t, h), *const o = f.o.at(b, t, h);
  float sum = 0.f;
  for (int e = tile::lane_index(); e < p.V; e += 32)
    sum += tile::to_float(dout[e]) * tile::to_float(o[e]);
  sum = tile::warp_sum(sum);
  if (tile::lane_index() == 0) f.dd[row] = -sum / f.state.denominator[row];
}

template <class Real, bool kExact>
__global__ void __launch_bounds__(kStateThreads)
    chunk_states(const CudaProblem<Real> p, const Gradients<Real> f, const int of_gradients) {
  const int index = static_cast<int>(blockIdx.x);
  if (index < of_gradients)
    walk_states<true, kExact>(p, f.state, f.after, index);
  else
    walk_states<false, kExact>(p, f.state, f.before, index - of_gradients);
}

// Warp (r, c) has tokens 16 r .. 16 r + 15 and part c of the columns.
inline constexpr int kColumnParts = 4, kTokenThreads = 32 * 4 * kColumnParts;

template <class Real, int K>
struct TokenTiles {
  static constexpr bool kRoomy = K * sizeof(Real) <= 512;
  static constexpr int kSlice = K * sizeof(Real) <= 256 ? 64 : kRoomy ? 32 : 16;  // columns of V
  static constexpr int kStages = kRoomy ? 2 : 1;
  Smem<Real, kTokens, K> q, k;
  Smem<Real, kTokens, kSlice> v, dout;  // kStages of each
  Smem<Real, K, kSlice> s, ds;          // kStages of each
  Smem<Real, kTokens, kTokens> p;       // P, then D
  SharedDecay<kTokens> decay;
  float *z, *dz;        // [K]
  float *by_norm, *dd;  // [kTokens]: 1 / denominator, its gradient
  float *pairs_of_rows, *pairs_of_cols, *before, *after;  // [4, kTokens]: by part of cols, rows
  float* through;                                         // [16]: of each warp
  float* between;  // [16]: of each warp, of pairs of tokens times their distance

  __host__ __device__ explicit TokenTiles(Arena& arena)
      : q(arena.carve<Smem<Real, kTokens, K>>()),
        k(arena.carve<Smem<Real, kTokens, K>>()),
        v(stages<Smem<Real, kTokens, kSlice>>(arena)),
        dout(stages<Smem<Real, kTokens, kSlice>>(arena)),
        s(stages<Smem<Real, K, kSlice>>(arena)),
        ds(stages<Smem<Real, K, kSlice>>(arena)),
        p(arena.carve<Smem<Real, kTokens, kTokens>>()),
        decay{arena.carve<float>(SharedDecay<kTokens>::kFloats)},
        z(arena.carve<float>(K)),
        dz(arena.carve<float>(K)),
        by_norm(arena.carve<float>(kTokens)),
        dd(arena.carve<float>(kTokens)),
        pairs_of_rows(arena.carve<float>(4 * kTokens)),
        pairs_of_cols(arena.carve<float>(4 * kTokens)),
        before(arena.carve<float>(4 * kTokens)),
        after(arena.carve<float>(4 * kTokens)),
        through(arena.carve<float>(16)),
        between(arena.carve<float>(16)) {}

 private:
  template <class Tile>
  __host__ __device__ static Tile stages(Arena& arena) {
    const Tile first = arena.carve<Tile>();
    for (int i = 1; i < kStages; ++i) arena.carve<Tile>();
    return first;
  }
};

// The gradient of each gate of a piece from its shares, by one warp with two tokens a lane.
template <class Tiles>
__device__ void finish_gates(const Tiles& w, int n, float* dg, int64_t stride) {
  const int lane = tile::lane_index();
  const float through = tile::warp_sum(lane < 16 ? w.through[lane] : 0.f) * w.decay.total();
  float later[2], earlier[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    later[i] = earlier[i] = 0.f;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int at = part * kTokens + 2 * lane + i;
      later[i] += w.before[at] + (w.pairs_of_rows[at] - w.pairs_of_cols[at]);
      earlier[i] += w.after[at];
    }
  }
  put_gates(w.decay, later, earlier, through, n, dg, stride);
}

__device__ __forceinline__ double warp_sum_of_doubles(double x) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x += __shfl_xor_sync(~0u, x, m);
  return x;
}

// The gradient of a gate that all tokens of a piece have in common, without what goes from state to
// state (`add_through`). It is the sum of their gradients in another order, each share times the
// gates that it passes, so that nothing is added which another token takes off again.
template <class Tiles>
__device__ double common_gate(const Tiles& w, int n) {
  const int lane = tile::lane_index();
  double sum = lane < 16 ? w.between[lane] : 0.;
#pragma unroll
  for (int token = 2 * lane; token < 2 * lane + 2; ++token) {
    double before = 0, after = 0;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      before += w.before[part * kTokens + token];
      after += w.after[part * kTokens + token];
    }
    sum += (token + 1) * before + (n - 1 - token) * after;
  }
  return warp_sum_of_doubles(sum);
}

// sum of s * ds over this thread's share of two tiles
template <class Real, int R, int C>
__device__ __forceinline__ float share_of_product(Smem<Real, R, C> s, Smem<Real, R, C> ds) {
  float sum = 0.f;
  for (int i = threadIdx.x; i < R * C / 2; i += kTokenThreads) {
    const float2 a = tile::load_pair(s.data + 2 * i), b = tile::load_pair(ds.data + 2 * i);
    sum = fmaf(a.x, b.x, fmaf(a.y, b.y, sum));
  }
  return sum;
}

// The same where a state is given in f32, rows of which lie V apart: `rows` by `columns` of it are
// there.
template <class Real, int R, int C>
__device__ __forceinline__ float share_of_product(const float* exact_s, Smem<Real, R, C> s,
                                                  const float* exact_ds, Smem<Real, R, C> ds, int V,
                                                  int rows, int columns) {
  float sum = 0.f;
  for (int i = threadIdx.x; i < R * C; i += kTokenThreads) {
    const int d = i / C, e = i % C;
    if (d >= rows || e >= columns) continue;
    const int64_t at = int64_t{d} * V + e;
    sum = fmaf(exact_s ? exact_s[at] : tile::to_float(s.at(d, e)),
               exact_ds ? exact_ds[at] : tile::to_float(ds.at(d, e)), sum);
  }
  return sum;
}

// A row sum of acc (.) tile(row0 + .., col0 + ..), for both of a lane's rows.
template <int N, class Real, int R, int C>
__device__ __forceinline__ void add_row_dots(float (&sum)[2], const Acc<N>& acc,
                                             Smem<Real, R, C> with, int row0, int col0) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float2 pair =
          tile::load_pair(with.ptr(row0 + tile::acc_row(i), col0 + tile::acc_col(j, i)));
      sum[i / 2] = fmaf(acc.x[j][i], pair.x, fmaf(acc.x[j][i + 1], pair.y, sum[i / 2]));
    }
  }
}
__device__ __forceinline__ void put_row_sums(float* to, const float (&sum)[2], int row0) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float whole = tile::quad_sum(sum[i]);
    if (tile::lane_index() % 4 == 0) to[row0 + tile::acc_row(2 * i)] = whole;
  }
}

// acc += A B as mma_abt and mma_ab make it of two tiles; in f32, where a sum over K can be long, in
// blocks of 64 that are added: the gradients of gates can cancel nearly all of their terms.
template <int K, class Real, int N, int R, int C, int S, int D>
__device__ __forceinline__ void add_abt(Acc<N>& acc, Smem<Real, R, C> a, int i0, Smem<Real, S, D> b,
                                        int n0) {
  if constexpr (std::is_same_v<Real, float>) {
#pragma unroll 1
    for (int k = 0; k < K; k += 64) {
      Acc<N> part;
      fill(part, 0.f);
      mma_abt<(K < 64 ? K : 64)>(part, a, i0, k, b, n0, k);
      add_to(acc, part);
    }
  } else {
    mma_abt<K>(acc, a, i0, 0, b, n0, 0);
  }
}
template <int K, class Real, int N, int R, int C, int S, int D>
__device__ __forceinline__ void add_ab(Acc<N>& acc, Smem<Real, R, C> a, int i0, Smem<Real, S, D> b,
                                       int n0) {
  if constexpr (std::is_same_v<Real, float>) {
#pragma unroll 1
    for (int k = 0; k < K; k += 64) {
      Acc<N> part;
      fill(part, 0.f);
      mma_ab<64>(part, a, i0, k, b, k, n0);
      add_to(acc, part);
    }
  } else {
    mma_ab<K>(acc, a, i0, 0, b, 0, n0);
  }
}

// The heads that share a key follow each other in one block, so that their sum has one order. There
// dout and v are scaled by rows before the products that are summed over heads; a head that is
// alone scales their results.
// kSums: with the shares of gate_parts.
template <class Real, int K, bool kSums>
__global__ void __launch_bounds__(kTokenThreads)
    chunk_gradients(const CudaProblem<Real> p, const Gradients<Real> f) {
  using Tiles = TokenTiles<Real, K>;
  constexpr int kSlice = Tiles::kSlice, kStages = Tiles::kStages, kWidth = K / kColumnParts;
  constexpr int kSliceWidth = kSlice / kColumnParts < 8 ? 8 : kSlice / kColumnParts;
  Arena arena(tile::dynamic_memory());
  const Tiles w(arena);
  const int warp = tile::warp_index(), r = warp % 4, c = warp / 4, row0 = 16 * r;
  const int heads = p.H / p.group, hk = blockIdx.x % heads;
  const int chunk = blockIdx.x / heads % f.chunks, b = blockIdx.x / heads / f.chunks;
  const bool gates = p.gates && (f.dg || kSums), decays = static_cast<bool>(p.gates);
  const bool shared = p.group > 1, below = c <= r;  // this warp's part of P has a lower half
  const int stop = min(p.documents.T, (chunk + 1) * kTokens);
  const auto sliced = [&](int h) { return h < (hk + 1) * p.group; };

  int n = p.documents.of(b, chunk * kTokens);
  for (int t = chunk * kTokens; t < stop; ++n) {
    const GridPiece piece = p.documents.from(p.documents.begin(n), p.documents.end(n), t);
    const int size = piece.size();
    t = piece.end;
    const float* const given_s = piece.first ? p.initial_state : nullptr;
    const float* const given_ds = piece.last ? f.state.dfinal_state : nullptr;
    const auto fetch = [&](int h, int v0, int stage) {
      const int columns = p.V - v0;
      load_rows_async<kTokenThreads>(stage_of(w.v, stage), p.v.at(b, piece.begin, h) + v0,
                                     p.v.by_token, size, columns);
      load_rows_async<kTokenThreads>(stage_of(w.dout, stage),
                                     f.state.dout.at(b, piece.begin, h) + v0, f.state.dout.by_token,
                                     size, columns);
      const int64_t head = (int64_t{n} * p.H + h) * p.K * p.V + v0;
      if (!piece.first)
        load_rows_async<kTokenThreads>(
            stage_of(w.s, stage),
            f.before.states + f.before.place(b, chunk - 1, h, p.H) * p.K * p.V + v0, p.V, p.K,
            columns);
      else if (given_s)
        load_tile(stage_of(w.s, stage), given_s + head, p.V, p.K, columns);
      else
        zero_tile(stage_of(w.s, stage));
      if (!piece.last)
        load_rows_async<kTokenThreads>(
            stage_of(w.ds, stage),
            f.after.states + f.after.place(b, chunk, h, p.H) * p.K * p.V + v0, p.V, p.K, columns);
      else if (given_ds)
        load_tile(stage_of(w.ds, stage), given_ds + head, p.V, p.K, columns);
      else
        zero_tile(stage_of(w.ds, stage));
      tile::async_commit();
    };
    __syncthreads();
    load_rows_async<kTokenThreads>(w.q, p.q.at(b, piece.begin, hk), p.q.by_token, size, p.K);
    load_rows_async<kTokenThreads>(w.k, p.k.at(b, piece.begin, hk), p.k.by_token, size, p.K);
    fetch(hk * p.group, 0, 0);
    tile::async_wait<0>();
    __syncthreads();

    Acc<16> scores, d_sum;  // of tokens 16 r + .. and 16 c + ..
    Acc<kWidth> dq, dk;
    fill(scores, 0.f);
    fill(d_sum, 0.f);
    fill(dq, 0.f);
    fill(dk, 0.f);
    if (below) add_abt<K>(scores, w.q, row0, w.k, 16 * c);
    int stage = 0;

    for (int h = hk * p.group; sliced(h); ++h) {
      if (warp == 0) {
        const float2 g = lane_gates(p.gates, b, piece.begin, piece.end, h);
        w.decay.set(g.x, g.y);
      }
      for (int i = threadIdx.x; i < kTokens; i += kTokenThreads) {
        const int64_t at = (int64_t{b} * p.documents.T + piece.begin + i) * p.H + h;
        w.by_norm[i] = !p.normalize ? 1.f : i < size ? 1.f / f.state.denominator[at] : 0.f;
        w.dd[i] = p.normalize && i < size ? f.dd[at] : 0.f;
      }
      if (p.normalize) {
        const float* const z = piece.first ? p.initial_z : f.before.sums;
        const float* const dz = piece.last ? f.state.dfinal_z : f.after.sums;
        const int64_t own = int64_t{n} * p.H + h;
        const int64_t at_z = piece.first ? own : f.before.place(b, chunk - 1, h, p.H);
        const int64_t at_dz = piece.last ? own : f.after.place(b, chunk, h, p.H);
        for (int d = threadIdx.x; d < K; d += kTokenThreads) {
          w.z[d] = z && d < p.K ? z[at_z * p.K + d] : 0.f;
          w.dz[d] = dz && d < p.K ? dz[at_dz * p.K + d] : 0.f;
        }
      }
      __syncthreads();

      // scale * e^{G_i - G_j} up to the diagonal, zero above.
      const auto factor = [&](int row, int col) {
        const int at = row0 + row, from = 16 * c + col;
        if (at < from) return 0.f;
        return decays ? p.scale * w.decay.between(at, from) : p.scale;
      };
      const tile::Rows to_end = tile::load_rows(w.decay.to_end() + row0);
      const tile::Rows by_norm = tile::load_rows(w.by_norm + row0);
      tile::Rows from_start = tile::load_rows(w.decay.from_start() + row0);
#pragma unroll
      for (int i = 0; i < 2; ++i) from_start.x[i] *= p.scale;
      if (below) {
        Acc<16> part = scores;
        tile::each(part, [&](int row, int col, float& x) { x *= factor(row, col); });
        acc_to_smem(part, w.p, row0, 16 * c);
      }

      // What goes through the states, a slice of V at a time.
      Acc<16> dp;
      fill(dp, 0.f);
      float through = 0.f, read[2] = {0.f, 0.f}, given[2] = {0.f, 0.f};
      for (int v0 = 0; v0 < p.V; v0 += kSlice) {
        const bool same = v0 + kSlice < p.V;
        const bool more = same || sliced(h + 1);
        if (kStages > 1 && more) fetch(same ? h : h + 1, same ? v0 + kSlice : 0, 1 - stage);
        if (kStages > 1 && more)
          tile::async_wait<1>();
        else
          tile::async_wait<0>();
        __syncthreads();
        const auto v = stage_of(w.v, stage), dout = stage_of(w.dout, stage);
        const auto s = stage_of(w.s, stage), ds = stage_of(w.ds, stage);

        if (below) add_abt<kSlice>(dp, dout, row0, v, 16 * c);
#pragma unroll(sizeof(Real) == 2 ? kSlice / 16 : 1)
        for (int e = 0; e < kSlice; e += 16) {
          auto left = tile::load_frag<Real, 16>(dout, row0, e);
          if (shared)
            scale_outer(left, {from_start.x[0] * by_norm.x[0], from_start.x[1] * by_norm.x[1]});
          mma_abt(dq, left, s, kWidth * c, e);
          left = tile::load_frag<Real, 16>(v, row0, e);
          if (shared) scale_outer(left, to_end);
          mma_abt(dk, left, ds, kWidth * c, e);
        }
        const bool passes = kSums ? f.dg != nullptr : gates;  // else add_through() has it
        if (passes && (given_s || given_ds)) {
          const int64_t at = (int64_t{n} * p.H + h) * p.K * p.V + v0;
          through += share_of_product(given_s ? given_s + at : nullptr, s,
                                      given_ds ? given_ds + at : nullptr, ds, p.V, p.K, p.V - v0);
        } else if (passes) {
          through += share_of_product(s, ds);
        }
        if (c * kSliceWidth < kSlice) {
          const int col0 = c * kSliceWidth;
          Acc<kSliceWidth> part;
          if (gates && shared) {
            fill(part, 0.f);
            mma_ab<K>(part, w.q, row0, 0, s, 0, col0);
            add_row_dots(read, part, dout, row0, col0);
          }
          // dV = e^{G_C - G} . (K dS) + P' (dout / denominator)
          fill(part, 0.f);
          add_ab<K>(part, w.k, row0, ds, col0);
          scale_rows(part, to_end);
          if (gates) add_row_dots(given, part, v, row0, col0);
          if (f.dv) {
            for (int i = r; i < 4; ++i) {
              auto left = tile::load_frag_t<Real, 16>(w.p, 16 * i, row0);
              if (p.normalize) scale_inner(left, w.by_norm + 16 * i);
              mma_ab(part, left, dout, 16 * i, col0);
            }
            store_acc(part, f.dv.at(b, piece.begin + row0, h) + v0 + col0, f.dv.by_token,
                      size - row0, p.V - v0 - col0);
          }
        }
        __syncthreads();
        if (kStages > 1)
          stage = 1 - stage;
        else if (more)
          fetch(same ? h : h + 1, same ? v0 + kSlice : 0, 0);
      }

      const tile::Rows dd = tile::load_rows(w.dd + row0);
      if (p.normalize) {
        tile::each(dp,
                   [&](int row, int, float& x) { x = fmaf(x, by_norm.x[row / 8], dd.x[row / 8]); });
      }
      if (!shared) {
        scale_rows(dq, {from_start.x[0] * by_norm.x[0], from_start.x[1] * by_norm.x[1]});
        scale_rows(dk, to_end);
        add_row_dots(read, dq, w.q, row0, kWidth * c);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) read[i] *= from_start.x[i] * by_norm.x[i];
      }
      if (p.normalize) {
        Acc<kWidth> of_z;
        tile::each(of_z, [&](int row, int col, float& x) {
          x = from_start.x[row / 8] * dd.x[row / 8] * w.z[kWidth * c + col];
        });
        add_row_dots(read, of_z, w.q, row0, kWidth * c);
        add_to(dq, of_z);
        tile::each(of_z, [&](int row, int col, float& x) {
          x = to_end.x[row / 8] * w.dz[kWidth * c + col];
        });
        add_row_dots(given, of_z, w.k, row0, kWidth * c);
        add_to(dk, of_z);
        for (int d = threadIdx.x; d < K; d += kTokenThreads) through += w.z[d] * w.dz[d];
      }

      // The shares of the gates' gradients.
      if (gates) {
        Acc<16> part = dp;
        int at = 0;
        tile::each(part, [&](int row, int col, float& x) {
          const bool off = row0 + row > 16 * c + col;
          x = off ? x * scores.x[at / 4][at % 4] * factor(row, col) : 0.f;
          ++at;
        });
        if constexpr (kSums) {
          float between = 0.f;
          tile::each(part, [&](int row, int col, float x) {
            between = fmaf(x, static_cast<float>(row0 + row - (16 * c + col)), between);
          });
          between = tile::warp_sum(between);
          if (tile::lane_index() == 0) w.between[warp] = between;
        }
        const tile::Rows rows = row_sum(part);
        const tile::Cols<16> cols = col_sum(part);
        if (tile::lane_index() < 4) {
#pragma unroll
          for (int block = 0; block < 2; ++block) {
#pragma unroll
            for (int i = 0; i < 2; ++i)
              w.pairs_of_cols[r * kTokens + 16 * c + tile::acc_col(block, i)] = cols.x[block][i];
          }
        }
        if (tile::lane_index() % 4 == 0) {
#pragma unroll
          for (int i = 0; i < 2; ++i)
            w.pairs_of_rows[c * kTokens + row0 + tile::acc_row(2 * i)] = rows.x[i];
        }
        put_row_sums(w.before + c * kTokens, read, row0);
        put_row_sums(w.after + c * kTokens, given, row0);
        through = tile::warp_sum(through);
        if (tile::lane_index() == 0) w.through[warp] = through;
        __syncthreads();
        if (warp == 0) {
          const int64_t first = (int64_t{b} * p.documents.T + piece.begin) * p.H + h;
          if (!kSums || f.dg) finish_gates(w, size, f.dg + first, p.H);
          if constexpr (kSums) {
            const double sum = common_gate(w, size);
            double& whole = f.gate_parts[(int64_t{b} * f.chunks + chunk) * p.H + h];
            if (tile::lane_index() == 0) whole = piece.begin == chunk * kTokens ? sum : whole + sum;
          }
        }
      }
      int at = 0;
      tile::each(dp, [&](int row, int col, float& x) {
        d_sum.x[at / 4][at % 4] += x * factor(row, col);
        ++at;
      });
      __syncthreads();  // the next head's decays
    }

    // dQ += D K, dK += D' Q
    acc_to_smem(d_sum, w.p, row0, 16 * c);
    __syncthreads();
    for (int j = 0; j <= r; ++j) mma_ab<16>(dq, w.p, row0, 16 * j, w.k, 16 * j, kWidth * c);
    for (int i = r; i < 4; ++i) mma_atb<16>(dk, w.p, 16 * i, row0, w.q, 16 * i, kWidth * c);
    const int columns = p.K - kWidth * c;
    if (f.dq)
      store_acc(dq, f.dq.at(b, piece.begin + row0, hk) + kWidth * c, f.dq.by_token, size - row0,
                columns);
    if (f.dk)
      store_acc(dk, f.dk.at(b, piece.begin + row0, hk) + kWidth * c, f.dk.by_token, size - row0,
                columns);
  }
}

template <class Real>
__device__ const float* in_f32(const KeptStates<Real>& kept) {
  if constexpr (std::is_same_v<Real, float>)
    return kept.states;
  else
    return kept.exact;
}

// gate_parts += what goes through the pieces of a chunk from state to state, a block for each head:
// where the gradient of one number is the sum over all tokens, states rounded to bf16 would be
// felt.
inline constexpr int kThroughThreads = 256;
template <class Real>
__global__ void __launch_bounds__(kThroughThreads)
    add_through(const CudaProblem<Real> p, const Gradients<Real> f) {
  __shared__ float memory[SharedDecay<kTokens>::kFloats];
  __shared__ double of_warp[kThroughThreads / 32];
  const SharedDecay<kTokens> decay{memory};
  const int h = blockIdx.x % p.H, chunk = blockIdx.x / p.H % f.chunks;
  const int b = blockIdx.x / p.H / f.chunks, stop = min(p.documents.T, (chunk + 1) * kTokens);
  const auto dot = [](const float* x, const float* y, int count) {
    float sum = 0.f;
#pragma unroll 8
    for (int i = threadIdx.x; x && y && i < count; i += kThroughThreads)
      sum = fmaf(x[i], y[i], sum);
    return static_cast<double>(sum);
  };
  double whole = 0;
  int n = p.documents.of(b, chunk * kTokens);
  for (int t = chunk * kTokens; t < stop; ++n) {
    const GridPiece piece = p.documents.from(p.documents.begin(n), p.documents.end(n), t);
    t = piece.end;
    const int64_t own = int64_t{n} * p.H + h, state = int64_t{p.K} * p.V;
    const int64_t at = piece.first ? own : f.before.place(b, chunk - 1, h, p.H);
    const int64_t dat = piece.last ? own : f.after.place(b, chunk, h, p.H);
    const float* const s = piece.first ? p.initial_state : in_f32(f.before);
    const float* const ds = piece.last ? f.state.dfinal_state : in_f32(f.after);
    __syncthreads();
    if (threadIdx.x < 32) {
      const float2 g = lane_gates(p.gates, b, piece.begin, piece.end, h);
      decay.set(g.x, g.y);
    }
    double sum = dot(s ? s + at * state : nullptr, ds ? ds + dat * state : nullptr, p.K * p.V);
    if (p.normalize) {
      const float* const z = piece.first ? p.initial_z : f.before.sums;
      const float* const dz = piece.last ? f.state.dfinal_z : f.after.sums;
      sum += dot(z ? z + at * p.K : nullptr, dz ? dz + dat * p.K : nullptr, p.K);
    }
    __syncthreads();
    whole += sum * piece.size() * decay.total();
  }
  whole = warp_sum_of_doubles(whole);
  if (tile::lane_index() == 0) of_warp[threadIdx.x / 32] = whole;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThroughThreads / 32; ++i) whole += of_warp[i];
  f.gate_parts[blockIdx.x] += whole;
}

template <class Real>
void launch_backward(const CudaProblem<Real>& p, const Gradients<Real>& f) {
  if (p.normalize)
    launch(denominator_gradients<Real>, ceil_div(int64_t{p.B} * p.documents.T * p.H, 8), 256, 0, p,
           f);
  const int64_t blocks = state_blocks(p.documents.N, p.H, p.K, p.V);
  const bool of_gradients = f.chunks > 1 || f.state.dinitial_state || f.state.dinitial_z;
  const int64_t gradients = of_gradients ? blocks : 0, states = f.chunks > 1 ? blocks : 0;
  if (gradients + states > 0) {
    Arena size;
    StateTiles<Real>{size};
    launch(f.before.exact ? chunk_states<Real, true> : chunk_states<Real, false>,
           gradients + states, kStateThreads, size.used(), p, f, static_cast<int>(gradients));
  }
  for_padded_width<Real>(p.K, [&]<int K>() {
    Arena size;
    TokenTiles<Real, K>{size};
    launch(f.gate_parts ? chunk_gradients<Real, K, true> : chunk_gradients<Real, K, false>,
           int64_t{p.B} * f.chunks * (p.H / p.group), kTokenThreads, size.used(), p, f);
  });
  if (f.gate_parts)
    launch(add_through<Real>, int64_t{p.B} * f.chunks * p.H, kThroughThreads, 0, p, f);
}
extern template void launch_backward(const CudaProblem<float>&, const Gradients<float>&);

}  // namespace weft::kernels::linear
