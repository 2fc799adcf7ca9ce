// What one lane and one warp do: who am I, numbers in and out of bf16, fast exponentials, sums in a
// fixed order. Device code that every tile kernel includes through kernels/tile/tile.cuh.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "core/cuda.cuh"

namespace weft::kernels::tile {

using bf16 = __nv_bfloat16;

inline constexpr float kLog2e = 1.4426950408889634f;  // exp(x) = ex2(kLog2e * x)
inline constexpr float kLn2 = 0.6931471805599453f;    // log(x) = kLn2 * lg2(x)

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) & 31; }
// The same number in every lane, and known to be so: addresses made of it stay in uniform
// registers.
__device__ __forceinline__ int warp_index() {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
}
__device__ __forceinline__ int warp_count() { return static_cast<int>(blockDim.x) / 32; }

// --- Numbers -----------------------------------------------------------------------------------

using weft::from_float;  // float to T, rounded to nearest even
using weft::to_float;

// Two numbers rounded to bf16 in one register, `low` at the lower address.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float low_of(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

// Two neighbours, converted: one access. p is aligned to both.
__device__ __forceinline__ void store_pair(float* p, float a, float b) {
  *reinterpret_cast<float2*>(p) = make_float2(a, b);
}
__device__ __forceinline__ void store_pair(bf16* p, float a, float b) {
  *reinterpret_cast<uint32_t*>(p) = pack_bf16(a, b);
}
__device__ __forceinline__ float2 load_pair(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}
__device__ __forceinline__ float2 load_pair(const bf16* p) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(p);
  return make_float2(low_of(pair), high_of(pair));
}

// --- Functions of one number -------------------------------------------------------------------

// 2^x and log2(x), one instruction each, relative error about 2^-22; denormals are zero.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / (1 + exp(-x)).
__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.f, 1.f + ex2(-kLog2e * x));
}
// log(1 + exp(x)), exact to rounding where it is tiny as well.
__device__ __forceinline__ float softplus(float x) {
  return fmaxf(x, 0.f) + log1pf(ex2(-kLog2e * fabsf(x)));
}

// A log gate as sums of gates take it: one that forgets all, down to -infinity, becomes the least
// number that does so by itself, since infinities have no difference. NaN stays.
__device__ __forceinline__ float summable_gate(float g) {
  constexpr float kForgetsAll = -128.f;  // ex2 of it and of any sum with it is 0
  return g < kForgetsAll ? kForgetsAll : g;
}
// Takes a number's place where the gate of a token forgets all; no computation makes these bits.
inline constexpr uint32_t kResetMark = 0x7fc0babe;
__device__ __forceinline__ float mark_reset(float gate, float x) {
  return gate == 0.f ? __uint_as_float(kResetMark) : x;
}
__device__ __forceinline__ bool is_reset_mark(float x) { return __float_as_uint(x) == kResetMark; }

// --- Reductions: every lane gets the result, the order is fixed ----------------------------------

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x += __shfl_xor_sync(~0u, x, m);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, m));
  return x;
}
// Lanes 4r .. 4r + 3, which hold one row of a tile.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
// Sum of the lanes up to and including this one.
__device__ __forceinline__ float warp_prefix_sum(float x) {
#pragma unroll
  for (int m = 1; m < 32; m <<= 1) {
    const float before = __shfl_up_sync(~0u, x, m);
    if (lane_index() >= m) x += before;
  }
  return x;
}

// Over all threads of the block (a multiple of 32); all must call. Synchronises the block twice.
template <class Combine>
__device__ __forceinline__ float block_reduce(float x, float neutral, Combine combine) {
  __shared__ float of_warp[32];
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x = combine(x, __shfl_xor_sync(~0u, x, m));
  if (lane_index() == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = lane_index() < warp_count() ? of_warp[lane_index()] : neutral;
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x = combine(x, __shfl_xor_sync(~0u, x, m));
  __syncthreads();  // the next call may write
  return x;
}
__device__ __forceinline__ float block_sum(float x) {
  return block_reduce(x, 0.f, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float block_max(float x) {
  return block_reduce(x, -INFINITY, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace weft::kernels::tile
