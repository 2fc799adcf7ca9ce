// Matrix products on a GPU, by cuBLASLt: the only way to it. The library is looked up when the
// first product is asked for, so a program without it starts and says what is missing.
// The algorithm is the library's first choice for a shape, kept for the run: the same numbers on
// every run, since it is not chosen by timing.
#pragma once

#include "core/tensor.h"

namespace weft::kernels {

// An operand [rows, columns] as it lies in memory: one dimension contiguous, the other at any
// stride. transposed() of a tensor costs nothing: it is a view.
struct GemmOptions {
  float alpha = 1, beta = 0;
  Tensor bias;  // [n], added to each row of c; dtype of c
};

// c[m, n] = alpha * a[m, k] b[k, n] + beta * c (+ bias).
//   a, b  f32 or bf16, both the same, any two strides of which one is 1 (others are copied)
//   c     f32 or bf16, rows contiguous
// Sums are f32; f32 operands are not rounded unless set_tf32(true).
void cuda_gemm(const Tensor& a, const Tensor& b, const Tensor& c, const GemmOptions& o = {});

// f32 products by TF32 tensor cores (10 bits of mantissa): a recipe asks for it.
void set_tf32(bool on);

// The library's version as "13.0.2", and where it was found; throws Error where it is not there.
std::string cublas_version();

// out[n] = the sum over the rows of x [r, n], or of x * factor of the same shape and dtype; sums in
// f32, in fixed order. out is f32 or bf16.
void cuda_column_sums(const Tensor& x, const Tensor& out, const Tensor& factor = {});

}  // namespace weft::kernels
