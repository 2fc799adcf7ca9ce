// Rows on the GPU, for the operations of this folder: packs of neighbouring elements that move in
// one access, and sums over the lanes that share a row.
#pragma once

#include <cstdint>

#include "core/cuda.cuh"

namespace weft::kernels {

// Elements of T in an access of 16 bytes.
template <class Real>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(Real));

template <class Real, int N>
struct alignas(sizeof(Real) * N) Pack {
  Real at[N];
};

template <int N, class Real>
__device__ __forceinline__ Pack<Real, N> load(const Real* from) {
  return *reinterpret_cast<const Pack<Real, N>*>(from);
}

template <class Real, int N>
__device__ __forceinline__ void store(Real* to, const Pack<Real, N>& pack) {
  *reinterpret_cast<Pack<Real, N>*>(to) = pack;
}

// N neighbouring fp32 numbers, N a power of two, 16 bytes at a time.
template <int N>
__device__ __forceinline__ void store_floats(float* to, const float (&x)[N]) {
  constexpr int kStep = N < 4 ? N : 4;
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    Pack<float, kStep> pack;
#pragma unroll
    for (int k = 0; k < kStep; ++k) pack.at[k] = x[i + k];
    store(to + i, pack);
  }
}

// The sum over `kLanes` neighbouring threads, in each of them: lanes of one warp, or the whole
// block. In a fixed order. Every thread of the block calls it.
template <int kLanes>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int offset = (kLanes < 32 ? kLanes : 32) / 2; offset > 0; offset /= 2)
    x += __shfl_xor_sync(~0u, x, offset);
  if constexpr (kLanes > 32) {
    __shared__ float warps[kLanes / 32];
    __syncthreads();  // of an earlier sum, all have been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int w = 0; w < kLanes / 32; ++w) x += warps[w];
  }
  return x;
}

// May a row be read 16 bytes at a time: `t` [R, D] with rows contiguous, cut into pieces of
// `width`.
template <class Real>
bool by_vectors(const Tensor& t, int64_t width) {
  if (!t) return true;
  const bool strides = t.dims() < 2 || t.stride(0) % kVector<Real> == 0 || t.size(0) <= 1;
  return strides && width % kVector<Real> == 0 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}

}  // namespace weft::kernels
