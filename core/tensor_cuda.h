// The loops over a GPU tensor's elements, for core/tensor.cpp. Any strides; shapes are equal.
#pragma once

#include "core/tensor.h"

namespace weft {

void cuda_copy(const Tensor& to, const Tensor& from);  // casts
void cuda_fill(const Tensor& to, double value);
void cuda_add(const Tensor& to,
              const Tensor& from);  // to += from; float types, `from` may be narrower

}  // namespace weft
