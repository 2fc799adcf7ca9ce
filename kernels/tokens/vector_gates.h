// SubChunkGates a key channel, in sub-chunks: what the mechanisms share that forget so.
//
// A sub-chunk is the 16 tokens (one tile) that are handled at once. SubChunkGates enter as three
// factors, all at most 1: a = e^g of a token, `up` from before the sub-chunk to a token, `down`
// from a token to the sub-chunk's end. The reference of both lies before or after all rows that use
// it, so that no exponent is positive; and nothing that a token is given depends on a later one.
// Sources: arXiv:2312.06635, 2510.26692.
#pragma once

#include "kernels/tokens/chunk.h"

namespace weft::kernels {

inline constexpr int64_t kSub = kTile;  // tokens of a sub-chunk

// One row of scores, or one tile's width of channels.
template <class Real>
using Line = Vector<Real, sizeof(Real) * kTile>;
template <class Real>
Line<Real>& line(Real* at) {
  return *reinterpret_cast<Line<Real>*>(at);
}

template <class Real>
struct SubChunkGates {
  Tile<Real> a, up, down;  // [kSub, K]
  Real* total;             // [K]: over the whole sub-chunk

  SubChunkGates() = default;
  SubChunkGates(Carver<Real>& c, int64_t K)
      : a(c.tile(kSub, tiled(K))),
        up(c.tile(kSub, tiled(K))),
        down(c.tile(kSub, tiled(K))),
        total(c.row(K)) {}

  // Of n tokens; rows after them, and channels after K, keep everything.
  void set(int64_t n, int64_t K, MatrixView<const Real> g, int64_t ahead) {
    const int64_t width = tiled(K);
    load(n, K, g, a, 1, ahead);
    for (int64_t d = 0; d < width; d += kTile) {
      // Products of a, at most 16: an error here is not carried from one sub-chunk to the next.
      // What is carried, the total, is the exponential of the sum.
      Line<Real> sum = {}, product = Line<Real>{} + 1;
      for (int64_t i = 0; i < kSub; ++i) {
        Real* const at = a.row(i) + d;
        sum += line(at);
        exponentials(kTile, at);
        line(up.row(i) + d) = product *= line(at);
      }
      line(total + d) = sum;
      exponentials(kTile, total + d);
      product = Line<Real>{} + 1;
      for (int64_t i = kSub - 1; i >= 0; --i) {
        line(down.row(i) + d) = product;
        product *= line(a.row(i) + d);
      }
    }
  }
};

// out = x (.) y, [kSub, width]
template <class Real>
void multiply(int64_t width, Tile<Real> x, Tile<Real> y, Tile<Real> out) {
  for (int64_t i = 0; i < kSub; ++i) {
    const Real *const a = x.row(i), *const b = y.row(i);
    Real* const to = out.row(i);
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) to[d] = a[d] * b[d];
  }
}

// x becomes 0 where the gate forgets all: of the sums that a gate's gradient is made of, those that
// would have to cancel there leave rounding.
template <class Real>
void stop_at_reset(const Line<Real>& gate, Line<Real>& x) {
  x = gate == Real(0) ? Line<Real>{} : x;
}

// to = s [rows, width] times total[column]
template <class Real>
void scale_columns(int64_t rows, int64_t width, const Real* total, Tile<Real> s, Tile<Real> to) {
  for (int64_t e = 0; e < rows; ++e) {
    const Real* const from = s.row(e);
    Real* const line = to.row(e);
#pragma omp simd
    for (int64_t d = 0; d < width; ++d) line[d] = from[d] * total[d];
  }
}

// p_ij = sum_d q_id k_jd a_{j+1,d} .. a_id for j <= i, zero above; k_t is [K, kSub].
// SubChunkGates are multiplied on step by step, so no exponent is ever formed that could be
// positive.
template <class Real>
void diagonal_scores(int64_t K, Tile<Real> q, Tile<Real> k_t, Tile<Real> a, Tile<Real> p) {
  using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  constexpr Vector<Index, sizeof(Index)* kTile> kLane = {0, 1, 2,  3,  4,  5,  6,  7,
                                                         8, 9, 10, 11, 12, 13, 14, 15};
  Line<Real> sum[kSub] = {};
  for (int64_t d = 0; d < K; ++d) {
    Line<Real> k = line(k_t.row(d));
#pragma GCC unroll 16
    for (int i = 0; i < kSub; ++i) {
      k = kLane < Index(i) ? k * a.row(i)[d] : k;
      sum[i] += k * q.row(i)[d];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSub; ++i) line(p.row(i)) = kLane <= Index(i) ? sum[i] : Line<Real>{};
}

// The gradients of the above but for its diagonal: dq_id = sum_{j < i} dp_ij k_jd a_{j+1,d} .. a_id
// and dk_jd = sum_{i > j} dp_ij q_id a_{j+1,d} .. a_id, a tile's width of channels at a time.
template <class Real>
void diagonal_gradients(int64_t K, Tile<Real> dp, Tile<Real> q, Tile<Real> k, Tile<Real> a,
                        Tile<Real> dq, Tile<Real> dk) {
  for (int64_t d = 0; d < K; d += kTile) {
    Line<Real> faded[kSub];
#pragma GCC unroll 16
    for (int i = 0; i < kSub; ++i) {
      Line<Real> sum = {};
      const Line<Real> gate = line(a.row(i) + d);
#pragma GCC unroll 16
      for (int j = 0; j < i; ++j) {
        faded[j] *= gate;
        sum += faded[j] * dp.row(i)[j];
      }
      line(dq.row(i) + d) = sum;
      faded[i] = line(k.row(i) + d);
    }
#pragma GCC unroll 16
    for (int j = kSub - 1; j >= 0; --j) {
      Line<Real> sum = {};
      if (j + 1 < kSub) {
        const Line<Real> gate = line(a.row(j + 1) + d);
#pragma GCC unroll 16
        for (int i = j + 1; i < kSub; ++i) {
          faded[i] *= gate;
          sum += faded[i] * dp.row(i)[j];
        }
      }
      line(dk.row(j) + d) = sum;
      faded[j] = line(q.row(j) + d);
    }
  }
}

}  // namespace weft::kernels
