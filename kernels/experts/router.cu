// The router on the GPU: a warp a row. Sums over rows are made in slices of them, then over slices
// in order; the slots of an expert are counted in integers, which any order adds up to the same.
#include "kernels/experts/routing.h"
#include "kernels/rows/matrix.h"
#include "kernels/tile/warp.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kRouteBlocks = 528;  // few, for each counts the slots of all experts
constexpr int64_t kMaxExperts = 8192, kMaxChosen = 512;

// A warp's largest number, of equal ones that of the lowest expert; expert < 0: none.
struct Best {
  float value = -INFINITY;
  int expert = -1;

  // Is it before `other` in the order of choice?
  __device__ __forceinline__ bool before(const Best& other) const {
    if (other.expert < 0 || expert < 0) return expert >= 0;
    return value > other.value || (value == other.value && expert < other.expert);
  }
};

__device__ __forceinline__ Best of_warp(Best best) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) {
    const Best other{__shfl_xor_sync(~0u, best.value, m), __shfl_xor_sync(~0u, best.expert, m)};
    if (other.before(best)) best = other;
  }
  return best;
}

// The log-sum-exp of a row, in every lane.
template <class Real>
__device__ __forceinline__ float log_sum(const Real* row, int E) {
  float most = -INFINITY, sum = 0;
  for (int e = tile::lane_index(); e < E; e += 32) most = fmaxf(most, to_float(row[e]));
  most = tile::warp_max(most);
  for (int e = tile::lane_index(); e < E; e += 32) sum += expf(to_float(row[e]) - most);
  return most + logf(tile::warp_sum(sum));
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    route(const Real* logits, int64_t stride, int64_t R, int E, int k, bool normalize, bool forced,
          int32_t* index, Real* weight, float* lse, int32_t* counts) {
  extern __shared__ int32_t of_block[];  // [E]
  for (int e = threadIdx.x; e < E; e += kThreads) of_block[e] = 0;
  __syncthreads();
  const int lane = tile::lane_index();
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; r < R;
       r += warps) {
    const Real* const row = logits + r * stride;
    int32_t* const chosen = index + r * k;
    const float all = log_sum(row, E);
    if (lane == 0) lse[r] = all;

    float most = 0, total = 0;
    Best last;
    for (int j = 0; j < k; ++j) {
      Best best;
      if (!forced) {
        for (int e = lane; e < E; e += 32) {
          const Best one{to_float(row[e]), e};
          if ((last.expert < 0 || last.before(one)) && one.before(best)) best = one;
        }
        best = of_warp(best);
      } else {
        best = {to_float(row[chosen[j]]), chosen[j]};
      }
      last = best;
      if (lane == 0) {
        chosen[j] = best.expert;
        atomicAdd(&of_block[best.expert], 1);
      }
      most = j == 0 ? best.value : fmaxf(most, best.value);
    }
    __syncwarp();
    // Relative to the largest chosen, so that weights are exact where all of p is tiny.
    const float from = normalize ? most : all;
    for (int j = lane; j < k; j += 32) total += expf(to_float(row[chosen[j]]) - from);
    total = normalize ? tile::warp_sum(total) : 1;
    for (int j = lane; j < k; j += 32)
      weight[r * k + j] = from_float<Real>(expf(to_float(row[chosen[j]]) - from) / total);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < E; e += kThreads)
    if (of_block[e] > 0) atomicAdd(&counts[e], of_block[e]);
}

// parts[slice, e] = the sum of p[r, e] over the rows of a slice. Blocks of 32 experts by 8 rows.
template <class Real>
__global__ void __launch_bounds__(kThreads)
    sum_probabilities(const Real* logits, int64_t stride, int64_t R, int E, const float* lse,
                      int64_t rows, float* parts) {
  __shared__ float sums[8][33];
  const int e = blockIdx.x * 32 + threadIdx.x;
  const int64_t begin = blockIdx.y * rows, end = min(R, begin + rows);
  float sum = 0;
  if (e < E)
    for (int64_t r = begin + threadIdx.y; r < end; r += 8)
      sum += expf(to_float(logits[r * stride + e]) - lse[r]);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || e >= E) return;
  for (int i = 1; i < 8; ++i) sum += sums[i][threadIdx.x];
  parts[static_cast<int64_t>(blockIdx.y) * E + e] = sum;
}

// One block: balance and z.
__global__ void __launch_bounds__(1024)
    losses(const float* parts, int64_t slices, int64_t R, int E, int k, const int32_t* counts,
           const float* lse, float* balance, float* z) {
  const float rows = static_cast<float>(max(R, int64_t{1}));
  float even = 0, squares = 0;
  for (int e = threadIdx.x; e < E; e += 1024) {
    float sum = 0;
#pragma unroll 8
    for (int64_t s = 0; s < slices; ++s) sum += parts[s * E + e];
    even += static_cast<float>(counts[e]) / (rows * k) * (sum / rows);
  }
#pragma unroll 8
  for (int64_t r = threadIdx.x; r < R; r += 1024) squares += lse[r] * lse[r];
  even = tile::block_sum(even);
  squares = tile::block_sum(squares);
  if (threadIdx.x > 0) return;
  *balance = static_cast<float>(E) * even;
  *z = squares / rows;
}

template <class Real>
struct RouterBackward {
  const Real* logits;
  int64_t stride;
  const int32_t *index, *counts;
  const float* lse;
  const Real* dweight;
  const float *dbalance, *dz;  // [1], may be null
  Real* dlogits;
  int64_t R;
  int E, k;
  bool normalize;
};

