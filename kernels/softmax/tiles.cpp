// Scores of a forward tile are kept transposed, [keys, queries]: then the maximum and the sum over
// keys are operations on whole vectors of queries. A backward tile keeps them as [queries, keys],
// for there each query brings its own lse. Either way one operand is transposed once for a tile's
// life, and all products are tile_gemm.
#include "kernels/softmax/tiles.h"

#include <cmath>
#include <limits>

#include "kernels/tile/tile.h"
#include "kernels/tile/tile_gemm.h"
#include "kernels/tile/vmath.h"

namespace weft::kernels {
namespace {

constexpr int64_t kAlign = 16;  // the vectors of tile_gemm like whole ones
int64_t up(int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

// to[c, i] = from[i, c], with zeros up to a multiple of kAlign columns.  to: [width, kSoftmaxTile]
template <class Real>
void transpose_rows(HeadRows<const Real> from, int64_t rows, int64_t width, Real* to) {
  const int64_t whole_rows = rows / 8 * 8, whole_width = width / 8 * 8;
  transpose<Real>(whole_rows, whole_width, {from.data, from.stride}, {to, kSoftmaxTile});
  for (int64_t c = 0; c < width; ++c) {
    const int64_t first = c < whole_width ? whole_rows : 0;
    for (int64_t i = first; i < rows; ++i) to[c * kSoftmaxTile + i] = from[i][c];
    for (int64_t i = rows; i < up(rows); ++i) to[c * kSoftmaxTile + i] = 0;
  }
}

template <class Real>
Real dot(const Real* x, const Real* y, int64_t n) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < n; ++c) sum += x[c] * y[c];
  return sum;
}

}  // namespace

// --- Forward -----------------------------------------------------------------------------------

template <class Real>
int64_t ForwardTile<Real>::scratch(const SoftmaxShape& s) {
  return kSoftmaxTile * (s.K + kSoftmaxTile + s.V + 3);
}

template <class Real>
ForwardTile<Real>::ForwardTile(const SoftmaxShape& shape, Real* scratch)
    : shape_(shape),
      q_(scratch),
      x_(q_ + shape.K * kSoftmaxTile),
      o_(x_ + kSoftmaxTile * kSoftmaxTile),
      most_(o_ + kSoftmaxTile * shape.V),
      sum_(most_ + kSoftmaxTile),
      shrink_(sum_ + kSoftmaxTile) {}

template <class Real>
void ForwardTile<Real>::start(HeadRows<const Real> q, int64_t rows, int64_t position,
                              const KeyBand& band) {
  rows_ = rows, position_ = position, band_ = band;
  const double scale = shape_.softcap > 0 ? shape_.scale / shape_.softcap : shape_.scale;
  // Where operands are rounded a query must not be scaled before, or it would be rounded twice.
  late_ = rounds_operands<Real>() && rows > 1 ? static_cast<Real>(scale) : Real(1);
  const Real factor = static_cast<Real>(scale) / late_;
  if (rows == 1) {
    for (int64_t c = 0; c < shape_.K; ++c) q_[c] = factor * q.data[c];
  } else {
    transpose_rows(q, rows, shape_.K, q_);
    for (int64_t c = 0; c < shape_.K; ++c)
#pragma omp simd
      for (int64_t i = 0; i < up(rows); ++i) q_[c * kSoftmaxTile + i] *= factor;
  }
  std::fill_n(most_, kSoftmaxTile, -std::numeric_limits<Real>::infinity());
  std::fill_n(sum_, kSoftmaxTile, Real(0));
  std::fill_n(o_, rows * shape_.V, Real(0));
}

