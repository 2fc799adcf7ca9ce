// The chunkwise form, backward: from sub-chunk to sub-chunk, last to first, with the gradient of
// the state; the states and what was written are made again from those kept at the starts of
// chunks. States and their gradients lie transposed here, [V, K]: so every product finds its rows.
#include "kernels/delta_rule/form.h"
#include "kernels/kda/problem.h"

namespace weft::kernels {
namespace {

using kda::kSubs;
using kda::Problem;
using kda::Tokens;

template <class Real>
struct Tiles {
  Tiles(Carver<Real>& c, const Problem<Real>& p) {
    const int64_t K = tiled(p.K), V = tiled(p.V);
    for (Tokens<Real>& x : subs) x = Tokens<Real>(c, p.K, p.V);
    for (Tile<Real>& t : s_t) t = c.tile(V, K);
    state = c.tile(K, V);
    ds_t = c.tile(V, K);
    for (Tile<Real>* t : {&k_t, &k_up_t, &k_down_t}) *t = c.tile(K, kSub);
    for (Tile<Real>* t : {&v_t, &u_t}) *t = c.tile(V, kSub);
    for (Tile<Real>* t : {&read, &dU}) *t = c.tile(kSub, V);
    dO_E = c.tile(2 * kSub, V);
    dP_dM = c.tile(2 * kSub, kSub);
    through = c.tile(2 * kSub, K);
    for (Tile<Real>* t : {&through_end, &dq, &erase, &write, &write_more, &dg})
      *t = c.tile(kSub, K);
  }
  Tokens<Real> subs[kSubs];  // the sub-chunks of a piece
  Tile<Real> s_t[kSubs];     // states before them
  Tile<Real> state;          // [K, V], on its way to and from the transposed ones
  Tile<Real> ds_t;           // gradient of the state after the tokens at hand
  Tile<Real> k_t, k_up_t, k_down_t, v_t, u_t;
  Tile<Real> read, dU;     // what k reads of the state; gradient of U, then R
  Tile<Real> dO_E;         // do, then -beta R
  Tile<Real> dP_dM;        // gradients of the decayed scores
  Tile<Real> through;      // of q and of the erasing k, through the state before
  Tile<Real> through_end;  // of the writing k, through the state after
  Tile<Real> dq, erase, write, write_more, dg;  // the rest of them, within the sub-chunk
};

template <class Real>
struct Gradients {
  View<const Real> dout, dstate;
  View<Real> states;
  Inputs<Kda, View<Real>> dx;
};

template <class Real>
class Backward {
 public:
  Backward(const Problem<Real>& p, const Gradients<Real>& f)
      : p_(p), f_(f), K_(tiled(p.K)), V_(tiled(p.V)) {}

  // A piece, w.ds_t holding the gradient of the state after it where its document goes on, and
  // afterwards that of the state before it.
  void piece(int64_t b, int64_t h, const Piece& piece, Tiles<Real>& w) const {
    if (piece.last) {
      load(p_.K, p_.V, {f_.dstate ? f_.dstate.at(piece.document, h) : nullptr, p_.V}, w.state);
      transpose(K_, V_, w.state, w.ds_t);
    }
    const bool passes_on = !piece.first || f_.dx.initial_state;
    const int64_t subs = (piece.size() + kSub - 1) / kSub;
    forward_again(b, h, piece, subs, w);
    for (int64_t i = subs - 1; i >= 0; --i) {
      const int64_t t = piece.begin + i * kSub;
      load(w.subs[i].n, p_.V, p_.rows(f_.dout, b, t, h), w.dO_E, 1, kPrevious);
      token_gradients(b, h, t, w.subs[i], w.s_t[i], w);
      if (i == 0 && !passes_on) continue;
      scale_columns(p_.V, K_, w.subs[i].gates.total, w.ds_t, w.ds_t);
      product_of_transposed(V_, K_, 2 * kSub, w.dO_E, w.subs[i].qk_up, Real(1), w.ds_t);
    }
    if (piece.first && passes_on) {
      transpose(V_, K_, w.ds_t, w.state);
      store(p_.K, p_.V, w.state, f_.dx.initial_state.at(piece.document, h), p_.V);
    }
  }

