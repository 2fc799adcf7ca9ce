// Linear attention backward on CUDA: one pass forwards over the chunks of each head makes the states
// at their starts again, one backwards the gradients of the states at their ends (`chunk_states`,
// both in 64 x 64 parts of the state that know nothing of each other); then all chunks make the
// gradients of their tokens at once (`chunk_gradients`). README.md, Backward, has the equations.
// Chunk states are kept in the dtype of q, as the products that read them want them.
#include "kernels/linear/problem.cuh"

namespace weft::kernels {
namespace {

using linear::CudaProblem;
using linear::kTokens;
using tile::Acc;
using tile::Arena;
using tile::Smem;

template <class T>
struct Gradients {
  TokenRows<const T> dout, o;
  const float *denominator, *dfinal_state, *dfinal_z;
  const float* dd;      // [B, T, H], gradient of the denominator; with normalize
  T *states, *dstates;  // [B, chunks - 1, H, K, V]: at the starts of chunks 1, 2, ..; at the ends
  float *sums, *dsums;  // [B, chunks - 1, H, K], the same of z
  TokenRows<T> dq, dk, dv;
  float *dg, *gate_parts;  // [B, T, H], [B, chunks, H]
  float *dinitial_state, *dinitial_z;
  int chunks;

  // The place of a state after chunk c, or of its gradient, in states, dstates.
  __device__ int64_t place(int b, int c, int h, int H) const {
    return (int64_t{b} * (chunks - 1) + c) * H + h;
  }
};

// dd = - dout . o / denominator, a warp for each token and head.
template <class T>
__global__ void __launch_bounds__(256)
    denominator_gradients(const CudaProblem<T> p, const Gradients<T> f, float* dd) {
  const int64_t row = int64_t{blockIdx.x} * 8 + tile::warp_index();
  if (row >= int64_t{p.B} * p.documents.T * p.H) return;
  const int h = static_cast<int>(row % p.H), t = static_cast<int>(row / p.H % p.documents.T);
  const int b = static_cast<int>(row / p.H / p.documents.T);
  const T *const dout = f.dout.at(b, t, h), *const o = f.o.at(b, t, h);
  float sum = 0.f;
  for (int e = tile::lane_index(); e < p.V; e += 32)
    sum += tile::to_float(dout[e]) * tile::to_float(o[e]);
  sum = tile::warp_sum(sum);
  if (tile::lane_index() == 0) dd[row] = -sum / f.denominator[row];
}

// --- States --------------------------------------------------------------------------------------

constexpr int kPart = 64;           // channels and columns of V of a block
constexpr int kStateThreads = 128;  // 16 channels for each warp

template <class T>
struct StateTiles {
  Smem<T, kTokens, kPart> x, y;  // two of each
  Decay<kTokens> decay;          // two
  float *factor, *factor_z;      // two: of token i in the sums that make S and z

