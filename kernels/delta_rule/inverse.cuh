// The inverse of a chunk's triangular system, for delta and kda: found in fp32 by a block of 128
// threads, and stored as operands.
#pragma once

#include "kernels/delta_rule/delta_rule.cuh"

namespace weft::kernels::delta_rule {

// out = sign * A B, N x N each, rows kPitch apart, by 4 N threads: a row's quarter each.
inline constexpr int kPitch = kChunk + 4;
template <int N>
__device__ __forceinline__ void small_product(const float* A, const float* B, float* out,
                                              float sign, int rank) {
  const int r = rank / 4, c = rank % 4 * (N / 4);
  float sum[N / 4] = {};
#pragma unroll 2
  for (int k = 0; k < N; k += 4) {
    const float4 four = *reinterpret_cast<const float4*>(A + r * kPitch + k);
    const float left[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < N / 4; j += 4) {
        const float4 right = *reinterpret_cast<const float4*>(B + (k + i) * kPitch + c + j);
        sum[j] = fmaf(left[i], right.x, sum[j]);
        sum[j + 1] = fmaf(left[i], right.y, sum[j + 1]);
        sum[j + 2] = fmaf(left[i], right.z, sum[j + 2]);
        sum[j + 3] = fmaf(left[i], right.w, sum[j + 3]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < N / 4; j += 4) {
    *reinterpret_cast<float4*>(out + r * kPitch + c + j) =
        make_float4(sign * sum[j], sign * sum[j + 1], sign * sum[j + 2], sign * sum[j + 3]);
  }
}

// The inverse of 1 + L, L [64, 64] strictly lower triangular in shared memory, in its place. Zeros
// must lie above the diagonal in each block of 32; what lies to the right of those is scratch. 128
// threads. By substitution in fp32 for blocks of 16 on the diagonal, then X21 = -X22 (L21 X11) for
// blocks of 16 and of 32: powers of L lose all digits where keys are alike, substitution does not.
__device__ inline void invert(float* L) {
  constexpr int kSmall = 16, kDiagonal = kPitch + 1;
  const int warp = warp_index(), lane = lane_index(), rank = static_cast<int>(threadIdx.x);
  float* const block = L + warp * kSmall * kDiagonal;
  float x[kSmall];  // this lane's column; lanes 16 .. 31 do as lanes 0 .. 15
#pragma unroll
  for (int r = 0; r < kSmall; ++r) {
    float sum[4] = {r == lane % kSmall ? 1.f : 0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int s = 0; s < r; s += 4) {
      const float4 row = *reinterpret_cast<const float4*>(block + r * kPitch + s);
      const float l[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (s + i < r) sum[i] = fmaf(-l[i], x[s + i], sum[i]);
      }
    }
    x[r] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kSmall; ++r) {
    if (lane < kSmall) block[r * kPitch + lane] = x[r];
  }
  __syncthreads();
  float* const scratch = L + 2 * kSmall;
  float* const pair = L + rank / 64 * 2 * kSmall * kDiagonal;
  float* const L21 = pair + kSmall * kPitch;
  small_product<kSmall>(L21, pair, scratch + rank / 64 * kSmall * kPitch, 1.f, rank % 64);
  __syncthreads();
  small_product<kSmall>(pair + kSmall * kDiagonal, scratch + rank / 64 * kSmall * kPitch, L21, -1.f,
                        rank % 64);
  __syncthreads();
  float* const lower = L + 2 * kSmall * kPitch;
  small_product<2 * kSmall>(lower, L, scratch, 1.f, rank);
  __syncthreads();
  small_product<2 * kSmall>(L + 2 * kSmall * kDiagonal, scratch, lower, -1.f, rank);
  __syncthreads();
}

// Rows r < n of the inverse to global [n, kInverseWidth], zeros above the diagonal. 128 threads.
template <class Real>
__device__ inline void store_inverse(const float* X, Real* global, int n) {
  constexpr int kUnit = 16 / static_cast<int>(sizeof(Real)), kUnits = kChunk / kUnit;
#pragma unroll 2
  for (int at = static_cast<int>(threadIdx.x); at < n * kUnits; at += 128) {
    const int r = at / kUnits, c = at % kUnits * kUnit;
    Real* const to = global + r * kInverseWidth<Real> + c;
    float x[kUnit];
    alignas(16) Real unit[kUnit];
#pragma unroll
    for (int i = 0; i < kUnit; ++i) x[i] = c + i <= r ? X[r * kPitch + c + i] : 0.f;
#pragma unroll
    for (int part = 0; part < kInverses<Real>; ++part) {
#pragma unroll
      for (int i = 0; i < kUnit; i += 2) {
        store_pair(unit + i, x[i], x[i + 1]);
        x[i] -= to_float(unit[i]);
        x[i + 1] -= to_float(unit[i + 1]);
      }
      *reinterpret_cast<uint4*>(to + part * kChunk) = *reinterpret_cast<const uint4*>(unit);
    }
  }
}

}  // namespace weft::kernels::delta_rule
