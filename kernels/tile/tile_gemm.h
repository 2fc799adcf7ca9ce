// Small matrix products inside a tile: sizes of tens, operands in the nearest cache, no packing and
// nothing to set up. On 64 x 64 x 64 this is faster than gemm() of cpu_gemm.h, which is for
// matrices that do not fit the second cache.
// Each element is a sum over k in order, so that it does not depend on where in a tile it stands.
#pragma once

#include <cstdint>

namespace weft::kernels {

// The left operand: element (i, p) is data[i * row + p * column]. Its elements are broadcast, so
// any strides will do; a transposed matrix has row = 1.
template <class Real>
struct Strided {
  const Real* data;
  int64_t row, column;
};

// c[m, n] = a[m, k] b[k, n], added to c if `add`. The rows of b and c are contiguous, at distances
// ldb and ldc. Real is float or double. Runs on the calling thread.
template <class Real>
void tile_gemm(int64_t m, int64_t n, int64_t k, Strided<Real> a, const Real* b, int64_t ldb,
               Real* c, int64_t ldc, bool add);

}  // namespace weft::kernels
