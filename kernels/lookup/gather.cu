// The scatter sorts positions by their row. The sorted order is cut into chunks of 16 positions: a
// warp adds up, for 32 packs of columns, the runs of equal rows in its chunk, and writes those that
// lie in it whole. What a chunk has of a run that began before it or goes on after it becomes a
// part; a second pass adds the parts of each run in order. However often a row was taken, no warp
// adds more than 16.
#include "kernels/lookup/gather.cuh"
#include "kernels/rows/rows.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kChunk = 16;

template <int kWidth, class Real>
__global__ void __launch_bounds__(kThreads)
    gather(int64_t Q, int D, const int32_t* index, const Real* factor, const Real* from,
           int64_t stride, Real* to) {
  const int64_t q = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (q >= Q) return;
  const Real* const row = from + index[q] * stride;
  const float f = factor ? to_float(factor[q]) : 1;
#pragma unroll 4
  for (int d = static_cast<int>(threadIdx.x) % 32 * kWidth; d < D; d += 32 * kWidth) {
    auto pack = load<kWidth>(row + d);
    if (factor)
#pragma unroll
      for (int k = 0; k < kWidth; ++k) pack.at[k] = from_float<Real>(f * to_float(pack.at[k]));
    store(to + q * D + d, pack);
  }
}

template <class Real>
struct Scatter {
  const int32_t *keys, *positions, *starts;
  const Real *factor, *from;
  int64_t from_stride;
  int repeat;
  float* parts;
  Real* to;
  int64_t Q, R;
  int D, slabs;  // a slab: 32 packs of columns
};

template <int kWidth, class Real>
__device__ __forceinline__ void write(Real* to, const float (&sum)[kWidth]) {
  Pack<Real, kWidth> pack;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) pack.at[k] = from_float<Real>(sum[k]);
  store(to, pack);
}

// Warp (chunk, slab).
template <int kWidth, class Real>
__global__ void __launch_bounds__(kThreads, 3) sum_chunks(const Scatter<Real> a) {
  constexpr int kAhead = 4;  // rows on their way
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t chunk = warp / a.slabs, first = chunk * kChunk;
  if (first >= a.Q) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int d = (static_cast<int>(warp % a.slabs) * 32 + lane) * kWidth;
  const bool mine = d < a.D;
  const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), a.Q - first));

  const int key = lane < count ? a.keys[first + lane] : -1;
  const int position = lane < count ? a.positions[first + lane] : 0;
  const float factor = a.factor && lane < count ? to_float(a.factor[position]) : 1;
  const int before = first > 0 ? a.keys[first - 1] : -1;
  const int after = first + count < a.Q ? a.keys[first + count] : -1;

  float sum[kWidth] = {};
#pragma unroll 1
  for (int i = 0; i < count; i += kAhead) {
    Pack<Real, kWidth> rows[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t row = __shfl_sync(~0u, position, i + j) / a.repeat;
      if (mine && i + j < count) rows[j] = load<kWidth>(a.from + row * a.from_stride + d);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const float f = __shfl_sync(~0u, factor, i + j);
      const int run = __shfl_sync(~0u, key, i + j);
      const int next = __shfl_sync(~0u, key, (i + j + 1) % 32);
      if (i + j >= count) break;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] += f * to_float(rows[j].at[k]);
      const bool last = i + j + 1 == count;
      if (!last && next == run) continue;
      const bool earlier = run == before, later = last && run == after;
      if (mine && (earlier || later))
        store_floats(a.parts + (chunk * 2 + (earlier ? 0 : 1)) * a.D + d, sum);
      else if (mine)
        write(a.to + static_cast<int64_t>(run) * a.D + d, sum);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] = 0;
    }
  }
}

// Block (chunk, slab): the run that begins in the chunk and goes on after it. Its parts are shared
// out among the warps, and the warps' sums are added in order.
template <int kWidth, class Real>
__global__ void __launch_bounds__(kThreads) join_parts(const Scatter<Real> a) {
  __shared__ float sums[kWarps][32][kWidth];
  const int64_t chunk = blockIdx.x / a.slabs, first = chunk * kChunk, end = first + kChunk;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int d = (static_cast<int>(blockIdx.x % a.slabs) * 32 + lane) * kWidth;
  if (end >= a.Q) return;
  const int run = a.keys[end - 1];
  if (a.keys[end] != run || a.starts[run] < first) return;
  const int64_t count = (a.starts[run + 1] - 1) / kChunk - chunk;  // of parts after the first
  const int64_t share = (count + kWarps - 1) / kWarps;
  const int64_t begin = min(count, warp * share), stop = min(count, begin + share);
  float sum[kWidth] = {};
  if (d < a.D) {
    if (warp == 0) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] = a.parts[(chunk * 2 + 1) * a.D + d + k];
    }