  __host__ __device__ explicit StateTiles(Arena& arena)
      : x(arena.carve<Smem<T, kTokens, kPart>>()) {
    arena.carve<Smem<T, kTokens, kPart>>();
    y = arena.carve<Smem<T, kTokens, kPart>>();
    arena.carve<Smem<T, kTokens, kPart>>();
    decay.data = arena.carve<float>(2 * Decay<kTokens>::kFloats);
    factor = arena.carve<float>(2 * kTokens);
    factor_z = arena.carve<float>(2 * kTokens);
  }
};

// Forwards:   S  <- e^{G_C} S  + (e^{G_C - G} . K)' V,          z alike with 1 for v
// Backwards:  dS <- e^{G_C} dS + (s e^{G} / denominator . Q)' dout, dz with dd denominator for dout
template <class T, bool kBackwards>
__global__ void __launch_bounds__(kStateThreads)
    chunk_states(const CudaProblem<T> p, const Gradients<T> f, const int parts_k,
                 const int parts_v) {
  Arena arena(tile::dynamic_memory());
  const StateTiles<T> w(arena);
  const int warp = tile::warp_index(), lane = tile::lane_index();
  int index = blockIdx.x;
  const int v0 = index % parts_v * kPart, k0 = index / parts_v % parts_k * kPart;
  index /= parts_v * parts_k;
  const int h = index % p.H, n = index / p.H, hk = h / p.group;
  const int b = p.documents.row(n), begin = p.documents.begin(n), end = p.documents.end(n);
  const bool has_z = p.normalize && v0 == 0;

  const TokenRows<const T> left = kBackwards ? p.q : p.k, right = kBackwards ? f.dout : p.v;
  const auto after = [&](const Segment& piece) {
    return kBackwards ? p.documents.up_to(begin, end, piece.begin)
                      : p.documents.from(begin, end, piece.end);
  };
  const auto is_final = [&](const Segment& piece) { return kBackwards ? piece.first : piece.last; };
  const auto fetch = [&](const Segment& piece, int stage) {
    load_tile_async(stage_of(w.x, stage), left.at(b, piece.begin, hk) + k0, left.by_token,
                    piece.size(), p.K - k0);
    load_tile_async(stage_of(w.y, stage), right.at(b, piece.begin, h) + v0, right.by_token,
                    piece.size(), p.V - v0);
    tile::async_commit();
  };
  // By warp 0: decays and factors of a piece.
  const auto prepare = [&](const Segment& piece, float2 gates, int stage) {
    const Decay<kTokens> decay{w.decay.data + stage * Decay<kTokens>::kFloats};
    decay.set(gates.x, gates.y);
#pragma unroll
    for (int i = 2 * lane; i < 2 * lane + 2; ++i) {
      float by = kBackwards ? p.scale * decay.from_start()[i] : decay.to_end()[i], by_z = by;
      if (kBackwards && p.normalize && i < piece.size()) {
        const int64_t at = (int64_t{b} * p.documents.T + piece.begin + i) * p.H + h;
        by /= f.denominator[at];
        by_z *= f.dd[at];
      }
      w.factor[stage * kTokens + i] = by;
      w.factor_z[stage * kTokens + i] = by_z;
    }
  };

  Acc<kPart> s;
  float z = 0.f;  // of channel k0 + threadIdx.x
  const int rows = p.K - k0 - 16 * warp, columns = p.V - v0;
  const int64_t head = int64_t{n} * p.H + h;
  const int64_t at_head = (head * p.K + k0 + 16 * warp) * p.V + v0, at_z = head * p.K + k0;
  const float* const from = kBackwards ? f.dfinal_state : p.initial_state;
  const float* const from_z = kBackwards ? f.dfinal_z : p.initial_z;
  fill(s, 0.f);
  if (from) load_acc(s, from + at_head, p.V, rows, columns);
  const bool owns_z = has_z && threadIdx.x < kPart && static_cast<int>(threadIdx.x) < p.K - k0;
  if (from_z && owns_z) z = from_z[at_z + threadIdx.x];
  const auto keep = [&](int c) {
    const int64_t at = f.place(b, c, h, p.H) * p.K + k0;
    store_acc(s, (kBackwards ? f.dstates : f.states) + (at + 16 * warp) * p.V + v0, p.V, rows,
              columns);
    if (owns_z) (kBackwards ? f.dsums : f.sums)[at + threadIdx.x] = z;
  };
  const bool to_the_end = kBackwards && (f.dinitial_state || f.dinitial_z);

  Segment piece =
      kBackwards ? p.documents.up_to(begin, end, end) : p.documents.from(begin, end, begin);
  if (is_final(piece) && !to_the_end) return;
  float2 gates = {0.f, 0.f};  // of the piece after
  const auto gates_of = [&](const Segment& at) {
    return lane_gates(p.gates, b, at.begin, at.end, h);
  };
  if (warp == 0) {
    prepare(piece, gates_of(piece), 0);
    if (!is_final(piece)) gates = gates_of(after(piece));
  }
  fetch(piece, 0);
  for (int turn = 0;; ++turn) {
    const int stage = turn & 1;
    if (kBackwards && !piece.last) keep(piece.chunk);
    if (is_final(piece) && !to_the_end) break;
    tile::async_wait<0>();
    __syncthreads();
    const Segment next = after(piece);
    if (!is_final(piece)) {
      fetch(next, 1 - stage);
      if (warp == 0) {
        prepare(next, gates, 1 - stage);
        if (!is_final(next)) gates = gates_of(after(next));
      }
    }
    const float total = w.decay.data[stage * Decay<kTokens>::kFloats + 4 * kTokens];
    const float* const factor = w.factor + stage * kTokens;
    auto a = tile::load_frag_t<T, kTokens>(stage_of(w.x, stage), 0, 16 * warp);
    scale_inner(a, factor);
    scale(s, total);
    mma_ab(s, a, stage_of(w.y, stage), 0, 0);
    if (owns_z) {
      const auto x = stage_of(w.x, stage);
      z *= total;
      for (int i = 0; i < kTokens; ++i)
        z += w.factor_z[stage * kTokens + i] * tile::to_float(x.at(i, threadIdx.x));
    }
    if (is_final(piece)) break;
    if (!kBackwards) keep(piece.chunk);
    piece = next;
    if (!kBackwards && piece.last) break;
  }
  if (!kBackwards) return;
  if (f.dinitial_state) store_acc(s, f.dinitial_state + at_head, p.V, rows, columns);
  if (f.dinitial_z && owns_z) f.dinitial_z[at_z + threadIdx.x] = z;
}

// --- Tokens --------------------------------------------------------------------------------------

constexpr int kTokenThreads =
    256;  // warp (r, c) has tokens 16 r .. 16 r + 15, half c of the columns

template <class T, int K>
struct TokenTiles {
  // Columns of V at a time.
  static constexpr int kSlice = sizeof(T) == 2 ? 64 : K <= 128 ? 32 : 16;
  Smem<T, kTokens, K> q, k;
  Smem<T, kTokens, kSlice> v, dout;
  Smem<T, K, kSlice> s, ds;
  Smem<T, kTokens, kTokens> p;  // P, then D
  Decay<kTokens> decay;
  float *z, *dz;          // [K]
  float *by_norm, *dd;    // [kTokens]: 1 / denominator, its gradient
  float* pairs_of_rows;   // [2, kTokens]: by half of the columns
  float* pairs_of_cols;   // [4, kTokens]: by row of warps
  float *before, *after;  // [2, kTokens]
  float* through;         // [8]: of each warp

