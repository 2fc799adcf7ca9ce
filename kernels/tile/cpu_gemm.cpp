// A product is done in blocks of kGemmRows rows. Columns of b are copied side by side, as wide as a
// block of registers, and stay in the first cache while all rows of the block meet them.
#include "kernels/tile/cpu_gemm.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "kernels/contract/rounding.h"
#include "kernels/tile/tile.h"

namespace weft::kernels {
namespace {

// A block of registers: kHigh rows of two vectors. Its accumulators, one line of b and one number
// of a fill the registers that a processor has.
#if defined(__AVX512F__)
constexpr int kHigh = 12;
#elif defined(__AVX__)
constexpr int kHigh = 6;
#else
constexpr int kHigh = 4;
#endif
template <class Real>
constexpr int kWide = 2 * kLanes<Real>;

static_assert(kGemmRows % kHigh == 0);

// c[kHigh, kWide] = alpha * a b + beta * c. Element (i, l) of a is a[i * by_row + l * by_inner]. It
// is never inlined: an edge of c is computed by the very instructions of its middle.
template <class Real>
__attribute__((noinline)) void block(int64_t inner, Real alpha, const Real* a, int64_t by_row,
                                     int64_t by_inner, const Real* b, Real beta, Real* c,
                                     int64_t c_stride) {
  Vector<Real> sum[kHigh][2] = {};
  for (int64_t l = 0; l < inner; ++l) {
    const Vector<Real> first = lanes(b + l * kWide<Real>),
                       second = lanes(b + l * kWide<Real> + kLanes<Real>);
#pragma GCC unroll 12
    for (int i = 0; i < kHigh; ++i) {
      const Real x = a[i * by_row + l * by_inner];
      sum[i][0] += x * first;
      sum[i][1] += x * second;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kHigh; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      auto& to = lanes(c + i * c_stride + j * kLanes<Real>);
      to = beta == Real(0) ? alpha * sum[i][j] : alpha * sum[i][j] + beta * to;
    }
}

// to[l, kWide] = b[l, j0 ..], zeros beyond `columns`.
template <class Real>
void pack_columns(Matrix<const Real> b, int64_t inner, int64_t columns, Real* to) {
  if (columns < kWide<Real>) std::fill_n(to, inner * kWide<Real>, Real(0));
  if (!b.transposed) {
    for (int64_t l = 0; l < inner; ++l) {
      const Real* const from = b.data + l * b.stride;
      if (columns == kWide<Real>)  // a size that the compiler knows
        std::copy_n(from, kWide<Real>, to + l * kWide<Real>);
      else
        std::copy_n(from, columns, to + l * kWide<Real>);
    }
    return;
  }
  const int64_t whole = columns < kWide<Real> ? 0 : inner / 8 * 8;
  if constexpr (kWide<Real> % 8 == 0)
    if (whole > 0)
      transpose<Real>(kWide<Real>, whole, Tile<const Real>{b.data, b.stride},
                      Tile<Real>{to, kWide<Real>});
  const int64_t from = kWide<Real> % 8 == 0 ? whole : 0;
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t l = from; l < inner; ++l) to[l * kWide<Real> + j] = b.data[j * b.stride + l];
}

// to[i / kHigh][l][kHigh] = a[i, l], zeros beyond `rows`. Of a transposed matrix whole lines are
// read.
template <class Real>
void pack_rows(Matrix<const Real> a, int64_t rows, int64_t inner, Real* to) {
  const int64_t whole = rows / kHigh * kHigh, panel = inner * kHigh;
  if (a.transposed)
    for (int64_t l = 0; l < inner; ++l)
      for (int64_t i = 0; i < whole; i += kHigh)
        std::copy_n(a.data + l * a.stride + i, kHigh, to + i * inner + l * kHigh);
  const int64_t from = a.transposed ? whole : 0;
  if (whole < rows) std::fill_n(to + whole * inner, panel, Real(0));
  for (int64_t i = from; i < rows; ++i)
    for (int64_t l = 0; l < inner; ++l)
      to[i / kHigh * panel + l * kHigh + i % kHigh] =
          a.transposed ? a.data[l * a.stride + i] : a.data[i * a.stride + l];
}

// A block at an edge of c: the same computation on a copy.
template <class Real>
void edge_block(int64_t high, int64_t wide, int64_t inner, Real alpha, const Real* a, const Real* b,
                Real beta, Real* c, int64_t c_stride) {
  alignas(64) Real copy[kHigh * kWide<Real>] = {};
  const auto bytes = static_cast<size_t>(wide) * sizeof(Real);
  if (beta != Real(0))
    for (int64_t i = 0; i < high; ++i) std::memcpy(copy + i * kWide<Real>, c + i * c_stride, bytes);
  block<Real>(inner, alpha, a, 1, kHigh, b, beta, copy, kWide<Real>);
  for (int64_t i = 0; i < high; ++i) std::memcpy(c + i * c_stride, copy + i * kWide<Real>, bytes);
}

// Up to kGemmRows rows and kSumPart terms.
template <class Real>
void product_of_rows(int64_t rows, int64_t n, int64_t inner, Real alpha, Matrix<const Real> a,
                     Matrix<const Real> b, Real beta, Real* c, int64_t c_stride) {
  alignas(64) Real columns_of_b[kSumPart<Real> * kWide<Real>];
  alignas(64) Real rows_of_a[kGemmRows * kSumPart<Real>];
  // Whole blocks of rows that lie in order are read where they are; the rest is copied.
  const int64_t in_place = a.transposed ? 0 : rows / kHigh * kHigh;
  if (in_place < rows)
    pack_rows<Real>({a.data + (a.transposed ? 0 : in_place * a.stride), a.stride, a.transposed},
                    rows - in_place, inner, rows_of_a);
  for (int64_t j = 0; j < n; j += kWide<Real>) {
    const int64_t wide = std::min<int64_t>(kWide<Real>, n - j);
    pack_columns<Real>({b.data + (b.transposed ? j * b.stride : j), b.stride, b.transposed}, inner,
                       wide, columns_of_b);
    for (int64_t i = 0; i < rows; i += kHigh) {
      Real* const to = c + i * c_stride + j;
      const int64_t high = std::min<int64_t>(kHigh, rows - i);
      const Real* const packed = rows_of_a + (i - in_place) * inner;
      if (high == kHigh && wide == kWide<Real>) {
        if (i < in_place)
          block<Real>(inner, alpha, a.data + i * a.stride, a.stride, 1, columns_of_b, beta, to,
                      c_stride);
        else
          block<Real>(inner, alpha, packed, 1, kHigh, columns_of_b, beta, to, c_stride);
      } else if (i < in_place) {
        alignas(64) Real few[kHigh * kSumPart<Real>];
        pack_rows<Real>({a.data + i * a.stride, a.stride, false}, high, inner, few);
        edge_block<Real>(high, wide, inner, alpha, few, columns_of_b, beta, to, c_stride);
      } else {
        edge_block<Real>(high, wide, inner, alpha, packed, columns_of_b, beta, to, c_stride);
      }
    }
  }
}

template <class Real>
void scale(int64_t m, int64_t n, Real beta, Matrix<Real> c) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      Real& x = c.data[i * c.stride + j];
      x = beta == Real(0) ? Real(0) : beta * x;
    }
}

}  // namespace

