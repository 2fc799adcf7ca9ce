// The second stage of sums over rows: parts [count, n] of fp32 -> out [n], in a fixed order.
#pragma once

#include "core/cuda.cuh"

namespace weft::kernels {

// 32 columns a block; thread (c, r) adds rows r, r + 32, ... and the 32 sums are added in order.
// The blocks of the second row have the second sum, if there is one.
template <class Real>
__global__ void __launch_bounds__(1024)
    add_columns(const float* first, const float* second, int64_t count, int64_t n, Real* first_out,
                Real* second_out) {
  __shared__ float sums[32][33];
  const float* const parts = blockIdx.y == 0 ? first : second;
  Real* const out = blockIdx.y == 0 ? first_out : second_out;
  if (!out) return;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0;
  if (column < n)
#pragma unroll 8
    for (int64_t r = threadIdx.y; r < count; r += 32) sum += parts[r * n + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= n) return;
  sum = 0;
#pragma unroll
  for (int r = 0; r < 32; ++r) sum += sums[r][threadIdx.x];
  out[column] = from_float<Real>(sum);
}

// An absent sum has a null `out`.
template <class Real>
void sum_columns(const float* parts, int64_t count, int64_t n, Real* out, Device device,
                 const float* second = nullptr, Real* second_out = nullptr) {
  if (n == 0 || (!out && !second_out)) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(n, 32)), second_out ? 2 : 1);
  add_columns<<<grid, dim3(32, 32), 0, cuda_stream(device)>>>(parts, second, count, n, out,
                                                              second_out);
}

}  // namespace weft::kernels
