// Matrix products on row-major matrices on the CPU. gemm() runs on the calling thread, inside
// parallel loops too. parallel_gemm() spreads one product over the threads, cut by shape alone.
// Element (i, j) is a sum over k in order, by fused multiply-adds, in parts of kSumPart<T>. So its
// bits depend on row i of a, column j of b, alpha, beta and the element of c alone: neither on how
// many rows or columns stand beside it, nor on where it stands, nor on the number of threads. A
// library promises none of this: its edges have kernels of their own, and a token would change with
// its neighbours.
#pragma once

#include <cstdint>

namespace weft::kernels {

// A matrix operand: element (i, j) is data[i * stride + j], or data[j * stride + i] if transposed.
template <class Real>
struct Matrix {
  Real* data;
  int64_t stride;
  bool transposed = false;
};

// The terms of a sum that are added up in registers before they are added to c.
template <class Real>
inline constexpr int64_t kSumPart = 1024 / static_cast<int64_t>(sizeof(Real));

// Rows of a that meet a copied part of b before the next; rows or columns of c that a thread takes.
inline constexpr int64_t kGemmRows = 192, kGemmPanel = 192;

// A product of fewer terms stays on one thread; panels are as many rows or columns as such steps.
inline constexpr int64_t kGemmTerms = 64 * 64 * 64;
inline constexpr int64_t kGemmStep = 16;

// c[m, n] = alpha * a[m, k] b[k, n] + beta * c.  beta = 0 does not read c. Real is float or double.
template <class Real>
void gemm(int64_t m, int64_t n, int64_t k, Real alpha, Matrix<const Real> a, Matrix<const Real> b,
          Real beta, Matrix<Real> c);
template <class Real>
void parallel_gemm(int64_t m, int64_t n, int64_t k, Real alpha, Matrix<const Real> a,
                   Matrix<const Real> b, Real beta, Matrix<Real> c);

}  // namespace weft::kernels