#pragma unroll 4
    for (int64_t c = begin; c < stop; ++c) {
      const float* const part = a.parts + (chunk + 1 + c) * 2 * a.D + d;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sum[k] += part[k];
    }
  }
#pragma unroll
  for (int k = 0; k < kWidth; ++k) sums[warp][lane][k] = sum[k];
  __syncthreads();
  if (warp > 0 || d >= a.D) return;
  for (int w = 1; w < kWarps; ++w)
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum[k] += sums[w][lane][k];
  write(a.to + static_cast<int64_t>(run) * a.D + d, sum);
}

// Rows that nobody took.
template <int kWidth, class Real>
__global__ void __launch_bounds__(kThreads) clear_others(const Scatter<Real> a) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t row = warp / a.slabs;
  const int d =
      (static_cast<int>(warp % a.slabs) * 32 + static_cast<int>(threadIdx.x) % 32) * kWidth;
  if (row >= a.R || d >= a.D || a.starts[row] < a.starts[row + 1]) return;
  const float none[kWidth] = {};
  write(a.to + row * a.D + d, none);
}

unsigned blocks_for(int64_t warps) { return static_cast<unsigned>(ceil_div(warps, kWarps)); }

}  // namespace

template <class Real>
void gather_rows(int64_t Q, int64_t D, const int32_t* index, const Real* factor, const Tensor& from,
                 Real* to, Device device) {
  if (Q == 0 || D == 0) return;
  const auto launch = [&]<int kWidth>() {
    gather<kWidth><<<blocks_for(Q), kThreads, 0, cuda_stream(device)>>>(
        Q, static_cast<int>(D), index, factor, dptr<Real>(from), from.stride(0), to);
  };
  if (by_vectors<Real>(from, D))
    launch.template operator()<kVector<Real>>();
  else
    launch.template operator()<1>();
  check_launch("gather of rows");
}
template void gather_rows(int64_t, int64_t, const int32_t*, const float*, const Tensor&, float*,
                          Device);
template void gather_rows(int64_t, int64_t, const int32_t*, const __nv_bfloat16*, const Tensor&,
                          __nv_bfloat16*, Device);

ScatterRows::ScatterRows(int64_t Q, int64_t R, int64_t D, Device device)
    : Q_(Q),
      R_(R),
      D_(D),
      device_(device),
      sorted_(Q, R, device),
      starts_(empty({R + 1}, Dtype::i32, device)),
      parts_(empty({ceil_div(Q, kChunk), 2, D}, Dtype::f32, device)) {}

template <class Real>
void ScatterRows::run(const int32_t* index, const Real* factor, const Tensor& from, int repeat,
                      Real* to) const {
  if (R_ == 0 || D_ == 0) return;
  sorted_.run(index);
  starts_of(sorted_.keys(), Q_, R_, dptr<int32_t>(starts_), device_);
  const auto launch = [&]<int kWidth>() {
    const auto slabs = static_cast<int>(ceil_div(D_, 32 * kWidth));
    const Scatter<Real> a{.keys = sorted_.keys(),
                          .positions = sorted_.positions(),
                          .starts = dptr<int32_t>(starts_),
                          .factor = factor,
                          .from = dptr<Real>(from),
                          .from_stride = from.stride(0),
                          .repeat = repeat,
                          .parts = dptr<float>(parts_),
                          .to = to,
                          .Q = Q_,
                          .R = R_,
                          .D = static_cast<int>(D_),
                          .slabs = slabs};
    const cudaStream_t stream = cuda_stream(device_);
    const int64_t warps = ceil_div(Q_, kChunk) * slabs;
    if (Q_ > 0) sum_chunks<kWidth><<<blocks_for(warps), kThreads, 0, stream>>>(a);
    if (Q_ > kChunk) join_parts<kWidth><<<static_cast<unsigned>(warps), kThreads, 0, stream>>>(a);
    clear_others<kWidth><<<blocks_for(R_ * slabs), kThreads, 0, stream>>>(a);
  };
  if (by_vectors<Real>(from, D_))
    launch.template operator()<kVector<Real>>();
  else
    launch.template operator()<1>();
  check_launch("scatter of rows");
}
template void ScatterRows::run(const int32_t*, const float*, const Tensor&, int, float*) const;
template void ScatterRows::run(const int32_t*, const __nv_bfloat16*, const Tensor&, int,
                               __nv_bfloat16*) const;

}  // namespace weft::kernels