  __host__ __device__ explicit TokenTiles(Arena& arena)
      : q(arena.carve<Smem<T, kTokens, K>>()),
        k(arena.carve<Smem<T, kTokens, K>>()),
        v(arena.carve<Smem<T, kTokens, kSlice>>()),
        dout(arena.carve<Smem<T, kTokens, kSlice>>()),
        s(arena.carve<Smem<T, K, kSlice>>()),
        ds(arena.carve<Smem<T, K, kSlice>>()),
        p(arena.carve<Smem<T, kTokens, kTokens>>()),
        decay{arena.carve<float>(Decay<kTokens>::kFloats)},
        z(arena.carve<float>(K)),
        dz(arena.carve<float>(K)),
        by_norm(arena.carve<float>(kTokens)),
        dd(arena.carve<float>(kTokens)),
        pairs_of_rows(arena.carve<float>(2 * kTokens)),
        pairs_of_cols(arena.carve<float>(4 * kTokens)),
        before(arena.carve<float>(2 * kTokens)),
        after(arena.carve<float>(2 * kTokens)),
        through(arena.carve<float>(8)) {}
};

// The gradient of each gate of a piece from its shares, by one warp with two tokens a lane.
// Returns their sum.
__device__ inline float finish_gates(float through, const float* pairs_of_rows,
                                     const float* pairs_of_cols, const float* before,
                                     const float* after, int n, float* dg, int64_t stride) {
  const int lane = tile::lane_index();
  float later[2], earlier[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    float cols = 0.f;
#pragma unroll
    for (int r = 0; r < 4; ++r) cols += pairs_of_cols[r * kTokens + t];
    later[i] =
        before[t] + before[kTokens + t] + pairs_of_rows[t] + pairs_of_rows[kTokens + t] - cols;
    earlier[i] = after[t] + after[kTokens + t];
  }
  // Of this token and later ones; of earlier ones.
  float suffix = later[0] + later[1];
  const float own = suffix;
#pragma unroll
  for (int m = 1; m < 32; m <<= 1) {
    const float x = __shfl_down_sync(~0u, suffix, m);
    if (lane + m < 32) suffix += x;
  }
  const float prefix = tile::warp_prefix_sum(earlier[0] + earlier[1]);
  const float from_before = __shfl_up_sync(~0u, prefix, 1);
  const float from_after = __shfl_down_sync(~0u, suffix, 1);
  const float rest = lane < 31 ? from_after : 0.f;
  const float start = (lane > 0 ? from_before : 0.f) + through;
  const float first = rest + own + start, second = rest + later[1] + (start + earlier[0]);
  float sum = 0.f;
  if (2 * lane < n) {
    if (dg) dg[2 * lane * stride] = first;
    sum += first;
  }
  if (2 * lane + 1 < n) {
    if (dg) dg[(2 * lane + 1) * stride] = second;
    sum += second;
  }
  return tile::warp_sum(sum);
}

// sum of s * ds over this thread's share of two tiles
template <class T, int R, int C>
__device__ __forceinline__ float share_of_product(Smem<T, R, C> s, Smem<T, R, C> ds) {
  float sum = 0.f;
  for (int i = threadIdx.x; i < R * C / 2; i += kTokenThreads) {
    const float2 a = tile::load_pair(s.data + 2 * i), b = tile::load_pair(ds.data + 2 * i);
    sum = fmaf(a.x, b.x, fmaf(a.y, b.y, sum));
  }
  return sum;
}

template <class T, int K, bool kShared>
__global__ void __launch_bounds__(kTokenThreads)
    chunk_gradients(const CudaProblem<T> p, const Gradients<T> f) {
  using Tiles = TokenTiles<T, K>;
  constexpr int kSlice = Tiles::kSlice, kHalf = K / 2, kHalfSlice = kSlice / 2;
  Arena arena(tile::dynamic_memory());
  const Tiles w(arena);
  const int warp = tile::warp_index(), r = warp % 4, c = warp / 4;
  const int heads = p.H / p.group, hk = blockIdx.x % heads;
  const int chunk = blockIdx.x / heads % f.chunks, b = blockIdx.x / heads / f.chunks;
  const bool gates = p.gates && (f.dg || f.gate_parts), decays = static_cast<bool>(p.gates);
  const int stop = min(p.documents.T, (chunk + 1) * kTokens);

  int n = p.documents.of(b, chunk * kTokens);
  for (int t = chunk * kTokens; t < stop; ++n) {
    const Segment piece = p.documents.from(p.documents.begin(n), p.documents.end(n), t);
    const int size = piece.size();
    t = piece.end;
    __syncthreads();
    load_tile_async(w.q, p.q.at(b, piece.begin, hk), p.q.by_token, size, p.K);
    load_tile_async(w.k, p.k.at(b, piece.begin, hk), p.k.by_token, size, p.K);
    tile::async_commit();
    tile::async_wait<0>();
    __syncthreads();

    // Of tokens 16 r + .. and 32 c + ..: blocks of 16 columns, those above the diagonal zero.
    Acc<16> scores[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      fill(scores[j], 0.f);
      if (2 * c + j <= r) mma_abt<K>(scores[j], w.q, 16 * r, 0, w.k, 16 * (2 * c + j), 0);
    }
    Acc<kHalf> dq_sum, dk_sum;  // over the heads that share a key
    if constexpr (kShared) {
      fill(dq_sum, 0.f);
      fill(dk_sum, 0.f);
    }

    for (int h = hk * p.group; h < (hk + 1) * p.group; ++h) {
      __syncthreads();
      if (warp == 0) {
        const float2 g = lane_gates(p.gates, b, piece.begin, piece.end, h);
        w.decay.set(g.x, g.y);
      }
      if (p.normalize) {
        for (int i = threadIdx.x; i < kTokens; i += kTokenThreads) {
          const int64_t at = (int64_t{b} * p.documents.T + piece.begin + i) * p.H + h;
          w.by_norm[i] = i < size ? 1.f / f.denominator[at] : 0.f;
          w.dd[i] = i < size ? f.dd[at] : 0.f;
        }
        const float* const z = piece.first ? p.initial_z : f.sums;
        const float* const dz = piece.last ? f.dfinal_z : f.dsums;
        const int64_t at_z = piece.first ? int64_t{n} * p.H + h : f.place(b, chunk - 1, h, p.H);
        const int64_t at_dz = piece.last ? int64_t{n} * p.H + h : f.place(b, chunk, h, p.H);
        for (int d = threadIdx.x; d < K; d += kTokenThreads) {
          w.z[d] = z && d < p.K ? z[at_z * p.K + d] : 0.f;
          w.dz[d] = dz && d < p.K ? dz[at_dz * p.K + d] : 0.f;
        }
      }
      __syncthreads();

      // scale * e^{G_i - G_j} up to the diagonal, zero above.
      const auto factor = [&](int j, int row, int col) {
        const int at = 16 * r + row, from = 32 * c + 16 * j + col;
        if (at < from) return 0.f;
        return decays ? p.scale * w.decay.between(at, from) : p.scale;
      };
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        Acc<16> part = scores[j];
        tile::each(part, [&](int row, int col, float& x) { x *= factor(j, row, col); });
        acc_to_smem(part, w.p, 16 * r, 32 * c + 16 * j);
      }

      // What goes through the states, a slice of V at a time.
      Acc<16> dp[2];
      Acc<kHalf> dq, dk;
#pragma unroll
      for (int j = 0; j < 2; ++j) fill(dp[j], 0.f);
      fill(dq, 0.f);
      fill(dk, 0.f);
      float through = 0.f;
      for (int v0 = 0; v0 < p.V; v0 += kSlice) {
        __syncthreads();
        const int columns = p.V - v0;
        load_tile_async(w.v, p.v.at(b, piece.begin, h) + v0, p.v.by_token, size, columns);
        load_tile_async(w.dout, f.dout.at(b, piece.begin, h) + v0, f.dout.by_token, size, columns);
        const int64_t head = (int64_t{n} * p.H + h) * p.K * p.V + v0;
        if (!piece.first)
          load_tile_async(w.s, f.states + f.place(b, chunk - 1, h, p.H) * p.K * p.V + v0, p.V, p.K,
                          columns);
        else if (p.initial_state)
          load_tile(w.s, p.initial_state + head, p.V, p.K, columns);
        else
          zero_tile(w.s);
        if (!piece.last)
          load_tile_async(w.ds, f.dstates + f.place(b, chunk, h, p.H) * p.K * p.V + v0, p.V, p.K,
                          columns);
        else if (f.dfinal_state)
          load_tile(w.ds, f.dfinal_state + head, p.V, p.K, columns);
        else
          zero_tile(w.ds);
        tile::async_commit();
        tile::async_wait<0>();
        __syncthreads();

#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (2 * c + j <= r) mma_abt<kSlice>(dp[j], w.dout, 16 * r, 0, w.v, 16 * (2 * c + j), 0);
        mma_abt<kSlice>(dq, w.dout, 16 * r, 0, w.s, kHalf * c, 0);
        mma_abt<kSlice>(dk, w.v, 16 * r, 0, w.ds, kHalf * c, 0);
        if (gates) through += share_of_product(w.s, w.ds);
        if (!f.dv) continue;
        // dV = e^{G_C - G} . (K dS) + P' (dout / denominator)
        Acc<kHalfSlice> dv;
        fill(dv, 0.f);
        mma_ab<K>(dv, w.k, 16 * r, 0, w.ds, 0, kHalfSlice * c);
        scale_rows(dv, tile::load_rows(w.decay.to_end() + 16 * r));
        for (int i = r; i < 4; ++i) {
          auto left = tile::load_frag_t<T, 16>(w.p, 16 * i, 16 * r);
          if (p.normalize) scale_inner(left, w.by_norm + 16 * i);
          mma_ab(dv, left, w.dout, 16 * i, kHalfSlice * c);
        }
        store_acc(dv, f.dv.at(b, piece.begin + 16 * r, h) + v0 + kHalfSlice * c, f.dv.by_token,
                  size - 16 * r, columns - kHalfSlice * c);
      }

      const tile::Rows to_end = tile::load_rows(w.decay.to_end() + 16 * r);
      tile::Rows from_start = tile::load_rows(w.decay.from_start() + 16 * r);
      from_start.x[0] *= p.scale;
      from_start.x[1] *= p.scale;
      if (p.normalize) {
        const tile::Rows by_norm = tile::load_rows(w.by_norm + 16 * r);
        const tile::Rows dd = tile::load_rows(w.dd + 16 * r);
#pragma unroll
        for (int j = 0; j < 2; ++j)
          tile::each(dp[j], [&](int row, int, float& x) {
            x = fmaf(x, by_norm.x[row / 8], dd.x[row / 8]);
          });
        tile::each(dq, [&](int row, int col, float& x) {
          x = fmaf(x, by_norm.x[row / 8], dd.x[row / 8] * w.z[kHalf * c + col]);
        });
        tile::each(dk, [&](int, int col, float& x) { x += w.dz[kHalf * c + col]; });
      }
      scale_rows(dq, from_start);
      scale_rows(dk, to_end);

      // The shares of the gates' gradients.
      if (gates) {
        if (p.normalize && threadIdx.x < K) through += w.z[threadIdx.x] * w.dz[threadIdx.x];
        through = tile::warp_sum(through);
        float rows[2] = {0.f, 0.f}, read[2] = {0.f, 0.f}, given[2] = {0.f, 0.f};
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          Acc<16> part = dp[j];
          int at = 0;
          tile::each(part, [&](int row, int col, float& x) {
            const bool below = 16 * r + row > 32 * c + 16 * j + col;
            x = below ? x * scores[j].x[at / 4][at % 4] * factor(j, row, col) : 0.f;
            ++at;
          });
          const tile::Rows sum = row_sum(part);
          rows[0] += sum.x[0];
          rows[1] += sum.x[1];
          const tile::Cols<16> cols = col_sum(part);
          if (tile::lane_index() < 4)
#pragma unroll
            for (int block = 0; block < 2; ++block)
#pragma unroll
              for (int i = 0; i < 2; ++i)
                w.pairs_of_cols[r * kTokens + 32 * c + 16 * j + tile::acc_col(block, i)] =
                    cols.x[block][i];
        }
        tile::each(dq, [&](int row, int col, float& x) {
          read[row / 8] += x * tile::to_float(w.q.at(16 * r + row, kHalf * c + col));
        });
        tile::each(dk, [&](int row, int col, float& x) {
          given[row / 8] += x * tile::to_float(w.k.at(16 * r + row, kHalf * c + col));
        });
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          read[i] = tile::quad_sum(read[i]);
          given[i] = tile::quad_sum(given[i]);
          if (tile::lane_index() % 4 != 0) continue;
          const int at = c * kTokens + 16 * r + tile::acc_row(2 * i);
          w.pairs_of_rows[at] = rows[i];
          w.before[at] = read[i];
          w.after[at] = given[i];
        }
        if (tile::lane_index() == 0) w.through[warp] = through;
      }