template <class Real>
void gemm(int64_t m, int64_t n, int64_t k, Real alpha, Matrix<const Real> a, Matrix<const Real> b,
          Real beta, Matrix<Real> c) {
  if (m == 0 || n == 0) return;
  if (k == 0) return scale(m, n, beta, c);
  std::vector<Real> rounded_a, rounded_b;
  if (rounds_operands<Real>()) [[unlikely]] {
    const auto round = [](Matrix<const Real>& x, int64_t rows, int64_t columns,
                          std::vector<Real>& to) {
      if (x.transposed) std::swap(rows, columns);
      to = rounded_operand(rows, columns, x.data, x.stride);
      x = {to.data(), std::max<int64_t>(1, columns), x.transposed};
    };
    round(a, m, k, rounded_a);
    round(b, k, n, rounded_b);
  }
  for (int64_t l = 0; l < k; l += kSumPart<Real>) {
    const int64_t inner = std::min(kSumPart<Real>, k - l);
    const Matrix<const Real> right{b.data + (b.transposed ? l : l * b.stride), b.stride,
                                   b.transposed};
    for (int64_t i = 0; i < m; i += kGemmRows) {
      const Matrix<const Real> left{a.data + (a.transposed ? l * a.stride + i : i * a.stride + l),
                                    a.stride, a.transposed};
      product_of_rows<Real>(std::min(kGemmRows, m - i), n, inner, alpha, left, right,
                            l ? Real(1) : beta, c.data + i * c.stride, c.stride);
    }
  }
}

template <class Real>
void parallel_gemm(int64_t m, int64_t n, int64_t k, Real alpha, Matrix<const Real> a,
                   Matrix<const Real> b, Real beta, Matrix<Real> c) {
  // Panels of the longer side of c. A panel packs the other operand again, so it must not be thin.
  const bool rows = m >= n;
  const int64_t length = rows ? m : n;
  if (length < 2 * kGemmPanel / 3 || m * n * k < kGemmTerms)
    return gemm(m, n, k, alpha, a, b, beta, c);
  // Even in number, so that two threads have the same to do.
  const int64_t panels = (length + 2 * kGemmPanel - 1) / (2 * kGemmPanel) * 2;
  const int64_t width = ((length + panels - 1) / panels + kGemmStep - 1) / kGemmStep * kGemmStep;
  parallel_for((length + width - 1) / width, [&](int64_t i) {
    const int64_t at = i * width, size = std::min(width, length - at);
    if (rows) {
      const Matrix<const Real> part{a.data + (a.transposed ? at : at * a.stride), a.stride,
                                    a.transposed};
      gemm(size, n, k, alpha, part, b, beta, Matrix<Real>{c.data + at * c.stride, c.stride});
    } else {
      const Matrix<const Real> part{b.data + (b.transposed ? at * b.stride : at), b.stride,
                                    b.transposed};
      gemm(m, size, k, alpha, a, part, beta, Matrix<Real>{c.data + at, c.stride});
    }
  });
}

template void gemm(int64_t, int64_t, int64_t, float, Matrix<const float>, Matrix<const float>,
                   float, Matrix<float>);
template void gemm(int64_t, int64_t, int64_t, double, Matrix<const double>, Matrix<const double>,
                   double, Matrix<double>);
template void parallel_gemm(int64_t, int64_t, int64_t, float, Matrix<const float>,
                            Matrix<const float>, float, Matrix<float>);
template void parallel_gemm(int64_t, int64_t, int64_t, double, Matrix<const double>,
                            Matrix<const double>, double, Matrix<double>);

}  // namespace weft::kernels
