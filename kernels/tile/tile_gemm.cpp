// Eight rows by one vector of accumulators: eight independent chains of multiply-adds, each step
// one load of b and eight broadcasts of a.
#include "kernels/tile/tile_gemm.h"

#include "kernels/tile/tile.h"

namespace weft::kernels {
namespace {

template <class Real>
struct Product {
  Strided<Real> a;
  const Real* b;
  int64_t ldb;
  Real* c;
  int64_t ldc;
  int64_t k;
  bool add;
};

// c[M, N] at (i, j).
template <class Real, int M, int N>
inline void block(const Product<Real>& x, int64_t i, int64_t j) {
  using Line = Vector<Real, N* static_cast<int>(sizeof(Real))>;
  Real* const c = x.c + i * x.ldc + j;
  Line sum[M];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r)
    sum[r] = x.add ? *reinterpret_cast<const Line*>(c + r * x.ldc) : Line{};
  const Real* a = x.a.data + i * x.a.row;
  const Real* b = x.b + j;
  for (int64_t p = 0; p < x.k; ++p, a += x.a.column, b += x.ldb) {
    const Line y = *reinterpret_cast<const Line*>(b);
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) sum[r] += a[r * x.a.row] * y;
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) *reinterpret_cast<Line*>(c + r * x.ldc) = sum[r];
}

// N columns of c from j on.
template <class Real, int N>
void columns(const Product<Real>& x, int64_t m, int64_t j) {
  int64_t i = 0;
  for (; i + 8 <= m; i += 8) block<Real, 8, N>(x, i, j);
  if (i + 4 <= m) block<Real, 4, N>(x, i, j), i += 4;
  if (i + 2 <= m) block<Real, 2, N>(x, i, j), i += 2;
  if (i < m) block<Real, 1, N>(x, i, j);
}

// What is left of the columns, by ever narrower vectors.
template <class Real, int N>
void rest(const Product<Real>& x, int64_t m, int64_t n, int64_t j) {
  if (j + N <= n) columns<Real, N>(x, m, j), j += N;
  if constexpr (N > 1)
    if (j < n) rest<Real, N / 2>(x, m, n, j);
}

}  // namespace

template <class Real>
void tile_gemm(int64_t m, int64_t n, int64_t k, Strided<Real> a, const Real* b, int64_t ldb,
               Real* c, int64_t ldc, bool add) {
  std::vector<Real> rounded_a, rounded_b;
  if (rounds_operands<Real>()) [[unlikely]] {
    rounded_a = rounded_operand(m, k, a.data, a.row, a.column);
    rounded_b = rounded_operand(k, n, b, ldb);
    a = {rounded_a.data(), k, 1};
    b = rounded_b.data(), ldb = n;
  }
  constexpr int kWidth = kLanes<Real>;
  const Product<Real> x{a, b, ldb, c, ldc, k, add};
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) columns<Real, kWidth>(x, m, j);
  if (j < n) rest<Real, kWidth / 2>(x, m, n, j);
}

template void tile_gemm(int64_t, int64_t, int64_t, Strided<float>, const float*, int64_t, float*,
                        int64_t, bool);
template void tile_gemm(int64_t, int64_t, int64_t, Strided<double>, const double*, int64_t, double*,
                        int64_t, bool);

}  // namespace weft::kernels
