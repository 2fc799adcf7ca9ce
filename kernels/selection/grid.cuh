// The grid of blocks on a GPU, and tensors [B, T, H, K] of any strides.
#pragma once

#include "core/cuda.cuh"
#include "kernels/selection/grid.h"

namespace weft::kernels::selection {

// This thread's number among those of all blocks.
__device__ __forceinline__ int64_t thread_of_grid() {
  return blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
}

template <class Real>
struct AnyHeads {
  Real* data = nullptr;
  int64_t batch = 0, token = 0, head = 0, column = 0;
  __device__ Real& at(int64_t b, int64_t t, int64_t h, int64_t c) const {
    return data[b * batch + t * token + h * head + c * column];
  }
};

template <class Real>
AnyHeads<Real> strided(const Tensor& t) {
  return {dptr<Real>(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// cu_seqlens on the GPU, in memory sized by T alone; absent where it is.
inline Tensor borders_on(const Tensor& cu_seqlens, int64_t T, Device device) {
  if (!cu_seqlens) return {};
  const Tensor there = empty({T + 1}, Dtype::i32, device);
  if (!there.is_meta()) there.slice(0, 0, cu_seqlens.size(0)).copy_from(cu_seqlens.to(device));
  return there;
}

inline BlockGrid grid_on(int64_t T, int64_t S, int64_t block, const Tensor& cu_seqlens,
                         const Tensor& cu_there, const Tensor& position) {
  return {T,
          S,
          block,
          cu_seqlens ? dptr<const int32_t>(cu_there) : nullptr,
          cu_seqlens ? cu_seqlens.size(0) - 1 : 1,
          position ? dptr<const int32_t>(position) : nullptr};
}

}  // namespace weft::kernels::selection
