// What the passes of kda's chunkwise form share: the sizes and views of a call, the tokens of one
// sub-chunk of 16 as tiles, and the triangular system between them with its adjoint.
#pragma once

#include "kernels/kda/kda.h"
#include "kernels/tile/scratch.h"
#include "kernels/tokens/pieces.h"
#include "kernels/tokens/vector_gates.h"

namespace weft::kernels::kda {

// Tokens of a chunk of the grid: the states kept for backward take K V / C numbers a token.
inline constexpr int64_t kChunk = 64;
inline constexpr int64_t kSubs = kChunk / kSub;

template <class Real>
struct Problem {
  Problem(const Inputs<Kda>& x, const Options<Kda>& o)
      : initial(x.initial_state ? x.initial_state.contiguous() : x.initial_state),
        B(x.v.size(0)),
        L(x.v.size(1)),
        H(x.v.size(2)),
        group(H / x.k.size(2)),
        K(x.k.size(3)),
        V(x.v.size(3)),
        documents(o.cu_seqlens, B, L, kChunk),
        chunks(documents.chunks()),
        scale(static_cast<Real>(o.factor(K))),
        q(view<const Real>(x.q)),
        k(view<const Real>(x.k)),
        v(view<const Real>(x.v)),
        beta(view<const Real>(x.beta)),
        g(view<const Real>(x.g)),
        state(view<const Real>(initial)) {}

  // Tokens from t on of one head of a [B, T, heads, width] tensor.
  static MatrixView<const Real> rows(const View<const Real>& x, int64_t b, int64_t t, int64_t h) {
    return {x.at(b, t, h), x.stride(1), x.stride(3)};
  }
  // The state before a piece of head h: its document's first one (no data where that is zero), or
  // the one kept on the grid.
  MatrixView<const Real> before(const Piece& p, int64_t b, int64_t h,
                                const View<Real>& kept) const {
    if (!p.first) return {kept.at(b, p.chunk - 1, h), V};
    return {state ? state.at(p.document, h) : nullptr, V};
  }

  Tensor initial;
  int64_t B, L, H, group, K, V;
  Documents documents;
  int64_t chunks;
  Real scale;
  View<const Real> q, k, v, beta, g, state;
};

// n tokens of a sub-chunk; rows from n on are zeros that keep the state. Row kSub + i of a tile of
// two parts belongs to the key of token i.
template <class Real>
struct Tokens {
  Tokens() = default;
  Tokens(Carver<Real>& c, int64_t K, int64_t V)
      : gates(c, K),
        qk(c.tile(2 * kSub, tiled(K))),
        qk_up(c.tile(2 * kSub, tiled(K))),
        k_down(c.tile(kSub, tiled(K))),
        P(c.tile(kSub, kSub)),
        M(c.tile(kSub, kSub)),
        missed(c.tile(kSub, tiled(V))),
        U(c.tile(kSub, tiled(V))),
        beta(c.row(kSub)) {}

  Tile<Real> q() const { return qk; }
  Tile<Real> k() const { return qk.below(kSub); }

  // Of head h from token t on. `missed` then holds v, and k_t [K, kSub] the keys.
  void load(const Problem<Real>& p, int64_t b, int64_t h, int64_t t, int64_t tokens, Tile<Real> k_t,
            int64_t ahead) {
    const int64_t hk = h / p.group, K = tiled(p.K);
    n = tokens;
    gates.set(n, p.K, p.rows(p.g, b, t, h), ahead);
    kernels::load(n, p.K, p.rows(p.q, b, t, hk), q(), p.scale, ahead);
    kernels::load(n, p.K, p.rows(p.k, b, t, hk), k(), 1, ahead);
    kernels::load(n, p.V, p.rows(p.v, b, t, h), missed, 1, ahead);
    for (int64_t i = 0; i < kSub; ++i) beta[i] = i < n ? p.beta(b, t + i, h) : Real(0);
    multiply(K, q(), gates.up, qk_up);
    multiply(K, k(), gates.up, qk_up.below(kSub));
    multiply(K, k(), gates.down, k_down);
    transpose(kSub, K, k(), k_t);
    diagonal_scores(p.K, q(), k_t, gates.a, P);
    diagonal_scores(p.K, k(), k_t, gates.a, M);
  }

  int64_t n = 0;
  SubChunkGates<Real> gates;
  Tile<Real> qk;         // scale * q, then k
  Tile<Real> qk_up;      // the same, decayed from before the sub-chunk
  Tile<Real> k_down;     // k, decayed to the sub-chunk's end
  Tile<Real> P, M;       // decayed scores of q with k, and of k with k: used below its diagonal
  Tile<Real> missed, U;  // v less what the memory returns for k; beta * missed, which is written
  Real* beta = nullptr;
};

// missed = (1 + M Diag(beta))^-1 (missed - read) and U = beta * missed, by forward substitution.
template <class Real>
void solve(int64_t V, Tile<Real> read, Tokens<Real>& x) {
  for (int64_t c = 0; c < V; c += kTile) {
    Line<Real> rest[kSub];
#pragma GCC unroll 16
    for (int i = 0; i < kSub; ++i) rest[i] = line(x.missed.row(i) + c) - line(read.row(i) + c);
#pragma GCC unroll 16
    for (int i = 0; i < kSub; ++i) {
      const Line<Real> u = rest[i] * x.beta[i];
      line(x.missed.row(i) + c) = rest[i];
      line(x.U.row(i) + c) = u;
#pragma GCC unroll 16
      for (int l = i + 1; l < kSub; ++l) rest[l] -= u * x.M.row(l)[i];
    }
  }
}

// The adjoint: dU becomes R = (1 + Diag(beta) M)^-T dU, and `erased` -beta R.
template <class Real>
void solve_back(int64_t V, const Tokens<Real>& x, Tile<Real> dU, Tile<Real> erased) {
  for (int64_t c = 0; c < V; c += kTile) {
    Line<Real> rest[kSub];
#pragma GCC unroll 16
    for (int i = 0; i < kSub; ++i) rest[i] = line(dU.row(i) + c);
#pragma GCC unroll 16
    for (int i = kSub - 1; i >= 0; --i) {
      const Line<Real> r = rest[i] * -x.beta[i];
      line(dU.row(i) + c) = rest[i];
      line(erased.row(i) + c) = r;
#pragma GCC unroll 16
      for (int l = 0; l < i; ++l) rest[l] += r * x.M.row(i)[l];
    }
  }
}

}  // namespace weft::kernels::kda
