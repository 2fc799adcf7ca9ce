// The grid of blocks of a call on the CPU.
#pragma once

#include "core/tensor.h"
#include "kernels/selection/grid.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels::selection {

// T queries behind S keys; cu_seqlens and position, i32 on the CPU, may be absent. The grid points
// into them.
inline BlockGrid grid_on_cpu(int64_t T, int64_t S, int64_t block, const Tensor& cu_seqlens,
                             const Tensor& position) {
  return {T,
          S,
          block,
          cu_seqlens ? cu_seqlens.data<int32_t>() : nullptr,
          document_count(cu_seqlens, 1),
          position ? position.data<int32_t>() : nullptr};
}

}  // namespace weft::kernels::selection
