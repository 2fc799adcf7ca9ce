// Matrix products on row-major matrices, by OpenBLAS: the only way to it.
// gemm() runs on the calling thread, inside parallel loops too. parallel_gemm() spreads one product
// over the threads, cut by shape alone, so that the result does not depend on their number.
#pragma once

#include <cstdint>

namespace weft::kernels {

// A matrix operand: element (i, j) is data[i * stride + j], or data[j * stride + i] if transposed.
template <class T>
struct Matrix {
  T* data;
  int64_t stride;
  bool transposed = false;
};

// c[m, n] = alpha * a[m, k] b[k, n] + beta * c.  beta = 0 does not read c. T is float or double.
template <class T>
void gemm(int64_t m, int64_t n, int64_t k, T alpha, Matrix<const T> a, Matrix<const T> b, T beta,
          Matrix<T> c);
template <class T>
void parallel_gemm(int64_t m, int64_t n, int64_t k, T alpha, Matrix<const T> a, Matrix<const T> b,
                   T beta, Matrix<T> c);

// Which kernels OpenBLAS chose ("Haswell", "SkylakeX", ...), for `weft version`.
const char* blas_core_name();

}  // namespace weft::kernels
