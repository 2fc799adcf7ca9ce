// What the passes of gated_linear's chunkwise form share: the sizes and views of a call, and the
// gates of a sub-chunk.
//
// A sub-chunk is the 16 tokens (one tile) that are handled at once. Gates enter as three factors, all
// at most 1: a = e^g of a token, `up` from before the sub-chunk to a token, `down` from a token to
// the sub-chunk's end. The reference of both lies before or after all rows that use it.
#pragma once

#include <cmath>

#include "kernels/common/chunk.h"
#include "kernels/common/pieces.h"
#include "kernels/common/scratch.h"
#include "kernels/gated_linear/gated_linear.h"

namespace weft::kernels::gated_linear {

// Tokens of a chunk of the grid: the states kept for backward take K V / C numbers a token.
inline constexpr int64_t kChunk = 64;
inline constexpr int64_t kSub = kTile;
inline constexpr int64_t kSubs = kChunk / kSub;

template <class Real>
struct Problem {
  Problem(const Inputs<GatedLinear>& x, const Options<GatedLinear>& o)
      : B(x.q.size(0)),
        T(x.q.size(1)),
        Hk(x.q.size(2)),
        H(x.v.size(2)),
        K(x.q.size(3)),
        V(x.v.size(3)),
        group(H / Hk),
        documents(o.cu_seqlens, B, T, kChunk),
        chunks(documents.chunks()),
        scale(static_cast<Real>(o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(K)))),
        q(view<Real>(x.q)),
        k(view<Real>(x.k)),
        v(view<Real>(x.v)),
        g(view<Real>(x.g)),
        initial_state(view<Real>(x.initial_state)) {}

  // Tokens from t on of one head: [.., K] or [.., V].
  static Rows<const Real> rows(const View<Real>& x, int64_t b, int64_t t, int64_t h) {
    return {x.at(b, t, h), x.stride(1), x.stride(3)};
  }
  // The state [K, V] of a document; no data where `state` is absent.
  static Rows<const Real> state_of(const View<Real>& state, int64_t h, const Piece& p) {
    if (!state) return {};
    return {state.at(p.document, h), state.stride(2), state.stride(3)};
  }

  // Are there enough heads to give each thread whole rows of them? Else a first pass makes the states
  // of all chunks, and a second one takes all chunks at once. Both make every number by the same steps.
  bool whole_rows(int64_t heads) const {
    const int64_t tasks = B * heads, threads = thread_count();
    return tasks % threads == 0 || tasks >= 4 * threads;
  }

  int64_t B, T, Hk, H, K, V, group;
  Documents documents;
  int64_t chunks;
  Real scale;
  View<Real> q, k, v, g, initial_state;
};

// One row of scores, or one tile's width of channels.
template <class Real>
using Line = Vector<Real, sizeof(Real) * kTile>;
template <class Real>
Line<Real>& line(Real* at) {
  return *reinterpret_cast<Line<Real>*>(at);
}

template <class Real>
struct Gates {
  Tile<Real> a, up, down;  // [kSub, K]
  Real* total;             // [K]: over the whole sub-chunk

  Gates() = default;
  Gates(Carver<Real>& c, int64_t K)
      : a(c.tile(kSub, tiled(K))),
        up(c.tile(kSub, tiled(K))),
        down(c.tile(kSub, tiled(K))),
        total(c.row(K)) {}

  // Of n tokens; rows after them, and channels after K, keep everything.
  void set(int64_t n, int64_t K, Rows<const Real> g, int64_t ahead) {
    const int64_t width = tiled(K);
    load(n, K, g, a, 1, ahead);
    for (int64_t d = 0; d < width; d += kTile) {
      // Products of a, at most 16: an error here is not carried from one sub-chunk to the next. What
      // is carried, the total, is the exponential of the sum.
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

// p_ij = sum_d q_id k_jd a_{j+1,d} .. a_id for j <= i, zero above; k_t is [K, kSub].
// Gates are multiplied on step by step, so no exponent is ever formed that could be positive.
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

}  // namespace weft::kernels::gated_linear
