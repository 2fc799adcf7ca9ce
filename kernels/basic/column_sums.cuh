// The second stage of sums over rows: parts [count, n] of fp32 -> out [n], in a fixed order.
#pragma once

#include "core/cuda.cuh"

namespace weft::kernels {

// 32 columns a block; thread (c, r) adds rows r, r + 32, ... and the 32 sums are added in order.
template <class T>
__global__ void __launch_bounds__(1024)
    add_columns(const float* parts, int64_t count, int64_t n, T* out) {
  __shared__ float sums[32][33];
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
  out[column] = from_float<T>(sum);
}

template <class T>
void sum_columns(const float* parts, int64_t count, int64_t n, T* out, Device device) {
  if (n > 0)
    add_columns<<<static_cast<unsigned>(ceil_div(n, 32)), dim3(32, 32), 0, cuda_stream(device)>>>(
        parts, count, n, out);
}

}  // namespace weft::kernels
