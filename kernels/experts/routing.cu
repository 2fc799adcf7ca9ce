// The moves of rows around experts on the GPU: nothing here is known to the host but shapes.
#include "kernels/experts/routing.h"

#include <optional>

#include "kernels/lookup/gather.cuh"
#include "kernels/rows/matrix.h"
#include "kernels/rows/rows.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

unsigned blocks_for(int64_t warps) { return static_cast<unsigned>(ceil_div(warps, kWarps)); }

__device__ __forceinline__ int64_t warp_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
}

// A warp a row r: to[r] = sum over j of weight[r, j] from[index[r k + j]].
template <int kWidth, class Real>
__global__ void __launch_bounds__(kThreads)
    combine(int64_t R, int k, int D, const int32_t* index, const Real* weight, const Real* from,
            int64_t stride, Real* to) {
  const int64_t r = warp_of_grid();
  if (r >= R) return;
  for (int d = static_cast<int>(threadIdx.x) % 32 * kWidth; d < D; d += 32 * kWidth) {
    float sum[kWidth] = {};
#pragma unroll 4
    for (int j = 0; j < k; ++j) {
      const float w = to_float(weight[r * k + j]);
      const auto pack = load<kWidth>(from + index[r * k + j] * stride + d);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] += w * to_float(pack.at[i]);
    }
    Pack<Real, kWidth> out;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out.at[i] = from_float<Real>(sum[i]);
    store(to + r * D + d, out);
  }
}

// A warp a q: to[q] = a[q / repeat] . b[index[q]].
template <int kWidth, class Real>
__global__ void __launch_bounds__(kThreads)
    dots(int64_t Q, int repeat, int D, const int32_t* index, const Real* a, int64_t a_stride,
         const Real* b, int64_t b_stride, Real* to) {
  const int64_t q = warp_of_grid();
  if (q >= Q) return;
  const Real* const row = a + q / repeat * a_stride;
  const Real* const other = b + index[q] * b_stride;
  float sum = 0;
#pragma unroll 4
  for (int d = static_cast<int>(threadIdx.x) % 32 * kWidth; d < D; d += 32 * kWidth) {
    const auto x = load<kWidth>(row + d), y = load<kWidth>(other + d);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += to_float(x.at[i]) * to_float(y.at[i]);
  }
  sum = sum_lanes<32>(sum);
  if (threadIdx.x % 32 == 0) to[q] = from_float<Real>(sum);
}

template <class Real>
void launch_dots(const Tensor& index, int repeat, const Tensor& a, const Tensor& b,
                 const Tensor& to) {
  const int64_t Q = index.size(0), D = b.size(1);
  if (Q == 0) return;
  const auto launch = [&]<int kWidth>() {
    dots<kWidth><<<blocks_for(Q), kThreads, 0, cuda_stream(to.device())>>>(
        Q, repeat, static_cast<int>(D), dptr<int32_t>(index), dptr<Real>(a), a.stride(0),
        dptr<Real>(b), b.stride(0), dptr<Real>(to));
  };
  if (by_vectors<Real>(a, D) && by_vectors<Real>(b, D))
    launch.template operator()<kVector<Real>>();
  else
    launch.template operator()<1>();
  check_launch("gradient of row weights");
}

__global__ void place(int64_t n, int k, const int32_t* positions, int32_t* token, int32_t* slot) {
  const int64_t q = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (q >= n) return;
  const int32_t at = positions[q];
  token[q] = at / k;
  slot[at] = static_cast<int32_t>(q);
}

}  // namespace

ExpertOrder cuda_sorted_by_expert(const Tensor& index, int64_t E) {
  const int64_t n = index.numel();
  const Device device = index.device();
  const ExpertOrder order{empty({n}, Dtype::i32, device), empty({n}, Dtype::i32, device),
                          empty({E + 1}, Dtype::i64, device)};
  const Tensor keys = index.contiguous();
  const SortByKey sorted(n, E, device);
  if (device.is_meta()) return order;
  sorted.run(dptr<int32_t>(keys));
  starts_of(sorted.keys(), n, E, dptr<int64_t>(order.offsets), device);
  if (n > 0)
    place<<<static_cast<unsigned>(ceil_div(n, 256)), 256, 0, cuda_stream(device)>>>(
        n, static_cast<int>(index.size(1)), sorted.positions(), dptr<int32_t>(order.token),
        dptr<int32_t>(order.slot));
  check_launch("order of experts");
  return order;
}

void PermuteRows::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                               Saved*) {
  const Device device = x.x.device();
  const Tensor in = with_rows(x.x), index = o.index.to(device).contiguous();
  const Tensor weight = x.weight ? x.weight.contiguous() : Tensor();
  if (device.is_meta()) return;
  for_cuda_dtype(in.dtype(), [&]<class Real>() {
    gather_rows<Real>(index.size(0), in.size(1), dptr<int32_t>(index), dptr<Real>(weight), in,
                      dptr<Real>(y.y), device);
  });
}

void PermuteRows::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Device device = x.x.device();
  const Tensor in = with_rows(x.x), d = with_rows(dy.y), index = o.index.to(device).contiguous();
  const Tensor weight = x.weight ? x.weight.contiguous() : Tensor();
  std::optional<ScatterRows> scatter;
  if (dx.x) scatter.emplace(index.size(0), in.size(0), in.size(1), device);
  if (device.is_meta()) return;
  for_cuda_dtype(in.dtype(), [&]<class Real>() {
    if (scatter)
      scatter->run<Real>(dptr<int32_t>(index), dptr<Real>(weight), d, 1, dptr<Real>(dx.x));
    if (dx.weight) launch_dots<Real>(index, 1, d, in, dx.weight);
  });
}

void CombineRows::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                               Saved*) {
  const Device device = x.x.device();
  const Tensor in = with_rows(x.x), weight = x.weight.contiguous();
  const Tensor index = o.index.to(device).contiguous();
  if (device.is_meta() || y.y.numel() == 0) return;
  for_cuda_dtype(in.dtype(), [&]<class Real>() {
    const int64_t R = weight.size(0), D = in.size(1);
    const auto launch = [&]<int kWidth>() {
      combine<kWidth><<<blocks_for(R), kThreads, 0, cuda_stream(device)>>>(
          R, static_cast<int>(weight.size(1)), static_cast<int>(D), dptr<int32_t>(index),
          dptr<Real>(weight), dptr<Real>(in), in.stride(0), dptr<Real>(y.y));
    };
    if (by_vectors<Real>(in, D))
      launch.template operator()<kVector<Real>>();
    else
      launch.template operator()<1>();
  });
  check_launch("combine_rows forward");
}

void CombineRows::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Device device = x.x.device();
  const Tensor in = with_rows(x.x), d = with_rows(dy.y), index = o.index.to(device).contiguous();
  const Tensor weight = x.weight.contiguous();
  const auto k = static_cast<int>(weight.size(1));
  std::optional<ScatterRows> scatter;
  if (dx.x) scatter.emplace(index.size(0), in.size(0), in.size(1), device);
  if (device.is_meta()) return;
  for_cuda_dtype(in.dtype(), [&]<class Real>() {
    if (scatter)
      scatter->run<Real>(dptr<int32_t>(index), dptr<Real>(weight), d, k, dptr<Real>(dx.x));
    if (dx.weight) launch_dots<Real>(index, k, d, in, dx.weight);
  });
}

}  // namespace weft::kernels
