// One piece of a chunk in the WY form, forward and backward, for one head: the equations of
// README.md ("Chunkwise", "Backward") on tiles in scratch memory. MatrixView are the piece's n
// tokens and zeros up to m, a whole number of tiles. Exponents are differences of summed gates and
// never positive, and what lies above a diagonal is left out, not multiplied by zero: so no gate
// overflows, and no token sees a later one.
#pragma once

#include <algorithm>

#include "kernels/tokens/chunk.h"

namespace weft::kernels::delta {

// Heads up to this width have shorter chunks than the others.
inline constexpr int64_t kNarrow = 32;
inline constexpr int64_t kShortChunk = 32;

template <class Real>
struct Tiles {
  // Tiles for C tokens, K and V columns.
  Tiles(Carver<Real>& scratch, int64_t C, int64_t key_width, int64_t value_width, bool with_gate,
        bool with_gradients)
      : K(tiled(key_width)), V(tiled(value_width)), gated(with_gate) {
    qk = scratch.tile(2 * C, K), kT = scratch.tile(K, C);
    P = scratch.tile(C, C), M = scratch.tile(C, C), gamma = scratch.tile(gated ? C : 0, C);
    S = scratch.tile(K, V), read = scratch.tile(2 * C, V);
    missed = scratch.tile(C, V), U = scratch.tile(C, V);
    beta = scratch.row(C);
    if (!with_gradients) return;
    dS = scratch.tile(K, V), dO_R = scratch.tile(2 * C, V), dU = scratch.tile(C, V);
    uT = scratch.tile(V, C), ST = scratch.tile(V, K), dST = scratch.tile(V, K);
    dP_dM = scratch.tile(2 * C, C), dq_dk = scratch.tile(2 * C, K), dk = scratch.tile(C, K);
    dbeta = scratch.row(C), dg = scratch.row(C);
  }

  int64_t K, V;  // padded
  int64_t n = 0, m = 0;
  Real scale = 1;
  bool gated;
  Decay<Real> decay;
  Real* beta;              // [m]
  Tile<Real> qk, kT;       // [2 m, K]: q, then k from row m on; [K, m]
  Tile<Real> P, M, gamma;  // [m, m]: scale (q k') Gamma; (k k') Gamma, used below its diagonal
  Tile<Real> S;            // [K, V]: the state before the piece, then after it
  Tile<Real> read;         // [2 m, V]: q S, then k S from row m on; then o in its place
  Tile<Real> missed, U;    // [m, V]: v less what the memory returns for k; beta * missed
  // With gradients:
  Tile<Real> dS;           // [K, V]: that of the state after the piece, then before it
  Tile<Real> dO_R;         // [2 m, V]: do, then beta R from row m on
  Tile<Real> dU;           // [m, V]: gradient of U, then R, that of the equation for U
  Tile<Real> uT, ST, dST;  // transposes of U, S, dS
  Tile<Real> dP_dM;        // [2 m, m]
  Tile<Real> dq_dk, dk;    // [2 m, K]: of q, and of k where it erases; [m, K]: of k where it writes
  Real *dbeta = nullptr, *dg = nullptr;  // [m]

  Tile<Real> q() const { return qk; }
  Tile<Real> k() const { return qk.below(m); }

  // n tokens: rows of q, k, v, and beta(i), g(i) of token i.
  template <class Beta, class Gate>
  void load(int64_t tokens, Real factor, int64_t key_width, MatrixView<const Real> q_rows,
            MatrixView<const Real> k_rows, int64_t value_width, MatrixView<const Real> v_rows,
            const Beta& beta_of, const Gate& gate_of) {
    n = tokens, m = tiled(n), scale = factor;
    kernels::load(n, key_width, q_rows, q());
    kernels::load(n, key_width, k_rows, k());
    kernels::load(n, value_width, v_rows, missed);
    for (int64_t i = 0; i < m; ++i) beta[i] = i < n ? beta_of(i) : Real(0);
    if (gated) decay.set(n, gate_of);
  }

