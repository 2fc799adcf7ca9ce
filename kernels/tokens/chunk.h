// The arithmetic of one piece of a chunk, on tiles: what goes in and out of scratch memory, and the
// decays that scalar log gates make between its tokens.
#pragma once

#include <limits>

#include "kernels/tile/tile.h"
#include "kernels/tile/vmath.h"

namespace weft::kernels {

inline constexpr int64_t kMaxChunk = 64;  // the most tokens of a piece

// A matrix in tensor memory, of any strides.
template <class Real>
struct MatrixView {
  Real* data = nullptr;
  int64_t row = 0, column = 1;  // strides
  explicit operator bool() const { return data != nullptr; }
  operator MatrixView<const Real>() const requires(!std::is_const_v<Real>) {
    return {data, row, column};
  }
};

// to[width] = factor * from, and zeros up to a whole tile. Without data all is zero.
template <class Real>
void load_row(int64_t width, const Real* from, int64_t stride, Real* to, Real factor = 1) {
  int64_t d = 0;
  if (from && stride == 1)
    for (; d + kLanes<Real> <= width; d += kLanes<Real>) lanes(to + d) = factor * lanes(from + d);
  for (; d < width; ++d) to[d] = from ? factor * from[d * stride] : Real(0);
  for (; d < tiled(width); ++d) to[d] = 0;
}

// The rows n <= i < tiled(n) become zero.
template <class Real>
void clear_rest(int64_t n, int64_t width, Tile<Real> to) {
  for (int64_t i = n; i < tiled(n); ++i) std::fill_n(to.row(i), tiled(width), Real(0));
}

// Which rows a pass wants next, counted from those at hand: rows of one head lie far apart, where
// the processor does not guess them.
inline constexpr int64_t kNext = kMaxChunk, kPrevious = -kMaxChunk, kNone = 0;

// Asks for a row that will be needed.
template <class Real>
void fetch_row(int64_t width, const Real* at) {
  for (int64_t d = 0; d < width; d += 64 / static_cast<int64_t>(sizeof(Real)))
    __builtin_prefetch(at + d, 0, 2);
}

// to = factor * from [n, width], and zeros up to whole tiles. Without data all is zero.
template <class Real>
void load(int64_t n, int64_t width, MatrixView<const std::type_identity_t<Real>> from,
          Tile<Real> to, std::type_identity_t<Real> factor = 1, int64_t ahead = kNone) {
  for (int64_t i = 0; i < n; ++i) {
    const Real* const source = from ? from.data + i * from.row : nullptr;
    load_row(width, source, from.column, to.row(i), factor);
    if (source && ahead != kNone) fetch_row(width, source + ahead * from.row);
  }
  clear_rest(n, width, to);
}

// to[n, width] = factor * from, or += it; `to` has contiguous rows.
template <class Real>
void store(int64_t n, int64_t width, Tile<Real> from, Real* to, int64_t stride, bool add = false,
           std::type_identity_t<Real> factor = 1) {
  for (int64_t i = 0; i < n; ++i) {
    const Real* const line = from.row(i);
    Real* const target = to + i * stride;
    if (add) {
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) target[d] += factor * line[d];
    } else {
#pragma omp simd
      for (int64_t d = 0; d < width; ++d) target[d] = factor * line[d];
    }
  }
}

// x[i] = e^{x[i]} for i < tiled(n).
template <class Real>
void exponentials(int64_t n, Real* x) {
  for (int64_t i = 0; i < n; i += kTile) {
#pragma omp simd
    for (int64_t l = 0; l < kTile; ++l) x[i + l] = vexp(x[i + l]);
  }
}

// A log gate up to here forgets all that came before: e^x is exactly 0 in f32 and in f64.
inline constexpr double kForgetsAll = -746;

// Decays of a piece of n tokens with log gates g_0 .. g_{n-1} <= 0. Their sums are kept in double:
// a gate of -700 must not cost the later ones their digits. A gate that forgets all, down to
// -infinity, is in no sum: it lowers `fall` by kForgetsAll instead. Differences of that are exact,
// so that tokens behind such a gate keep every digit, and two tokens on either side of it are a
// decay of 0 apart.
template <class Real>
struct Decay {
  double sum[kMaxChunk];       // G_i = g_0 + .. + g_i, without those that forget all
  double fall[kMaxChunk];      // kForgetsAll times the number of those
  Real from_start[kMaxChunk];  // from before the piece to token i
  Real to_end[kMaxChunk];      // from token i to the piece's end
  Real total = 1;              // over the whole piece

