// What the CPU and the CUDA forms of pointwise.h share.
#pragma once

#include "core/tensor.h"

namespace weft::kernels {

enum class Pointwise { add, multiply };

// Sizes before, of and after a dimension.
struct Around {
  int64_t before = 1, size = 1, after = 1;
};
inline Around around(const Shape& shape, int dim) {
  Around a;
  const int at = dim < 0 ? dim + shape.dims() : dim;
  for (int i = 0; i < shape.dims(); ++i)
    (i < at ? a.before : i == at ? a.size : a.after) *= shape[i];
  return a;
}

// All tensors contiguous.
void cuda_pointwise(Pointwise what, const Tensor& a, const Tensor& b, const Tensor& out);
void cuda_scaled(const Tensor& x, double factor, const Tensor& out);
void cuda_along(Pointwise what, const Tensor& x, const Tensor& w, const Around& s,
                const Tensor& out);
void cuda_reduced(const Tensor& a, const Tensor& b, const Around& s, const Tensor& out);

}  // namespace weft::kernels
