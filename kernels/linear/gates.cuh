// The gradients of the gates of a piece, from what its tokens say.
#pragma once

#include "kernels/linear/problem.cuh"

namespace weft::kernels::linear {

// dg of gate t = sum of later over tokens >= t + sum of earlier over tokens < t + through, 0 where
// the gate forgets all. By one warp; lane l has those of tokens 2 l and 2 l + 1, `n` of which are
// there.
__device__ inline void put_gates(const SharedDecay<kTokens>& decay, const float (&later)[2],
                                 const float (&earlier)[2], float through, int n, float* dg,
                                 int64_t stride) {
  const int lane = tile::lane_index();
  const float own = later[0] + later[1];
  float suffix = own;
#pragma unroll
  for (int m = 1; m < 32; m <<= 1) {
    const float x = __shfl_down_sync(~0u, suffix, m);
    if (lane + m < 32) suffix += x;
  }
  const float prefix = tile::warp_prefix_sum(earlier[0] + earlier[1]);
  const float from_before = __shfl_up_sync(~0u, prefix, 1);
  const float from_after = __shfl_down_sync(~0u, suffix, 1);
  const float rest = lane < 31 ? from_after : 0.f;
  const float start = (lane > 0 ? from_before : 0.f) + through;
  const float gradient[2] = {rest + own + start, rest + later[1] + (start + earlier[0])};
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (2 * lane + i < n)
      dg[(2 * lane + i) * stride] = decay.resets(2 * lane + i) ? 0.f : gradient[i];
}

}  // namespace weft::kernels::linear