  // gate(i) gives g_i.
  template <class Gate>
  void set(int64_t n, const Gate& gate) {
    double at = 0, fallen = 0;
    for (int64_t i = 0; i < tiled(n); ++i) {
      const double g = i < n ? static_cast<double>(gate(i)) : 0;
      const bool all = g <= kForgetsAll;
      fall[i] = fallen += all ? kForgetsAll : 0;
      sum[i] = at += all ? 0 : g;
    }
    for (int64_t i = 0; i < tiled(n); ++i) from_start[i] = static_cast<Real>(sum[i] + fall[i]);
    for (int64_t i = 0; i < tiled(n); ++i)
      to_end[i] = static_cast<Real>((at - sum[i]) + (fallen - fall[i]));
    exponentials(n, from_start);
    exponentials(n, to_end);
    total = vexp(static_cast<Real>(at + fallen));
  }
  // Does the gate of token i forget all?
  bool resets(int64_t i) const { return fall[i] < (i > 0 ? fall[i - 1] : 0); }
  // The logarithm of the decay from token j to token i, j <= i.
  Real between(int64_t i, int64_t j) const {
    return static_cast<Real>((sum[i] - sum[j]) + (fall[i] - fall[j]));
  }

  // gamma[i, j], the decay from token j to token i, for j <= i, and zero on to the end of the row's
  // last tile. Left of the diagonal tile it is a product of two factors, neither above 1: the decay
  // up to the tile's first row, and from there.
  void matrix(int64_t n, Tile<Real> gamma) const {
    Real before[kMaxChunk], within[kTile];
    for (int64_t start = 0; start < n; start += kTile) {
      for (int64_t j = 0; j < start; ++j) before[j] = between(start, j);
      for (int64_t i = 0; i < kTile; ++i) within[i] = between(start + i, start);
      exponentials(start, before);
      exponentials(kTile, within);
      for (int64_t i = start; i < std::min(n, start + kTile); ++i) {
        Real* const row = gamma.row(i);
        const Real by = within[i - start];
        for (int64_t j = 0; j < start; ++j) row[j] = by * before[j];
        // Masked before exp: what lies above the diagonal would be positive.
        for (int64_t l = 0; l < kTile; ++l) {
          const Real difference = between(i, start + l);
          row[start + l] = start + l <= i ? difference : -std::numeric_limits<Real>::infinity();
        }
        exponentials(kTile, row + start);
      }
    }
  }
};

// to = scale * scores (.) gamma on and below the diagonal, zero on to the end of each row's last
// tile, zero in the rows from n to tiled(n). `gamma` without data stands for ones; `to` may be
// `scores`.
template <class Real>
void decay_scores(int64_t n, Real scale, Tile<Real> scores, Tile<Real> gamma, Tile<Real> to) {
  const LaneNumbers<Real> number = lane_numbers<Real>();
  for (int64_t i = 0; i < n; ++i) {
    const Real* const from = scores.row(i);
    Real* const line = to.row(i);
    const Real* const decay = gamma.data ? gamma.row(i) : nullptr;
    for (int64_t j = 0; j < tiled(i + 1); j += kLanes<Real>) {
      const Vector<Real> value =
          decay ? scale * lanes(from + j) * lanes(decay + j) : scale * lanes(from + j);
      lanes(line + j) = number > static_cast<int>(i - j) ? Vector<Real>{} : value;
    }
  }
  clear_rest(n, n, to);
}

// x[i, :] *= factor[i] for i < n
template <class Real>
void scale_rows(int64_t n, int64_t width, const Real* factor, Tile<Real> x) {
  for (int64_t i = 0; i < n; ++i) {
    Real* const line = x.row(i);
    const Real by = factor[i];
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) line[d] *= by;
  }
}

// The sum of a[i], n a multiple of kTile.
template <class Real>
Real sum_of(int64_t n, const Real* a) {
  Real lanes[kTile] = {};
  for (int64_t i = 0; i < n; i += kTile)
    for (int64_t l = 0; l < kTile; ++l) lanes[l] += a[i + l];
  for (int64_t half = kTile / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// The sum of a[i] * b[i], in an order that depends on n alone.
template <class Real>
Real dot(int64_t n, const Real* a, const Real* b) {
  constexpr int64_t kWidth = 16;
  Real lanes[kWidth] = {};
  Real sum = 0;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth)
    for (int64_t l = 0; l < kWidth; ++l) lanes[l] += a[i + l] * b[i + l];
  for (; i < n; ++i) sum += a[i] * b[i];
  for (int64_t half = kWidth / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return sum + lanes[0];
}

}  // namespace weft::kernels
