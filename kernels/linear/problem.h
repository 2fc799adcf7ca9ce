// What the passes of linear's chunkwise form share: the sizes and views of a call, and where a
// piece finds its state, its rows and its decays.
#pragma once

#include <cmath>

#include "kernels/linear/linear.h"
#include "kernels/tile/scratch.h"
#include "kernels/tokens/chunk.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels::linear {

// Tokens of a chunk: the states kept for backward take K V / C numbers a token.
inline constexpr int64_t kChunk = 64;
static_assert(kChunk <= kMaxChunk);

template <class Real>
struct Problem {
  Problem(const Inputs<Linear>& x, const Options<Linear>& o)
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
        eps(static_cast<Real>(o.eps)),
        normalize(o.normalize),
        decays(x.g || x.log_gamma),
        q(view<Real>(x.q)),
        k(view<Real>(x.k)),
        v(view<Real>(x.v)),
        g(view<Real>(x.g)),
        log_gamma(view<Real>(x.log_gamma)),
        initial_state(view<Real>(x.initial_state)),
        initial_z(view<Real>(x.initial_z)) {}

  static MatrixView<const Real> rows(const View<Real>& x, int64_t b, int64_t t, int64_t h) {
    return {x.at(b, t, h), x.stride(1), x.stride(3)};
  }
  // The state [K, V] that the piece starts from, no data for zero; `states` as in Saved.
  MatrixView<const Real> state_before(const View<Real>& states, int64_t b, int64_t h,
                                      const Piece& p) const {
    if (p.first) return state_of(initial_state, h, p);
    return {states.at(b, p.chunk - 1, h), V, 1};
  }
  MatrixView<const Real> state_of(const View<Real>& state, int64_t h, const Piece& p) const {
    if (!state) return {};
    return {state.at(p.document, h), state.stride(2), state.stride(3)};
  }
  // The same for z [1, K].
  MatrixView<const Real> z_before(const View<Real>& sums, int64_t b, int64_t h,
                                  const Piece& p) const {
    if (p.first) return z_of(initial_z, h, p);
    return {sums.at(b, p.chunk - 1, h), K, 1};
  }
  MatrixView<const Real> z_of(const View<Real>& z, int64_t h, const Piece& p) const {
    if (!z) return {};
    return {z.at(p.document, h), K, z.stride(2)};
  }

  Real gate(int64_t b, int64_t t, int64_t h) const {
    return (g ? g(b, t, h) : Real(0)) + (log_gamma ? log_gamma(h) : Real(0));
  }
  void set(Decay<Real>& decay, int64_t b, int64_t h, const Piece& p) const {
    if (decays) decay.set(p.size(), [&](int64_t i) { return gate(b, p.begin + i, h); });
  }

  int64_t B, T, Hk, H, K, V, group;
  Documents documents;
  int64_t chunks;
  Real scale, eps;
  bool normalize, decays;
  View<Real> q, k, v, g, log_gamma, initial_state, initial_z;
};

}  // namespace weft::kernels::linear
