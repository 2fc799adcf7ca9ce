// The kernels of gated_linear forward: a pass over all tokens (prepare.cuh), then one over the
// sub-chunks of each document, in which a block takes 64 columns of V of one head (`scan`). Each
// warp keeps 16 columns of the state, transposed, in registers, where a channel's decay is a column
// factor.
//   q, k  f32 or bf16; K and V up to 256. Accumulated and carried in f32. The same bits on every
//         run.
// One token alone (a decode step) is one pass over the state (`step`).
#pragma once

#include "kernels/gated_linear/prepare.cuh"

namespace weft::kernels::gated_linear {

using tile::Acc;
using tile::Arena;
using tile::Smem;

inline constexpr int kSlice = 64;     // columns of V of a block
inline constexpr int kThreads = 128;  // 16 columns for each warp

template <class Real>
struct Results {
  TokenRows<Real> o;
  float* final_state;  // absent: not wanted
};

template <class Real, int K>
struct ScanTiles {
  // Two where they fit: the next chunk is fetched while this one is worked on.
  static constexpr int kStages = K * sizeof(Real) <= 512 ? 2 : 1;
  Smem<Real, kTokens, K> q, k;
  Smem<Real, kTokens, kSlice> v;
  Smem<Real, kTokens, kSub> p;
  Smem<float, 8, K> total;

  __host__ __device__ explicit ScanTiles(Arena& arena)
      : q(stages<Smem<Real, kTokens, K>>(arena)),
        k(stages<Smem<Real, kTokens, K>>(arena)),
        v(stages<Smem<Real, kTokens, kSlice>>(arena)),
        p(stages<Smem<Real, kTokens, kSub>>(arena)),
        total(stages<Smem<float, 8, K>>(arena)) {}