template <class Real>
void ForwardTile<Real>::see(HeadRows<const Real> k, HeadRows<const Real> v, int64_t begin,
                            int64_t end) {
  const int64_t last = position_ + rows_ - 1;
  begin = std::max(begin, band_.first(position_));
  end = std::min(end, band_.end(last));
  // Keys lie on the document's own grid, so that a query meets the same tiles in any call.
  for (int64_t j0 = begin, j1 = 0; j0 < end; j0 = j1) {
    j1 = std::min(end, (j0 / kSoftmaxTile + 1) * kSoftmaxTile);
    if (rows_ == 1) {
      one(k, v, j0, j1);
      continue;
    }
    if (band_.first(last) <= j0 && j1 <= band_.end(position_)) {
      part(k, v, 0, rows_, j0, j1);
      continue;
    }
    for (int64_t a = 0; a < rows_; a += kSoftmaxStrip) {
      const int64_t rows = std::min(kSoftmaxStrip, rows_ - a), i = position_ + a;
      part(k, v, a, rows, std::max(j0, band_.first(i)), std::min(j1, band_.end(i + rows - 1)));
    }
  }
}

// Queries [a, a + rows) of the tile see the keys [begin, end), of which the band may cut off some.
template <class Real>
void ForwardTile<Real>::part(HeadRows<const Real> k, HeadRows<const Real> v, int64_t a,
                             int64_t rows, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t keys = end - begin, width = up(rows), i0 = position_ + a;
  Real* const __restrict__ x = x_;
  Real* const __restrict__ most = most_ + a;
  Real* const __restrict__ sum = sum_ + a;
  Real* const __restrict__ shrink = shrink_ + a;
  tile_gemm<Real>(keys, width, shape_.K, {k[begin], k.stride, 1}, q_ + a, kSoftmaxTile, x,
                  kSoftmaxTile, false);
  if (late_ != Real(1))
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t i = 0; i < width; ++i) x[j * kSoftmaxTile + i] *= late_;
  if (shape_.softcap > 0) {
    const Real cap = static_cast<Real>(shape_.softcap);
    for (int64_t j = 0; j < keys; ++j)
#pragma omp simd
      for (int64_t i = 0; i < width; ++i)
        x[j * kSoftmaxTile + i] = cap * vtanh(x[j * kSoftmaxTile + i]);
  }
  if (band_.first(i0 + rows - 1) > begin || band_.end(i0) < end) mask(a, width, begin, end);

  // The maximum so far; where there is none yet, 0 keeps (-inf) - (-inf) from being formed.
  std::copy_n(most, width, shrink);
  for (int64_t j = 0; j < keys; ++j)
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) most[i] = std::max(most[i], x[j * kSoftmaxTile + i]);
  constexpr Real kNone = -std::numeric_limits<Real>::infinity();
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    shrink[i] = vexp(shrink[i] - (most[i] == kNone ? Real(0) : most[i]));
    sum[i] *= shrink[i];
  }
  for (int64_t j = 0; j < keys; ++j)
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      const Real p = vexp(x[j * kSoftmaxTile + i] - (most[i] == kNone ? Real(0) : most[i]));
      x[j * kSoftmaxTile + i] = p;
      sum[i] += p;
    }

  Real* const o = o_ + a * shape_.V;
  for (int64_t i = 0; i < rows; ++i) {
    if (shrink[i] == Real(1)) continue;
#pragma omp simd
    for (int64_t c = 0; c < shape_.V; ++c) o[i * shape_.V + c] *= shrink[i];
  }
  tile_gemm<Real>(rows, shape_.V, keys, {x, 1, kSoftmaxTile}, v[begin], v.stride, o, shape_.V,
                  true);
}

// A single query, as in a decode step, sees [begin, end): vectors run along keys and along K, for
// along queries all lanes but one would be empty.
template <class Real>
void ForwardTile<Real>::one(HeadRows<const Real> k, HeadRows<const Real> v, int64_t begin,
                            int64_t end) {
  const int64_t keys = end - begin;
  Real* const __restrict__ x = x_;
  Real most = most_[0], sum = 0;
  for (int64_t j = 0; j < keys; ++j) x[j] = dot(q_, k[begin + j], shape_.K);
  if (shape_.softcap > 0)
    for (int64_t j = 0; j < keys; ++j) x[j] = static_cast<Real>(shape_.softcap) * vtanh(x[j]);
  for (int64_t j = 0; j < keys; ++j) most = std::max(most, x[j]);
  const Real shrink = vexp(most_[0] - most);
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < keys; ++j) {
    x[j] = vexp(x[j] - most);
    sum += x[j];
  }
  most_[0] = most;
  sum_[0] = sum_[0] * shrink + sum;
  for (int64_t c = 0; c < shape_.V; ++c) o_[c] *= shrink;
  tile_gemm<Real>(1, shape_.V, keys, {x, 0, 1}, v[begin], v.stride, o_, shape_.V, true);
}