  // From q, k, v and gates as loaded and S: o in `read`, and S after the piece.
  void forward() {
    scores();
    product(2 * m, V, K, qk, S, Real(0), read);
    solve();
    from_start(scale, read);
    product(m, V, m, P, U, Real(1), read, Band::lower);
    if (gated) scale_rows(n, K, decay.to_end, k());
    product_of_transposed(K, V, m, k(), U, decay.total, S);
  }

  // From the same, dS, and do in dO_R with its rest cleared: dq_dk, dk, dbeta, dg, and dS before
  // the piece. take_dv(rows) is handed the gradient of v while it is there.
  template <class F>
  void backward(const F& take_dv) {
    const Tile<Real> dO = dO_R, R = dO_R.below(m), dP = dP_dM, dM = dP_dM.below(m);
    scores();
    product(m, V, K, k(), S, Real(0), read.below(m));
    solve();

    product(m, V, K, k(), dS, Real(0), dU);
    Real closing = 0;
    if (gated) {
      scale_rows(n, V, decay.to_end, dU);
      closing = decay.total * inner(K, dS, S) + inner(n, dU, U);
    }
    product_of_transposed(m, V, m, P, dO, Real(1), dU, Band::upper);
    solve_back();
    for (int64_t i = 0; i < n; ++i) dbeta[i] = inner(1, dU.below(i), missed.below(i));
    take_dv(R);

    transpose(m, V, U, uT);
    lower_product(m, V, dO, uT, dP);
    lower_product(m, V, R, uT, dM);
    decay_scores(n, scale, dP, gamma_or_ones(), dP);
    decay_scores(n, Real(-1), dM, gamma_or_ones(), dM);
    for (int64_t i = 0; i < n; ++i) dM.row(i)[i] = 0;
    from_start(scale, dO);
    from_start(Real(-1), R);

    transpose(K, V, S, ST);
    product(2 * m, K, V, dO_R, ST, Real(0), dq_dk);
    product(m, K, m, dP, k(), Real(1), dq_dk, Band::lower);
    product(m, K, m, dM, k(), Real(1), dq_dk.below(m), Band::lower);
    transpose(K, V, dS, dST);
    product(m, K, V, U, dST, Real(0), dk);
    if (gated) scale_rows(n, K, decay.to_end, dk);
    product_of_transposed(m, K, m, dP, q(), Real(1), dk, Band::upper);
    product_of_transposed(m, K, m, dM, k(), Real(1), dk, Band::upper);
    product_of_transposed(K, V, 2 * m, qk, dO_R, decay.total, dS);

    // Uses with e^{+G} less uses with e^{-G}; the gradient of g_i is their sum from token i on.
    for (int64_t i = n - 1; i >= 0; --i) {
      const Real *const erase = dq_dk.row(m + i), *const dq = dq_dk.row(i);
      Real* const write = dk.row(i);
      Vector<Real> sum = {};
      for (int64_t d = 0; d < K; d += kLanes<Real>) {
        const Vector<Real> both = lanes(erase + d) - lanes(write + d);
        sum += lanes(q().row(i) + d) * lanes(dq + d) + lanes(k().row(i) + d) * both;
        lanes(write + d) += lanes(erase + d);
      }
      closing += total<Real>(sum);
      if (gated && decay.resets(i)) closing = 0;  // nothing passes it: no rounding either
      dg[i] = closing;
    }
  }

 private:
  // P and M from q and k.
  void scores() {
    transpose(m, K, k(), kT);
    lower_product(m, K, q(), kT, P);
    lower_product(m, K, k(), kT, M);
    if (gated) decay.matrix(n, gamma);
    decay_scores(n, scale, P, gamma_or_ones(), P);
    decay_scores(n, Real(1), M, gamma_or_ones(), M);
  }
  Tile<Real> gamma_or_ones() const { return gated ? gamma : Tile<Real>{}; }
  // rows[i] times `factor` and the decay from before the piece to token i.
  void from_start(Real factor, Tile<Real> rows) const {
    for (int64_t i = 0; i < n; ++i) {
      const Real by = gated ? factor * decay.from_start[i] : factor;
      for (int64_t c = 0; c < V; c += kLanes<Real>) lanes(rows.row(i) + c) *= by;
    }
  }

