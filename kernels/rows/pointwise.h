// Sums and products of tensors, element by element or along one dimension: what autograd's plain
// operations are made of. Results are contiguous, of x's dtype and device.
#pragma once

#include "core/tensor.h"

namespace weft::kernels {

// Shapes and dtypes equal.
Tensor added(const Tensor& a, const Tensor& b);
Tensor multiplied(const Tensor& a, const Tensor& b);
Tensor scaled(const Tensor& x, double factor);

// x + w or x * w, w [n] along dimension `dim` of x, whose size is n; w is of x's dtype, or f32
// beside bf16.
Tensor added_along(const Tensor& x, const Tensor& w, int dim);
Tensor multiplied_along(const Tensor& x, const Tensor& w, int dim);

// The sum of a * b (of a, where b is absent) over all dimensions but one, [n], in `dtype`. Wider
// partial sums (f64 on the CPU, f32 on a GPU) of pieces cut by shape, in fixed order.
Tensor reduced_to(const Tensor& a, const Tensor& b, int dim, Dtype dtype);

}  // namespace weft::kernels