      // dQ += D K, dK += D' Q
      __syncthreads();  // P is read
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        tile::each(dp[j], [&](int row, int col, float& x) { x *= factor(j, row, col); });
        acc_to_smem(dp[j], w.p, 16 * r, 32 * c + 16 * j);
      }
      if constexpr (kShared) {
#pragma unroll
        for (int j = 0; j < kHalf / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            dq_sum.x[j][i] += dq.x[j][i];
            dk_sum.x[j][i] += dk.x[j][i];
          }
        }
      }
      __syncthreads();
      Acc<kHalf>& to_dq = kShared ? dq_sum : dq;
      Acc<kHalf>& to_dk = kShared ? dk_sum : dk;
      for (int j = 0; j <= r; ++j) mma_ab<16>(to_dq, w.p, 16 * r, 16 * j, w.k, 16 * j, kHalf * c);
      for (int i = r; i < 4; ++i) mma_atb<16>(to_dk, w.p, 16 * i, 16 * r, w.q, 16 * i, kHalf * c);
      if (gates && warp == 0) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += w.through[i];
        const int64_t at = (int64_t{b} * p.documents.T + piece.begin) * p.H + h;
        sum = finish_gates(sum * w.decay.total(), w.pairs_of_rows, w.pairs_of_cols, w.before,
                           w.after, size, f.dg ? f.dg + at : nullptr, p.H);
        if (f.gate_parts && tile::lane_index() == 0) {
          float& part = f.gate_parts[(int64_t{b} * f.chunks + chunk) * p.H + h];
          part = piece.begin == chunk * kTokens ? sum : part + sum;
        }
      }
      if constexpr (!kShared) {
        dq_sum = dq;
        dk_sum = dk;
      }
    }
    if (f.dq)
      store_acc(dq_sum, f.dq.at(b, piece.begin + 16 * r, hk) + kHalf * c, f.dq.by_token,
                size - 16 * r, p.K - kHalf * c);
    if (f.dk)
      store_acc(dk_sum, f.dk.at(b, piece.begin + 16 * r, hk) + kHalf * c, f.dk.by_token,
                size - 16 * r, p.K - kHalf * c);
  }
}