// The formulas stand in router.cpp. A warp a row; its gradients of chosen logits in shared memory.
template <class Real>
__global__ void __launch_bounds__(kThreads) route_backward(const RouterBackward<Real> a) {
  extern __shared__ float chosen_flow[];  // [kWarps, k]
  const int lane = tile::lane_index();
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (r >= a.R) return;
  const Real* const row = a.logits + r * a.stride;
  const int32_t* const chosen = a.index + r * a.k;
  const Real* const du = a.dweight + r * a.k;
  float* const flow = chosen_flow + threadIdx.x / 32 * a.k;
  const float lse = a.lse[r], rows = static_cast<float>(a.R);

  float most = a.normalize ? -INFINITY : lse, total = 0, along = 0;
  if (a.normalize) {
    for (int j = lane; j < a.k; j += 32) most = fmaxf(most, to_float(row[chosen[j]]));
    most = tile::warp_max(most);
  }
  for (int j = lane; j < a.k; j += 32) {
    flow[j] = expf(to_float(row[chosen[j]]) - most);
    total += flow[j];
    along += flow[j] * to_float(du[j]);
  }
  total = a.normalize ? tile::warp_sum(total) : 1;
  along = tile::warp_sum(along) / total;
  for (int j = lane; j < a.k; j += 32)
    flow[j] = flow[j] / total * (to_float(du[j]) - (a.normalize ? along : 0));
  __syncwarp();

  const float slots = rows * static_cast<float>(a.k);
  const float dbalance = a.dbalance ? *a.dbalance * static_cast<float>(a.E) / rows : 0;
  float mean = 0;
  if (dbalance != 0)
    for (int e = lane; e < a.E; e += 32)
      mean += expf(to_float(row[e]) - lse) * static_cast<float>(a.counts[e]) / slots;
  mean = tile::warp_sum(mean);
  const float dz = a.dz ? 2 * *a.dz / rows : 0;
  const float all = dz * lse - dbalance * mean - (a.normalize ? 0 : along);
  for (int e = lane; e < a.E; e += 32) {
    float d =
        expf(to_float(row[e]) - lse) * (dbalance * static_cast<float>(a.counts[e]) / slots + all);
    for (int j = 0; j < a.k; ++j)
      if (chosen[j] == e) d += flow[j];
    a.dlogits[r * a.E + e] = from_float<Real>(d);
  }
}

unsigned blocks_for(int64_t rows) { return static_cast<unsigned>(ceil_div(rows, kWarps)); }

}  // namespace

void Router::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved) {
  const Device device = x.logits.device();
  const int64_t R = x.logits.size(0), E = x.logits.size(1), k = o.top_k;
  require(E <= kMaxExperts && k <= kMaxChosen, "router: ", E, " experts of which a row takes ", k,
          "; on a GPU at most ", kMaxExperts, " and ", kMaxChosen);
  const Tensor logits = with_rows(x.logits);
  const Tensor index = o.index ? o.index.to(device) : empty({R, k}, Dtype::i32, device);
  const Tensor lse = empty({R}, Dtype::f32, device), counts = empty({E}, Dtype::i32, device);
  const int64_t slices = std::clamp<int64_t>(ceil_div(R, 128), 1, 256);
  const Tensor parts = empty({slices, E}, Dtype::f32, device);
  if (saved) *saved = {index, lse, counts};
  if (!o.forced) index.mark_written();
  if (device.is_meta()) return;
  const cudaStream_t stream = cuda_stream(device);
  counts.zero();
  for_cuda_dtype(logits.dtype(), [&]<class Real>() {
    if (R > 0)
      route<<<std::min(blocks_for(R), kRouteBlocks), kThreads, E * sizeof(int32_t), stream>>>(
          dptr<const Real>(logits), logits.stride(0), R, static_cast<int>(E), static_cast<int>(k),
          o.normalize, o.forced, dptr<int32_t>(index), dptr<Real>(y.weight), dptr<float>(lse),
          dptr<int32_t>(counts));
    const dim3 grid(static_cast<unsigned>(ceil_div(E, 32)), static_cast<unsigned>(slices));
    sum_probabilities<<<grid, dim3(32, 8), 0, stream>>>(dptr<const Real>(logits), logits.stride(0),
                                                        R, static_cast<int>(E), dptr<float>(lse),
                                                        ceil_div(R, slices), dptr<float>(parts));
  });
  losses<<<1, 1024, 0, stream>>>(dptr<float>(parts), slices, R, static_cast<int>(E),
                                 static_cast<int>(k), dptr<int32_t>(counts), dptr<float>(lse),
                                 dptr<float>(y.balance), dptr<float>(y.z));
  check_launch("router forward");
  if (o.index && !o.forced && o.index.device() != device) o.index.copy_from(index);
}

void Router::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (!dx.logits) return;
  const Tensor logits = with_rows(x.logits), flow = dy.weight.contiguous();
  const int64_t R = logits.size(0);
  if (logits.is_meta() || R == 0) return;
  for_cuda_dtype(logits.dtype(), [&]<class Real>() {
    const RouterBackward<Real> a{.logits = dptr<Real>(logits),
                                 .stride = logits.stride(0),
                                 .index = dptr<int32_t>(saved.index),
                                 .counts = dptr<int32_t>(saved.counts),
                                 .lse = dptr<float>(saved.lse),
                                 .dweight = dptr<Real>(flow),
                                 .dbalance = dptr<float>(dy.balance),
                                 .dz = dptr<float>(dy.z),
                                 .dlogits = dptr<Real>(dx.logits),
                                 .R = R,
                                 .E = static_cast<int>(logits.size(1)),
                                 .k = static_cast<int>(o.top_k),
                                 .normalize = o.normalize};
    route_backward<<<blocks_for(R), kThreads, kWarps * o.top_k * sizeof(float),
                     cuda_stream(logits.device())>>>(a);
  });
  check_launch("router backward");
}

}  // namespace weft::kernels
