// Small matrices that lie in scratch memory, padded with zeros to whole vectors, and their
// products. A chunk of a recurrence makes a dozen products of some 32 to 128 rows; each is too
// small for a call of gemm() to pay, and none has a ragged edge once it is padded. Sizes are
// multiples of kTile throughout. Every element is summed in the order of the inner index: the same
// bits wherever it is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/contract/rounding.h"

namespace weft::kernels {

inline constexpr int64_t kTile = 16;
inline int64_t tiled(int64_t n) { return (n + kTile - 1) / kTile * kTile; }

// Vectors as wide as the processor's, and the rows of a block of registers.
#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32, kTileRows = 4;
#else
inline constexpr int kVectorBytes = 16, kTileRows = 4;
#endif

template <class Real, int kBytes = kVectorBytes>
struct Lanes {
  typedef Real type __attribute__((vector_size(kBytes), aligned(alignof(Real)), may_alias));
};
template <class Real, int kBytes = kVectorBytes>
using Vector = typename Lanes<Real, kBytes>::type;
template <class Real>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Real));

// The numbers at p as a vector, to read and to write.
template <class Real>
Vector<Real>& lanes(Real* p) {
  return *reinterpret_cast<Vector<Real>*>(p);
}
template <class Real>
const Vector<Real>& lanes(const Real* p) {
  return *reinterpret_cast<const Vector<Real>*>(p);
}
// 0, 1, 2, ... to tell lanes apart.
template <class Real>
using LaneNumbers = Vector<std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>>;
template <class Real>
LaneNumbers<Real> lane_numbers() {
  LaneNumbers<Real> v = {};
  for (int i = 0; i < kLanes<Real>; ++i) v[i] = i;
  return v;
}
// The sum of a vector's numbers.
template <class Real>
Real total(const Vector<Real>& v) {
  constexpr int kLast = 16 / static_cast<int>(sizeof(Real));
  Vector<Real, 16> sum = {};
  for (int i = 0; i < kLanes<Real>; i += kLast)
    sum += *reinterpret_cast<const Vector<Real, 16>*>(reinterpret_cast<const Real*>(&v) + i);
  Real all = 0;
  for (int i = 0; i < kLast; ++i) all += sum[i];
  return all;
}

// A matrix in scratch: element (i, j) is data[i * stride + j].
template <class Real>
struct Tile {
  Real* data = nullptr;
  int64_t stride = 0;
  Real* row(int64_t i) const { return data + i * stride; }
  Tile below(int64_t rows) const { return {data + rows * stride, stride}; }
  operator Tile<const Real>() const requires(!std::is_const_v<Real>) { return {data, stride}; }
};

// Hands out pieces of a thread's scratch memory. Without memory it counts what would be needed.
template <class Real>
class Carver {
 public:
  explicit Carver(Real* base = nullptr) : base_(base) {}
  Tile<Real> tile(int64_t rows, int64_t columns) {
    // Rows a multiple of 512 bytes apart would share few lines of the first cache.
    const int64_t stride = columns % 128 == 0 ? columns + kTile : columns;
    return {take(rows * stride), stride};
  }
  Real* row(int64_t n) { return take(tiled(n)); }
  int64_t used() const { return used_; }

 private:
  Real* take(int64_t n) {
    Real* const at = base_ ? base_ + used_ : nullptr;
    used_ += n;
    return at;
  }
  Real* base_;
  int64_t used_ = 0;
};

// Which part of the left operand a of a product is used: of a lower triangular a, block row i ends
// with the diagonal block; of an upper triangular one it begins there.
enum class Band { full, lower, upper };

namespace detail {

// One block of registers: acc += a b, with a's element (i, l) at a[i * by_row + l * by_inner].
template <class Real, int kRows, int kVectors>
inline __attribute__((always_inline)) void accumulate(Vector<Real> (&acc)[kRows][kVectors],
                                                      int64_t inner, const Real* a, int64_t by_row,
                                                      int64_t by_inner, const Real* b,
                                                      int64_t b_stride) {
  for (int64_t l = 0; l < inner; ++l) {
    Vector<Real> line[kVectors];
    for (int j = 0; j < kVectors; ++j) line[j] = lanes(b + l * b_stride + j * kLanes<Real>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Real x = a[i * by_row + l * by_inner];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) acc[i][j] += x * line[j];
    }
  }
}

template <class Real, int kVectors, bool kTransposed>
void product_block(int64_t inner, const Real* a, int64_t a_stride, const Real* b, int64_t b_stride,
                   Real keep, Real* c, int64_t c_stride) {
  Vector<Real> acc[kTileRows][kVectors] = {};
  accumulate<Real, kTileRows, kVectors>(acc, inner, a, kTransposed ? 1 : a_stride,
                                        kTransposed ? a_stride : 1, b, b_stride);
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      auto& to = lanes(c + i * c_stride + j * kLanes<Real>);
      to = keep == Real(0) ? acc[i][j] : keep * to + acc[i][j];
    }
}

