// What the passes of gated_linear's chunkwise form share: the sizes and views of a call.
#pragma once

#include <cmath>

#include "kernels/gated_linear/gated_linear.h"
#include "kernels/tile/scratch.h"
#include "kernels/tokens/pieces.h"
#include "kernels/tokens/vector_gates.h"

namespace weft::kernels::gated_linear {

// Tokens of a chunk of the grid: the states kept for backward take K V / C numbers a token.
inline constexpr int64_t kChunk = 64;
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
  static MatrixView<const Real> rows(const View<Real>& x, int64_t b, int64_t t, int64_t h) {
    return {x.at(b, t, h), x.stride(1), x.stride(3)};
  }
  // The state [K, V] of a document; no data where `state` is absent.
  static MatrixView<const Real> state_of(const View<Real>& state, int64_t h, const Piece& p) {
    if (!state) return {};
    return {state.at(p.document, h), state.stride(2), state.stride(3)};
  }

  // Are there enough heads to give each thread whole rows of them? Else a first pass makes the
  // states of all chunks, and a second one takes all chunks at once. Both make every number by the
  // same steps.
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

}  // namespace weft::kernels::gated_linear
