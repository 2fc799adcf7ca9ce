// What the chunkwise form of the delta rule makes of a chunk before any state is known, for forward and
// backward: the decayed scores, the inverse of the triangular system, and the decays of its tokens.
#pragma once

#include "kernels/common/overwrite.cuh"
#include "kernels/delta/delta.h"

namespace weft::kernels::delta {

using namespace overwrite;

template <class T>
struct Chunks {
  Grid grid;
  int K, group;
  float scale;
  Heads<const T> q, k;
  Heads<const float> beta, g;  // g may be null
  T *inverse, *scores;         // [B, H, T, 64]
  Gate* gates;                 // [B, H, T]
  double* sums;                // [B, H, T]: of the log2 gates, from the piece's start
};

// Sums of the piece's log2 gates in fp64 (a gate of -1000 must not cost the later ones their digits):
// sum[i] of 64, those after the last token equal to its. One warp, two tokens a lane.
template <class T>
__device__ inline void sum_gates(const Chunks<T>& a, const Span& s, int b, int h, double* sum) {
  const int lane = lane_index();
  double two[2] = {0, 0};
  for (int i = 0; i < 2; ++i) {
    const int at = 2 * lane + i;
    if (a.g.data && at < s.n) two[i] = *a.g.at(b, s.begin + at, h) * 1.4426950408889634;
  }
  double both = two[0] + two[1];
#pragma unroll
  for (int m = 1; m < 32; m <<= 1) {
    const double before = __shfl_up_sync(~0u, both, m);
    if (lane >= m) both += before;
  }
  sum[2 * lane] = both - two[1];
  sum[2 * lane + 1] = both;
}

template <class T, int KP>
struct ChunkTiles {
  Smem<T, kChunk, KP> q, k;
  float* system;  // [64, kPitch]: beta (k k') Gamma below the diagonal, then the inverse
  double* sum;    // [64]
  float* beta;    // [64]
  __host__ __device__ explicit ChunkTiles(Arena& arena) {
    q = arena.carve<Smem<T, kChunk, KP>>();
    k = arena.carve<Smem<T, kChunk, KP>>();
    system = arena.carve<float>(kChunk * kPitch);
    sum = arena.carve<double>(kChunk);
    beta = arena.carve<float>(kChunk);
  }
};

template <class T, int KP>
__global__ void __launch_bounds__(128) prepare(const __grid_constant__ Chunks<T> a) {
  Arena arena(dynamic_memory());
  const ChunkTiles<T, KP> x(arena);
  const int h = static_cast<int>(blockIdx.x) % a.grid.H;
  const int chunk = static_cast<int>(blockIdx.x) / a.grid.H % a.grid.chunks;
  const int b = static_cast<int>(blockIdx.x) / a.grid.H / a.grid.chunks;
  const int top = 16 * warp_index(), at = static_cast<int>(threadIdx.x);

  a.grid.for_spans(b, chunk, [&](const Span& s) {
    __syncthreads();  // the piece before is done
    load_tile_async(x.k, a.k.at(b, s.begin, h / a.group), a.k.token, s.n, a.K);
    load_tile_async(x.q, a.q.at(b, s.begin, h / a.group), a.q.token, s.n, a.K);
    async_commit();
    const int64_t token = a.grid.token(b, h, s.begin);
    if (top == 0) sum_gates(a, s, b, h, x.sum);
    if (at >= 64) x.beta[at - 64] = at - 64 < s.n ? *a.beta.at(b, s.begin + at - 64, h) : 0.f;
    async_wait<0>();
    __syncthreads();
    if (at < s.n) {
      const double sum = x.sum[at];
      a.gates[token + at] = {ex2(static_cast<float>(sum)),
                             ex2(static_cast<float>(x.sum[kChunk - 1] - sum)), x.beta[at], 0};
      a.sums[token + at] = sum;
    }
    Acc<kChunk> P, M;
    fill(P, 0.f);
    fill(M, 0.f);
    mma_abt<KP>(P, x.q, top, 0, x.k, 0, 0);
    mma_abt<KP>(M, x.k, top, 0, x.k, 0, 0);
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = top + acc_row(i), c = acc_col(j, i);
        const float gamma = c <= r ? ex2(static_cast<float>(x.sum[r] - x.sum[c])) : 0.f;
        P.x[j][i] = c <= r ? a.scale * gamma * P.x[j][i] : 0.f;
        M.x[j][i] = c < r ? x.beta[r] * gamma * M.x[j][i] : 0.f;
      }
      store_pair(x.system + (top + acc_row(0)) * kPitch + acc_col(j, 0), M.x[j][0], M.x[j][1]);
      store_pair(x.system + (top + acc_row(2)) * kPitch + acc_col(j, 0), M.x[j][2], M.x[j][3]);
    }
    store_acc(P, a.scores + (token + top) * kChunk, kChunk, s.n - top, kChunk);
    __syncthreads();
    invert(x.system);
    store_inverse(x.system, a.inverse + token * kChunk, s.n);
  });
}

// The sizes of a call, and what `prepare` fills.
template <class T>
struct Problem {
  Problem(const Inputs<Delta>& x, const Options<Delta>& o)
      : q(with_rows(x.q)),
        k(with_rows(x.k)),
        v(with_rows(x.v)),
        initial(x.initial_state ? x.initial_state.contiguous() : x.initial_state) {
    const int64_t B = v.size(0), L = v.size(1), H = v.size(2);
    const Device device = v.device();
    grid = make_grid(o.cu_seqlens, v, cu);
    K = static_cast<int>(k.size(3)), V = static_cast<int>(v.size(3));
    group = static_cast<int>(H / k.size(2));
    scale = static_cast<float>(o.factor(K));
    inverse = empty({B, H, L, kChunk}, v.dtype(), device);
    scores = empty({B, H, L, kChunk}, v.dtype(), device);
    gates = empty({B, H, L, 4}, Dtype::f32, device);
    sums = empty({B, H, L}, Dtype::f64, device);
    chunks = {grid,
              K,
              group,
              scale,
              heads<const T>(q),
              heads<const T>(k),
              heads<const float>(x.beta),
              heads<const float>(x.g),
              dptr<T>(inverse),
              dptr<T>(scores),
              reinterpret_cast<Gate*>(dptr<float>(gates)),
              dptr<double>(sums)};
    scan.grid = grid;
    scan.K = K, scan.V = V, scan.group = group, scan.scale = scale;
    scan.q = chunks.q, scan.k = chunks.k;
    scan.inverse = chunks.inverse, scan.scores = chunks.scores, scan.gates = chunks.gates;
    scan.v = heads<const T>(v);
    scan.initial_state = initial ? dptr<float>(initial) : nullptr;
  }
  int64_t chunk_heads() const { return int64_t{grid.B} * grid.chunks * grid.H; }
  // Blocks of a scan.
  int64_t columns() const { return int64_t{grid.count} * grid.H * ceil_div(V, kColumns); }

  template <int KP>
  void prepare_chunks() const {
    Arena count;
    (void)ChunkTiles<T, KP>(count);
    launch(prepare<T, KP>, chunk_heads(), 128, count.used(), chunks);
  }

  Tensor q, k, v, initial, cu, inverse, scores, gates, sums;
  Grid grid;
  int K, V, group;
  float scale;
  Chunks<T> chunks;
  Scan<T> scan{};
};

}  // namespace weft::kernels::delta