// -infinity for what the band hides.
template <class Real>
void ForwardTile<Real>::mask(int64_t a, int64_t width, int64_t begin, int64_t end) {
  int32_t first[kSoftmaxTile], stop[kSoftmaxTile];  // keys of the tile
  for (int64_t i = 0; i < width; ++i) {
    const int64_t at = position_ + a + i;
    first[i] = static_cast<int32_t>(std::max(band_.first(at), begin) - begin);
    stop[i] = static_cast<int32_t>(std::min(band_.end(at), end) - begin);
  }
  for (int32_t j = 0; j < static_cast<int32_t>(end - begin); ++j) {
    Real* const __restrict__ x = x_ + j * kSoftmaxTile;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i)
      x[i] = (j >= first[i]) & (j < stop[i]) ? x[i] : -std::numeric_limits<Real>::infinity();
  }
}

template <class Real>
void ForwardTile<Real>::finish(const Real* sink, HeadRows<Real> o, Real* lse) {
  for (int64_t i = 0; i < rows_; ++i) {
    Real most = most_[i], sum = sum_[i], factor = 1;
    if (sink) {
      most = std::max(most, *sink);
      factor = std::exp(most_[i] - most);
      sum = sum * factor + std::exp(*sink - most);
    }
    const bool dead = sum == Real(0);
    factor = dead ? Real(0) : factor / sum;
    const Real* const from = o_ + i * shape_.V;
    Real* const to = o[i];
    for (int64_t c = 0; c < shape_.V; ++c) to[c] = from[c] * factor;
    lse[i] = dead ? -std::numeric_limits<Real>::infinity() : most + std::log(sum);
  }
}

// --- Backward ----------------------------------------------------------------------------------

template <class Real>
int64_t BackwardTile<Real>::scratch(const SoftmaxShape& s) {
  return 2 * kSoftmaxTile * (s.K + s.V + kSoftmaxTile);
}

template <class Real>
BackwardTile<Real>::BackwardTile(const SoftmaxShape& shape, bool want_k, bool want_v, Real* scratch)
    : shape_(shape),
      want_k_(want_k),
      want_v_(want_v),
      kt_(scratch),
      vt_(kt_ + shape.K * kSoftmaxTile),
      p_(vt_ + shape.V * kSoftmaxTile),
      d_(p_ + kSoftmaxTile * kSoftmaxTile),
      dk_(d_ + kSoftmaxTile * kSoftmaxTile),
      dv_(dk_ + kSoftmaxTile * shape.K) {}

template <class Real>
void BackwardTile<Real>::start(HeadRows<const Real> k, HeadRows<const Real> v, int64_t begin,
                               int64_t end) {
  k_ = k, begin_ = begin, end_ = end;
  transpose_rows(k.from(begin), end - begin, shape_.K, kt_);
  transpose_rows(v.from(begin), end - begin, shape_.V, vt_);
  std::fill_n(dk_, kSoftmaxTile * shape_.K, Real(0));
  std::fill_n(dv_, kSoftmaxTile * shape_.V, Real(0));
}

template <class Real>
void BackwardTile<Real>::meet(const QueryTile<Real>& x, const KeyBand& band) {
  const int64_t last = x.position + x.rows - 1;
  const int64_t begin = std::max(begin_, band.first(x.position));
  const int64_t end = std::min(end_, band.end(last));
  if (band.first(last) <= begin && end <= band.end(x.position)) {
    part(x, band, 0, x.rows, begin, end);
    return;
  }
  for (int64_t a = 0; a < x.rows; a += kSoftmaxStrip) {
    const int64_t rows = std::min(kSoftmaxStrip, x.rows - a), i = x.position + a;
    part(x, band, a, rows, std::max(begin, band.first(i)), std::min(end, band.end(i + rows - 1)));
  }
}