// dlog_gamma[h] = sum of parts[.., h], a block for each head.
__global__ void __launch_bounds__(256)
    sum_gate_parts(const float* parts, const int count, const int H, float* out) {
  float sum = 0.f;
  for (int i = threadIdx.x; i < count; i += 256) sum += parts[int64_t{i} * H + blockIdx.x];
  sum = tile::block_sum(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <class T>
void launch_states(const CudaProblem<T>& p, const Gradients<T>& f) {
  Arena size;
  StateTiles<T>{size};
  const int parts_k = static_cast<int>(ceil_div(p.K, kPart));
  const int parts_v = static_cast<int>(ceil_div(p.V, kPart));
  const int64_t blocks = int64_t{p.documents.N} * p.H * parts_k * parts_v;
  if (f.chunks > 1)
    launch(chunk_states<T, false>, blocks, kStateThreads, size.used(), p, f, parts_k, parts_v);
  if (f.chunks > 1 || f.dinitial_state || f.dinitial_z)
    launch(chunk_states<T, true>, blocks, kStateThreads, size.used(), p, f, parts_k, parts_v);
}

template <class T>
void launch_tokens(const CudaProblem<T>& p, const Gradients<T>& f) {
  for_padded_width(p.K, [&]<int K>() {
    Arena size;
    TokenTiles<T, K>{size};
    const int64_t blocks = int64_t{p.B} * f.chunks * (p.H / p.group);
    launch(p.group > 1 ? chunk_gradients<T, K, true> : chunk_gradients<T, K, false>, blocks,
           kTokenThreads, size.used(), p, f);
  });
}

}  // namespace

void Linear::cuda_backward(const Inputs<Tensor>& inputs, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Inputs<Tensor> x = linear::cuda_inputs(inputs);
  const Device device = x.q.device();
  const Tensor cu_seqlens = on_device(o.cu_seqlens, device);
  const Tensor dout = with_rows(dy.o), out = with_rows(saved.o);
  const Tensor dfinal_state = dy.final_state ? dy.final_state.contiguous() : Tensor();
  const Tensor dfinal_z = dy.final_z ? dy.final_z.contiguous() : Tensor();
  const int64_t B = x.v.size(0), T = x.v.size(1), H = x.v.size(2), K = x.q.size(3);
  const int64_t V = x.v.size(3), chunks = ceil_div(T, linear::kTokens);
  const auto make = [&](bool wanted, const Shape& shape, Dtype dtype = Dtype::f32) {
    return wanted ? empty(shape, dtype, device) : Tensor();
  };
  const Tensor states = make(chunks > 1, {B, chunks - 1, H, K, V}, x.q.dtype());
  const Tensor dstates = make(chunks > 1, {B, chunks - 1, H, K, V}, x.q.dtype());
  const Tensor sums = make(chunks > 1 && o.normalize, {B, chunks - 1, H, K});
  const Tensor dsums = make(chunks > 1 && o.normalize, {B, chunks - 1, H, K});
  const Tensor dd = make(o.normalize, {B, T, H});
  const Tensor gate_parts = make(static_cast<bool>(dx.log_gamma), {B, chunks, H});
  if (x.q.is_meta()) return;
  for_cuda_dtype(x.q.dtype(), [&]<class Real>() {
    const CudaProblem<Real> p(x, o, cu_seqlens);
    const Gradients<Real> f{.dout = token_rows<const Real>(dout),
                            .o = token_rows<const Real>(out),
                            .denominator = dptr<const float>(saved.denominator),
                            .dfinal_state = dptr<const float>(dfinal_state),
                            .dfinal_z = dptr<const float>(dfinal_z),
                            .dd = dptr<const float>(dd),
                            .states = dptr<Real>(states),
                            .dstates = dptr<Real>(dstates),
                            .sums = dptr<float>(sums),
                            .dsums = dptr<float>(dsums),
                            .dq = token_rows<Real>(dx.q),
                            .dk = token_rows<Real>(dx.k),
                            .dv = token_rows<Real>(dx.v),
                            .dg = dptr<float>(dx.g),
                            .gate_parts = dptr<float>(gate_parts),
                            .dinitial_state = dptr<float>(dx.initial_state),
                            .dinitial_z = dptr<float>(dx.initial_z),
                            .chunks = static_cast<int>(chunks)};
    if (o.normalize)
      launch(denominator_gradients<Real>, ceil_div(B * T * H, 8), 256, 0, p, f, dptr<float>(dd));
    launch_states(p, f);
    launch_tokens(p, f);
    if (gate_parts)
      launch(sum_gate_parts, H, 256, 0, dptr<const float>(gate_parts), static_cast<int>(B * chunks),
             static_cast<int>(H), dptr<float>(dx.log_gamma));
  });
  check_launch("linear backward");
}

}  // namespace weft::kernels
