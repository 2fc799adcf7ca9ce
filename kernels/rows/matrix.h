// Matrices by rows, on any device.
#pragma once

#include "core/tensor.h"

namespace weft::kernels {

// A matrix [R, D] whose rows lie contiguous is used as it is; any other is copied.
inline Tensor with_rows(const Tensor& t) {
  return !t || t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous();
}

}  // namespace weft::kernels
