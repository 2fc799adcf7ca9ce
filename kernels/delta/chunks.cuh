// What the chunkwise form of the delta rule makes of a chunk before any state is known, for forward
// and backward: the decayed scores, the inverse of the triangular system, and the decays of its
// tokens.
#pragma once

#include "kernels/delta/delta.h"
#include "kernels/delta_rule/problem.cuh"

namespace weft::kernels::delta {

using namespace delta_rule;

// A sum of log2 gates in two floats: a gate that forgets all must not cost the later ones their
// digits.
struct GateSum {
  float high = 0, low = 0;
};
__device__ __forceinline__ float decay_between(const GateSum& later, const GateSum& earlier) {
  return ex2((later.high - earlier.high) + (later.low - earlier.low));
}

template <class Real>
struct Chunks {
  Grid grid;
  int K, group;
  float scale;
  Heads<const Real> q, k;
  Heads<const float> beta, g;  // g may be null
  Real *inverse, *scores;      // [B, H, T, kInverseWidth], [B, H, T, 64]
  Gate* gates;                 // [B, H, T]
  GateSum* sums;               // [B, H, T]: of the log2 gates, from the piece's start
};

template <class Real, int KP>
struct ChunkTiles {
  Smem<Real, kChunk, KP> q, k;
  Smem<Real, kChunk, kChunk> scores;  // in the place of q
  float* system;  // [64, kPitch]: beta (k k') Gamma below the diagonal; its inverse
  GateSum* sum;   // [64]
  float* beta;    // [64]
  __host__ __device__ explicit ChunkTiles(Arena& arena) {
    q = arena.carve<Smem<Real, kChunk, KP>>();
    k = arena.carve<Smem<Real, kChunk, KP>>();
    scores.data = q.data;
    system = arena.carve<float>(kChunk * kPitch);
    sum = arena.carve<GateSum>(kChunk);
    beta = arena.carve<float>(kChunk);
  }
};

// Sums of the piece's log2 gates, made in fp64; those after the last token are equal to its. One
// warp, two tokens a lane. Also what the scans need of them.
template <class Real>
__device__ inline void sum_gates(const Chunks<Real>& a, const Span& s, int b, int h, GateSum* sum) {
  const int lane = lane_index();
  double two[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = 2 * lane + i;
    if (a.g.data && at < s.n)
      two[i] = summable_gate(*a.g.at(b, s.begin + at, h)) * 1.4426950408889634;
  }
  double both = two[0] + two[1];
#pragma unroll
  for (int m = 1; m < 32; m <<= 1) {
    const double before = __shfl_up_sync(~0u, both, m);
    if (lane >= m) both += before;
  }
  const double last = __shfl_sync(~0u, both, 31);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = 2 * lane + i;
    const double x = i ? both : both - two[1];
    const auto high = static_cast<float>(x);
    sum[at] = {high, static_cast<float>(x - high)};
    if (at >= s.n) continue;
    const int64_t token = a.grid.token(b, h, s.begin) + at;
    a.gates[token] = {ex2(high), ex2(static_cast<float>(last - x)), *a.beta.at(b, s.begin + at, h),
                      0.f};
    a.sums[token] = sum[at];
  }
}

template <class Real, int KP>
__global__ void __launch_bounds__(128, KP <= 128 && sizeof(Real) == 2 ? 4 : 1)
    prepare(const __grid_constant__ Chunks<Real> a) {
  Arena arena(dynamic_memory());
  const ChunkTiles<Real, KP> x(arena);
  const int top = stripe(), at = static_cast<int>(threadIdx.x);

  a.grid.for_pieces([&](const Span& s, int b, int h) {
    __syncthreads();  // the piece before is done
    load_rows<128>(x.k, a.k.at(b, s.begin, h / a.group), a.k.token, s.n, a.K, at);
    load_rows<128>(x.q, a.q.at(b, s.begin, h / a.group), a.q.token, s.n, a.K, at);
    async_commit();
    if (top == 0) sum_gates(a, s, b, h, x.sum);
    if (at >= 64) x.beta[at - 64] = at - 64 < s.n ? *a.beta.at(b, s.begin + at - 64, h) : 0.f;
    async_wait<0>();
    if constexpr (kWide<Real>) publish();
    __syncthreads();
    Acc<kChunk> P, M;
    fill(P, 0.f);
    fill(M, 0.f);
    rows_abt<KP>(P, x.q, x.k);
    rows_abt<KP>(M, x.k, x.k);
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = top + acc_row(i), c = acc_col(j, i);
        const float gamma = c <= r ? decay_between(x.sum[r], x.sum[c]) : 0.f;
        P.x[j][i] = c <= r ? a.scale * gamma * P.x[j][i] : 0.f;
        M.x[j][i] = c < r ? x.beta[r] * gamma * M.x[j][i] : 0.f;
      }
      store_pair(x.system + (top + acc_row(0)) * kPitch + acc_col(j, 0), M.x[j][0], M.x[j][1]);
      store_pair(x.system + (top + acc_row(2)) * kPitch + acc_col(j, 0), M.x[j][2], M.x[j][3]);
    }
    __syncthreads();  // q has been read
    acc_to_smem(P, x.scores, top, 0);
    __syncwarp();
    const int64_t token = a.grid.token(b, h, s.begin);
    store_rows(x.scores, a.scores + token * kChunk, kChunk, s.n, kChunk);
    invert(x.system);
    store_inverse(x.system, a.inverse + token * kInverseWidth<Real>, s.n);
  });
}

// A call, and what `prepare` fills.
template <class Real>
struct Problem : delta_rule::Problem<Real, Delta, false> {
  Problem(const Inputs<Delta>& x, const Options<Delta>& o)
      : delta_rule::Problem<Real, Delta, false>(x, o),
        sums(empty({this->grid.B, this->grid.H, this->grid.T, 2}, Dtype::f32, x.v.device())),
        chunks{this->grid,
               this->K,
               this->group,
               this->scale,
               this->scan.q,
               this->scan.k,
               heads<const float>(x.beta),
               heads<const float>(x.g),
               dptr<Real>(this->inverse),
               dptr<Real>(this->scores),
               reinterpret_cast<Gate*>(dptr<float>(this->gates)),
               reinterpret_cast<GateSum*>(dptr<float>(sums))} {}

  template <int KP>
  void prepare_chunks() const {
    Arena count;
    (void)ChunkTiles<Real, KP>(count);
    launch(prepare<Real, KP>, this->chunk_heads(), 128, count.used(), chunks);
  }

  Tensor sums;
  Chunks<Real> chunks;
};

}  // namespace weft::kernels::delta
