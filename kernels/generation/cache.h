// Writing what generation remembers where it lies: rows of a cache, states. A step of one token is
// then the same work on the same memory each time.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace weft::kernels {

// ring[:, position % S] = row; ring [1, S, H, K] contiguous, row [1, 1, H, K] of its dtype,
// position i32 [1], all on one device.
void put_row(const Tensor& ring, const Tensor& row, const Tensor& position);

// to = from: contiguous tensors of one shape, dtype and device, none within another.
struct Copy {
  Tensor to, from;
};
void copy_all(const std::vector<Copy>& list);

// The same on a GPU, where those above come to. In builds that have CUDA.
void cuda_put_row(const Tensor& ring, const Tensor& row, const Tensor& position);
void cuda_copy_all(const std::vector<Copy>& list);

}  // namespace weft::kernels