 private:
  template <class Tile>
  __host__ __device__ static Tile stages(Arena& arena) {
    const Tile first = arena.carve<Tile>();
    for (int i = 1; i < kStages; ++i) arena.carve<Tile>();
    return first;
  }
};

template <class Real, int K>
__global__ void __launch_bounds__(kThreads) scan(const CudaProblem<Real> p, const Prepared<Real> x,
                                                 const Results<Real> y, const int slices) {
  using S = TransposedState<K>;
  constexpr int kStages = ScanTiles<Real, K>::kStages;
  Arena arena(tile::dynamic_memory());
  const ScanTiles<Real, K> w(arena);
  const int warp = tile::warp_index();
  const int slice = blockIdx.x % slices, h = blockIdx.x / slices % p.H;
  const int n = blockIdx.x / slices / p.H, v0 = slice * kSlice;
  const int b = p.documents.row(n), begin = p.documents.begin(n), end = p.documents.end(n);

  const auto fetch = [&](const GridPiece& piece, int stage) {
    const int t = piece.begin, size = piece.size();
    load_rows_async<kThreads>(stage_of(w.q, stage), x.q_up.at(b, t, h), x.q_up.by_token, size, p.K);
    load_rows_async<kThreads>(stage_of(w.k, stage), x.k_down.at(b, t, h), x.k_down.by_token, size,
                              p.K);
    load_rows_async<kThreads>(stage_of(w.v, stage), p.v.at(b, t, h) + v0, p.v.by_token, size,
                              p.V - v0);
    load_rows_async<kThreads>(stage_of(w.p, stage), x.p.at(b, t, h), x.p.by_token, size, kSub);
    const int subs = (size + kSub - 1) / kSub;
    load_rows_async<kThreads>(stage_of(w.total, stage), x.total.at(b, x.cell(t), h),
                              x.total.by_token, piece.last ? subs - 1 : subs, p.K);
    tile::async_commit();
  };

  S s;
  const int64_t state = (int64_t{n} * p.H + h) * p.K * p.V + v0 + 16 * warp;
  const int columns = p.V - v0 - 16 * warp;  // of this warp that exist
  s.load(p.initial_state ? p.initial_state + state : nullptr, p.K, p.V, columns);

  GridPiece piece = p.documents.from(begin, end, begin);
  if constexpr (kStages > 1) fetch(piece, 0);
  for (int turn = 0;; ++turn) {
    const int stage = kStages > 1 ? turn & 1 : 0;
    const auto q = stage_of(w.q, stage), k = stage_of(w.k, stage);
    const auto values = stage_of(w.v, stage);
    const auto scores = stage_of(w.p, stage);
    const auto total = stage_of(w.total, stage);
    if constexpr (kStages == 1) {
      __syncthreads();
      fetch(piece, 0);
    }
    tile::async_wait<0>();
    __syncthreads();
    if (!piece.last) {
      if constexpr (kStages > 1) fetch(p.documents.from(begin, end, piece.end), 1 - stage);
    } else if (y.final_state) {
      const int sub = (piece.size() - 1) / kSub;
      for (int d = threadIdx.x; d < p.K; d += kThreads)
        total.at(sub, d) = decay_over(p, b, h, piece.begin + kSub * sub, piece.end, d);
      __syncthreads();
    }

    for (int i = 0; i < kSubs && kSub * i < piece.size(); ++i) {
      // O' = S' (scale up . Q)' + V' P'
      const auto left = tile::load_frag_t<Real, kSub>(values, kSub * i, 16 * warp);
      Acc<kSub> o;
      fill(o, 0.f);
#pragma unroll
      for (int block = 0; block < S::kBlocks; ++block)
        mma_abt(o, tile::to_frag<Real>(s.s[block]), q, kSub * i, block * S::kWidth);
      mma_abt(o, left, scores, kSub * i, 0);
      // Over this warp's columns of V, which no other warp reads.
      acc_to_smem_t(o, values, kSub * i, 16 * warp);
      // S' = S' . total + V' (down . K)
      if (piece.last && !y.final_state && kSub * (i + 1) >= piece.size()) break;
#pragma unroll
      for (int block = 0; block < S::kBlocks; ++block) {
        tile::each(s.s[block],
                   [&](int, int d, float& value) { value *= total.at(i, block * S::kWidth + d); });
        mma_ab(s.s[block], left, k, kSub * i, block * S::kWidth);
      }
    }
    __syncwarp();
    store_columns(values, 16 * warp, y.o.at(b, piece.begin, h) + v0 + 16 * warp, y.o.by_token,
                  piece.size(), columns);
    if (piece.last) break;
    piece = p.documents.from(begin, end, piece.end);
  }
  if (y.final_state) s.store(y.final_state + state, p.K, p.V, columns);
}

// One token: lanes over columns of V, warps over channels.
inline constexpr int kStepThreads = 256, kStepWarps = kStepThreads / 32;

template <class Real>
__global__ void __launch_bounds__(kStepThreads)
    step(const CudaProblem<Real> p, const Results<Real> y, const int slices) {
  __shared__ float sums[kStepWarps][32];
  const int warp = tile::warp_index(), lane = tile::lane_index();
  const int e = blockIdx.x % slices * 32 + lane, h = blockIdx.x / slices % p.H;
  const int b = blockIdx.x / slices / p.H, hk = h / p.group;
  const Real *const q = p.q.at(b, 0, hk), *const k = p.k.at(b, 0, hk);
  const float* const g = p.g.at(b, 0, h);
  const int64_t row = (int64_t{b} * p.H + h) * p.K;
  const float value = e < p.V ? tile::to_float(p.v.at(b, 0, h)[e]) : 0.f;
  float sum = 0.f;
#pragma unroll 4
  for (int d = warp; d < p.K; d += kStepWarps) {
    if (e >= p.V) break;
    const int64_t at = (row + d) * p.V + e;
    const float before =
        p.initial_state ? tile::ex2(tile::kLog2e * g[d]) * p.initial_state[at] : 0.f;
    const float s = fmaf(tile::to_float(k[d]), value, before);
    sum = fmaf(p.scale * tile::to_float(q[d]), s, sum);
    if (y.final_state) y.final_state[at] = s;
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || e >= p.V) return;
#pragma unroll
  for (int i = 1; i < kStepWarps; ++i) sum += sums[i][lane];
  y.o.at(b, 0, h)[e] = tile::from_float<Real>(sum);
}

template <class Real>
void launch_forward(const CudaProblem<Real>& p, const Prepared<Real>& ready,
                    const Results<Real>& y) {
  if (p.documents.T == 1) {
    const int slices = static_cast<int>(ceil_div(p.V, 32));
    launch(step<Real>, int64_t{p.B} * p.H * slices, kStepThreads, 0, p, y, slices);
    return;
  }
  launch_prepare(p, ready);
  for_padded_width<Real>(p.K, [&]<int K>() {
    Arena size;
    ScanTiles<Real, K>{size};
    const int slices = static_cast<int>(ceil_div(p.V, kSlice));
    launch(scan<Real, K>, int64_t{p.documents.N} * p.H * slices, kThreads, size.used(), p, ready, y,
           slices);
  });
}
extern template void launch_forward(const CudaProblem<float>&, const Prepared<float>&,
                                    const Results<float>&);  // f32.cu

}  // namespace weft::kernels::gated_linear
