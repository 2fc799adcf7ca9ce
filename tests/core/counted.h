// A tensor whose numbers tell where they stand.
#pragma once

#include "core/tensor.h"

namespace weft::tests {

// 0, 1, 2, ... in row-major order, on the CPU.
inline Tensor counted(const Shape& shape, Dtype dtype = Dtype::f64) {
  const Tensor t = empty(shape, Dtype::f64);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = static_cast<double>(i);
  return t.to(dtype);
}

}  // namespace weft::tests