  // missed = (1 + M Diag(beta))^-1 (v - exp(G) k S), U = beta * missed, by forward substitution.
  // `missed` holds v on entry, `read` holds k S from row m on.
  void solve() {
    for (int64_t i = 0; i < n; ++i) {
      const Real factor = gated ? decay.from_start[i] : Real(1);
      for (int64_t c = 0; c < V; c += kLanes<Real>)
        lanes(missed.row(i) + c) -= factor * lanes(read.row(m + i) + c);
    }
    constexpr int kRows = kTileRows;
    detail::for_panels<Real>(V, [&]<int kVectors>(int64_t column) {
      const auto at = [&](Tile<Real> t, int64_t i, int j) {
        return &lanes(t.row(i) + column + j * kLanes<Real>);
      };
      for (int64_t i0 = 0; i0 < m; i0 += kRows) {
        Vector<Real> acc[kRows][kVectors] = {};
        detail::accumulate<Real, kRows, kVectors>(acc, i0, M.row(i0), M.stride, 1, U.data + column,
                                                  U.stride);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
          for (int j = 0; j < kVectors; ++j) acc[i][j] = *at(missed, i0 + i, j) - acc[i][j];
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
          for (int j = 0; j < kVectors; ++j) {
            const Vector<Real> u = beta[i0 + i] * acc[i][j];
            *at(missed, i0 + i, j) = acc[i][j];
            *at(U, i0 + i, j) = u;
#pragma GCC unroll 8
            for (int l = i + 1; l < kRows; ++l) acc[l][j] -= M.row(i0 + l)[i0 + i] * u;
          }
      }
    });
  }

  // The adjoint: dU becomes R = (1 + Diag(beta) M)^-T dU, and beta R goes to dO_R from row m on.
  void solve_back() {
    constexpr int kRows = kTileRows;
    const Tile<Real> R = dO_R.below(m);
    detail::for_panels<Real>(V, [&]<int kVectors>(int64_t column) {
      const auto at = [&](Tile<Real> t, int64_t i, int j) {
        return &lanes(t.row(i) + column + j * kLanes<Real>);
      };
      for (int64_t i0 = m - kRows; i0 >= 0; i0 -= kRows) {
        Vector<Real> acc[kRows][kVectors] = {};
        const int64_t next = i0 + kRows;
        detail::accumulate<Real, kRows, kVectors>(acc, m - next, M.row(next) + i0, 1, M.stride,
                                                  R.row(next) + column, R.stride);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
          for (int j = 0; j < kVectors; ++j) acc[i][j] = *at(dU, i0 + i, j) - acc[i][j];
#pragma GCC unroll 8
        for (int i = kRows - 1; i >= 0; --i)
          for (int j = 0; j < kVectors; ++j) {
            const Vector<Real> r = beta[i0 + i] * acc[i][j];
            *at(dU, i0 + i, j) = acc[i][j];
            *at(R, i0 + i, j) = r;
#pragma GCC unroll 8
            for (int l = 0; l < i; ++l) acc[l][j] -= M.row(i0 + i)[i0 + l] * r;
          }
      }
    });
  }

  // The sum of a (.) b over rows of V columns.
  Real inner(int64_t rows, Tile<Real> a, Tile<Real> b) const {
    Vector<Real> sum = {};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < V; c += kLanes<Real>)
        sum += lanes(a.row(i) + c) * lanes(b.row(i) + c);
    return total<Real>(sum);
  }
};

}  // namespace weft::kernels::delta