template <class Real>
void BackwardTile<Real>::part(const QueryTile<Real>& x, const KeyBand& band, int64_t a,
                              int64_t rows, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t K = shape_.K, V = shape_.V;
  const int64_t c0 = begin - begin_, keys = end - begin;
  // Whole vectors of keys; what they hold besides [begin, end) is not looked at.
  const int64_t left = c0 / kAlign * kAlign, width = up(c0 + keys) - left;
  const HeadRows<const Real> q = x.q.from(a), dout = x.dout.from(a);
  tile_gemm<Real>(rows, width, K, {q.data, q.stride, 1}, kt_ + left, kSoftmaxTile, p_ + left,
                  kSoftmaxTile, false);
  tile_gemm<Real>(rows, width, V, {dout.data, dout.stride, 1}, vt_ + left, kSoftmaxTile, d_ + left,
                  kSoftmaxTile, false);
  for (int64_t i = 0; i < rows; ++i)
    gradients(x, band, a + i, begin, end, p_ + i * kSoftmaxTile + c0, d_ + i * kSoftmaxTile + c0);
  if (want_v_)
    tile_gemm<Real>(keys, V, rows, {p_ + c0, 1, kSoftmaxTile}, dout.data, dout.stride, dv_ + c0 * V,
                    V, true);
  if (want_k_)
    tile_gemm<Real>(keys, K, rows, {d_ + c0, 1, kSoftmaxTile}, q.data, q.stride, dk_ + c0 * K, K,
                    true);
  if (x.dq)
    tile_gemm<Real>(rows, K, keys, {d_ + c0, kSoftmaxTile, 1}, k_[begin], k_.stride, x.dq[a],
                    x.dq.stride, true);
}

// One query: from q.k and dout.v of the keys [begin, end) to P and the gradient of q.k.
template <class Real>
void BackwardTile<Real>::gradients(const QueryTile<Real>& x, const KeyBand& band, int64_t i,
                                   int64_t begin, int64_t end, Real* __restrict__ p,
                                   Real* __restrict__ d) const {
  const int64_t first = std::max(begin, band.first(x.position + i)) - begin;
  const int64_t stop = std::min(end, band.end(x.position + i)) - begin;
  const Real lse = x.lse[i], delta = x.delta[i], scale = static_cast<Real>(shape_.scale);
  if (shape_.softcap > 0) {
    const Real cap = static_cast<Real>(shape_.softcap);
    const Real inner = static_cast<Real>(shape_.scale / shape_.softcap);
#pragma omp simd
    for (int64_t j = first; j < stop; ++j) {
      const Real t = vtanh(p[j] * inner);
      p[j] = vexp(cap * t - lse);
      d[j] = p[j] * (d[j] - delta) * scale * (1 - t * t);
    }
  } else {
#pragma omp simd
    for (int64_t j = first; j < stop; ++j) {
      p[j] = vexp(p[j] * scale - lse);
      d[j] = p[j] * (d[j] - delta) * scale;
    }
  }
  const int64_t keys = end - begin;
  for (int64_t j = 0; j < std::min(first, keys); ++j) p[j] = d[j] = 0;
  for (int64_t j = std::max(stop, first); j < keys; ++j) p[j] = d[j] = 0;
}

template <class Real>
void BackwardTile<Real>::finish(HeadRows<Real> dk, HeadRows<Real> dv) {
  for (int64_t j = begin_; j < end_; ++j) {
    if (dk) std::copy_n(dk_ + (j - begin_) * shape_.K, shape_.K, dk[j]);
    if (dv) std::copy_n(dv_ + (j - begin_) * shape_.V, shape_.V, dv[j]);
  }
}

template class ForwardTile<float>;
template class ForwardTile<double>;
template class BackwardTile<float>;
template class BackwardTile<double>;

}  // namespace weft::kernels