 private:
  // The sub-chunks of a piece with the states before them, and what each token wrote.
  void forward_again(int64_t b, int64_t h, const Piece& piece, int64_t subs, Tiles<Real>& w) const {
    load(p_.K, p_.V, p_.before(piece, b, h, f_.states), w.state);
    transpose(K_, V_, w.state, w.s_t[0]);
    for (int64_t i = 0; i < subs; ++i) {
      Tokens<Real>& x = w.subs[i];
      const int64_t t = piece.begin + i * kSub;
      x.load(p_, b, h, t, std::min(kSub, piece.end - t), w.k_t, kPrevious);
      transpose(kSub, K_, x.qk_up.below(kSub), w.k_up_t);
      product(V_, kSub, K_, w.s_t[i], w.k_up_t, Real(0), w.v_t);
      transpose(V_, kSub, w.v_t, w.read);
      kda::solve(V_, w.read, x);
      if (i + 1 == subs) break;
      scale_columns(V_, K_, x.gates.total, w.s_t[i], w.s_t[i + 1]);
      product_of_transposed(V_, K_, kSub, x.U, x.k_down, Real(1), w.s_t[i + 1]);
    }
  }

  // The gradients of a sub-chunk's tokens, do being in w. README.md, Backward.
  void token_gradients(int64_t b, int64_t h, int64_t t, const Tokens<Real>& x, Tile<Real> s_t,
                       Tiles<Real>& w) const {
    // Of what was written, and back through the triangular system.
    transpose(kSub, K_, x.k_down, w.k_down_t);
    product(V_, kSub, K_, w.ds_t, w.k_down_t, Real(0), w.v_t);
    transpose(V_, kSub, w.v_t, w.dU);
    product_of_transposed(kSub, V_, kSub, x.P, w.dO_E, Real(1), w.dU, Band::upper);
    kda::solve_back(V_, x, w.dU, w.dO_E.below(kSub));

    // Through the states before and after.
    product(2 * kSub, K_, V_, w.dO_E, s_t, Real(0), w.through);
    multiply(K_, w.through, x.gates.up, w.through);
    multiply(K_, w.through.below(kSub), x.gates.up, w.through.below(kSub));
    product(kSub, K_, V_, x.U, w.ds_t, Real(0), w.through_end);
    multiply(K_, w.through_end, x.gates.down, w.through_end);

    // Within the sub-chunk, but for q and k of the same token.
    transpose(kSub, V_, x.U, w.u_t);
    product(2 * kSub, kSub, V_, w.dO_E, w.u_t, Real(0), w.dP_dM);
    diagonal_gradients(p_.K, w.dP_dM, x.q(), x.k(), x.gates.a, w.dq, w.write);
    diagonal_gradients(p_.K, w.dP_dM.below(kSub), x.k(), x.k(), x.gates.a, w.erase, w.write_more);
    add(w.write_more, w.write);

    if (f_.dx.g) gate_gradients(x, s_t, w);
    for (int64_t i = 0; i < x.n && f_.dx.beta; ++i)
      f_.dx.beta(b, t + i, h) = dot(V_, w.dU.row(i), x.missed.row(i));
    sum_of_keys(x, w);
    const int64_t hk = h / p_.group;
    const bool more = h % p_.group != 0;
    const auto put = [&](const View<Real>& to, int64_t head, int64_t width, Tile<Real> from,
                         bool sum, Real factor) {
      if (to) store(x.n, width, from, to.at(b, t, head), to.stride(1), sum, factor);
    };
    put(f_.dx.q, hk, p_.K, w.dq, more, p_.scale);
    put(f_.dx.k, hk, p_.K, w.write, more, Real(1));
    put(f_.dx.v, h, p_.V, w.dO_E.below(kSub), false, Real(-1));
    put(f_.dx.g, h, p_.K, w.dg, false, Real(1));
  }