// Calls f.template operator()<vectors>(column) over panels of n columns.
template <class Real, class F>
void for_panels(int64_t n, const F& f) {
  int64_t j = 0;
  for (; j + 2 * kLanes<Real> <= n; j += 2 * kLanes<Real>) f.template operator()<2>(j);
  for (; j < n; j += kLanes<Real>) f.template operator()<1>(j);
}

template <class Real, bool kTransposed>
void product(int64_t m, int64_t n, int64_t k, Tile<const Real> a, Tile<const Real> b, Real keep,
             Tile<Real> c, Band band) {
  std::vector<Real> rounded_a, rounded_b;
  if (rounds_operands<Real>()) [[unlikely]] {
    const int64_t width = kTransposed ? m : k;
    rounded_a = rounded_operand(kTransposed ? k : m, width, a.data, a.stride);
    rounded_b = rounded_operand(k, n, b.data, b.stride);
    a = {rounded_a.data(), width};
    b = {rounded_b.data(), n};
  }
  for_panels<Real>(n, [&]<int kVectors>(int64_t j) {
    for (int64_t i = 0; i < m; i += kTileRows) {
      const int64_t from = band == Band::upper ? i : 0;
      const int64_t to = band == Band::lower ? std::min(k, i + kTileRows) : k;
      const Real* const at = kTransposed ? a.row(from) + i : a.row(i) + from;
      product_block<Real, kVectors, kTransposed>(to - from, at, a.stride, b.row(from) + j, b.stride,
                                                 keep, c.row(i) + j, c.stride);
    }
  });
}

}  // namespace detail

// c[m, n] = keep * c + a[m, k] b[k, n].  keep = 0 does not read c.
template <class Real>
void product(int64_t m, int64_t n, int64_t k, Tile<Real> a, Tile<Real> b, Real keep, Tile<Real> c,
             Band band = Band::full) {
  detail::product<Real, false>(m, n, k, a, b, keep, c, band);
}
// c[m, n] = keep * c + a' b with a[k, m], b[k, n].
template <class Real>
void product_of_transposed(int64_t m, int64_t n, int64_t k, Tile<Real> a, Tile<Real> b, Real keep,
                           Tile<Real> c, Band band = Band::full) {
  detail::product<Real, true>(m, n, k, a, b, keep, c, band);
}
// The same as product(m, n, k, ...) with keep = 0, where of c only the lower triangle is wanted:
// of each row all up to the diagonal is written, and of the rest whatever lies in the same block.
template <class Real>
void lower_product(int64_t n, int64_t k, Tile<Real> a, Tile<Real> b, Tile<Real> c) {
  for (int64_t i = 0; i < n; i += kTile)
    detail::product<Real, false>(kTile, i + kTile, k, a.below(i), b, Real(0), c.below(i),
                                 Band::full);
}

// b[n, m] = a[m, n]'; m and n need be multiples of 8 only.
template <class Real>
void transpose(int64_t m, int64_t n, std::type_identity_t<Tile<const Real>> a, Tile<Real> b) {
  using Eight = Vector<Real, 8 * sizeof(Real)>;
  const auto pair = [](Eight x, Eight y, auto low, auto high, Eight& first, Eight& second) {
    first = __builtin_shuffle(x, y, low);
    second = __builtin_shuffle(x, y, high);
  };
  using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  using Order = Vector<Index, 8 * sizeof(Real)>;
  // Three rounds, each of which swaps the off-diagonal halves of blocks twice as large.
  constexpr Order low[3] = {
      {0, 8, 2, 10, 4, 12, 6, 14}, {0, 1, 8, 9, 4, 5, 12, 13}, {0, 1, 2, 3, 8, 9, 10, 11}};
  constexpr Order high[3] = {
      {1, 9, 3, 11, 5, 13, 7, 15}, {2, 3, 10, 11, 6, 7, 14, 15}, {4, 5, 6, 7, 12, 13, 14, 15}};
  for (int64_t i = 0; i < m; i += 8)
    for (int64_t j = 0; j < n; j += 8) {
      Eight x[8], y[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) x[r] = *reinterpret_cast<const Eight*>(a.row(i + r) + j);
      for (int r = 0; r < 8; r += 2) pair(x[r], x[r + 1], low[0], high[0], y[r], y[r + 1]);
      for (int r = 0; r < 8; r += 4)
        for (int s = 0; s < 2; ++s)
          pair(y[r + s], y[r + s + 2], low[1], high[1], x[r + s], x[r + s + 2]);
      for (int r = 0; r < 4; ++r) pair(x[r], x[r + 4], low[2], high[2], y[r], y[r + 4]);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) *reinterpret_cast<Eight*>(b.row(j + r) + i) = y[r];
    }
}

}  // namespace weft::kernels