  // A gate stands between the tokens before it and those from it on. The first one of a sub-chunk
  // has none before it, and so nothing of the scores within.
  void gate_gradients(const Tokens<Real>& x, Tile<Real> s_t, Tiles<Real>& w) const {
    const auto at = [](Tile<Real> tile, int64_t i, int64_t d) -> Line<Real>& {
      return line(tile.row(i) + d);
    };
    for (int64_t d = 0; d < K_; d += kTile) {
      Line<Real> past = {}, within = {};
      for (int64_t c = 0; c < p_.V; ++c) past += at(s_t, c, d) * at(w.ds_t, c, d);
      past *= line(x.gates.total + d);
      for (int64_t i = 0; i < x.n; ++i) {
        at(w.dg, i, d) = past;
        past += at(x.k(), i, d) * at(w.through_end, i, d);
      }
      Line<Real> future = {};
      for (int64_t i = x.n - 1; i >= 0; --i) {
        const Line<Real> q = at(x.q(), i, d), k = at(x.k(), i, d);
        future += q * at(w.through, i, d) + k * at(w.through, kSub + i, d);
        within += q * at(w.dq, i, d) + k * (at(w.erase, i, d) - at(w.write, i, d));
        const Line<Real>& gate = at(x.gates.a, i, d);
        at(w.dg, i, d) += i > 0 ? future + within : future;
        stop_at_reset<Real>(gate, at(w.dg, i, d));
        stop_at_reset<Real>(gate, within);
      }
    }
  }

  // The whole of dq (but for its scale) in w.dq, that of dk in w.write.
  void sum_of_keys(const Tokens<Real>& x, Tiles<Real>& w) const {
    for (int64_t i = 0; i < x.n; ++i) {
      const Real own = w.dP_dM.row(i)[i];
      const Real *const q = x.q().row(i), *const k = x.k().row(i), *const erase = w.erase.row(i);
      const Real *const through_q = w.through.row(i), *const through_k = w.through.row(kSub + i);
      const Real* const through_end = w.through_end.row(i);
      Real *const dq = w.dq.row(i), *const dk = w.write.row(i);
#pragma omp simd
      for (int64_t d = 0; d < K_; ++d) {
        dq[d] += through_q[d] + own * k[d];
        dk[d] += erase[d] + through_k[d] + through_end[d] + own * q[d];
      }
    }
  }

  void add(Tile<Real> from, Tile<Real> to) const {
    for (int64_t i = 0; i < kSub; ++i)
      for (int64_t d = 0; d < K_; d += kTile) line(to.row(i) + d) += line(from.row(i) + d);
  }

  const Problem<Real>& p_;
  const Gradients<Real>& f_;
  int64_t K_, V_;  // in whole tiles
};

}  // namespace

void Kda::cpu_backward(const Inputs<Tensor>& in, const Options& options, const Saved& saved,
                       const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (rounds_operands(in.v.dtype())) return delta_rule::Form<Kda>(in, options).backward(dy, dx);
  for_real(in.v.dtype(), [&]<class Real>() {
    const Problem<Real> p(in, options);
    const Tensor dfinal = dy.final_state ? dy.final_state.contiguous() : dy.final_state;
    const Tensor scratch = scratch_for<Tiles<Real>, Real>(p, in.v.device());
    if (scratch.is_meta()) return;
    const Gradients<Real> f{view<const Real>(dy.o),
                            view<const Real>(dfinal),
                            view<Real>(saved.states),
                            {view<Real>(dx.q), view<Real>(dx.k), view<Real>(dx.v),
                             view<Real>(dx.beta), view<Real>(dx.g), view<Real>(dx.initial_state)}};
    const Backward<Real> backward(p, f);
    // Heads that share a key add up its gradient one after the other, in one task.
    const int64_t Hk = p.H / p.group;
    parallel_for(p.B * Hk, [&](int64_t i) {
      const int64_t b = i / Hk, hk = i % Hk;
      auto w = scratch_tiles<Tiles<Real>, Real>(p, scratch);
      for (int64_t h = hk * p.group; h < (hk + 1) * p.group; ++h)
        for (int64_t c = p.chunks - 1; c >= 0; --c)
          p.documents.for_pieces_back(b, c,
                                      [&](const Piece& piece) { backward.piece(b, h, piece, w); });
    });
  });
}

}  // namespace weft::kernels
