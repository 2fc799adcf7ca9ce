// The chunkwise form, backward: from sub-chunk to sub-chunk, last to first, with the gradient of
// the state; the states themselves are made again from those kept at the starts of chunks. States
// and their gradients lie transposed here, [V, K], since every product that reads them wants them
// so.
#include "kernels/gated_linear/problem.h"

namespace weft::kernels {
namespace {

using gated_linear::kSubs;
using gated_linear::Problem;

template <class Real>
struct Tiles {
  Tiles(Carver<Real>& c, const Problem<Real>& p) {
    const int64_t K = tiled(p.K), V = tiled(p.V);
    for (Tile<Real>* t : {&q, &k, &q_up, &k_down, &dq, &dk, &through_q, &through_k, &dg})
      *t = c.tile(kSub, K);
    for (Tile<Real>* t : {&v, &dout, &dv}) *t = c.tile(kSub, V);
    for (Tile<Real>* t : {&k_t, &k_down_t}) *t = c.tile(K, kSub);
    for (Tile<Real>* t : {&v_t, &dv_t}) *t = c.tile(V, kSub);
    for (Tile<Real>* t : {&p_, &dp}) *t = c.tile(kSub, kSub);
    state = c.tile(K, V);
    ds_t = c.tile(V, K);
    for (Tile<Real>& t : s_t) t = c.tile(V, K);
    for (SubChunkGates<Real>& g : gates) g = SubChunkGates<Real>(c, p.K);
  }
  Tile<Real> q, k, q_up, k_down, dq, dk, through_q, through_k, dg;
  Tile<Real> v, dout, dv, k_t, k_down_t, v_t, dv_t, p_, dp;
  Tile<Real> state;       // [K, V], on its way to s_t
  Tile<Real> ds_t;        // gradient of the state after the tokens at hand
  Tile<Real> s_t[kSubs];  // states before the sub-chunks of a piece
  SubChunkGates<Real> gates[kSubs];
};

template <class Real>
struct Gradients {
  View<Real> dout, dfinal_state, states;
  View<Real> dstates;  // [B, chunks - 1, H, V, K]: at the ends of chunks
  Inputs<GatedLinear, View<Real>> dx;
};

template <class Real>
class Backward {
 public:
  Backward(const Problem<Real>& p, const Gradients<Real>& f)
      : p_(p), f_(f), K_(tiled(p.K)), V_(tiled(p.V)) {}

  // The pieces of one chunk. w.ds_t holds the gradient of the state at the chunk's end where its
  // last document goes on, and afterwards that at its start. `tokens`: make the gradients of the
  // tokens; `keep`: put those of states into dstates and initial_state.
  void chunk(int64_t b, int64_t h, int64_t c, Tiles<Real>& w, bool tokens, bool keep) const {
    p_.documents.for_pieces_back(b, c, [&](const Piece& piece) {
      if (piece.last) {
        load(p_.K, p_.V, p_.state_of(f_.dfinal_state, h, piece), w.state);
        transpose(K_, V_, w.state, w.ds_t);
      }
      const bool passes_on = keep && (!piece.first || f_.dx.initial_state);
      if (!tokens && !passes_on) return;
      const int64_t subs = (piece.size() + kSub - 1) / kSub;
      if (tokens)
        states_again(b, h, piece, subs, w);
      else
        for (int64_t i = 0; i < subs; ++i) set_gates(b, h, piece, i, w);
      for (int64_t i = subs - 1; i >= 0; --i) {
        const int64_t t = piece.begin + i * kSub, n = std::min(kSub, piece.end - t);
        load(n, p_.K, p_.rows(p_.q, b, t, h / p_.group), w.q, p_.scale, kPrevious);
        load(n, p_.V, p_.rows(f_.dout, b, t, h), w.dout, 1, kPrevious);
        multiply(K_, w.q, w.gates[i].up, w.q_up);
        if (tokens) token_gradients(b, h, t, n, w.gates[i], w.s_t[i], w);
        if (i == 0 && !passes_on) continue;
        scale_columns(p_.V, K_, w.gates[i].total, w.ds_t, w.ds_t);
        product_of_transposed(V_, K_, n, w.dout, w.q_up, Real(1), w.ds_t);
      }
      if (!passes_on) return;
      if (piece.first) {
        transpose(V_, K_, w.ds_t, w.state);
        store(p_.K, p_.V, w.state, f_.dx.initial_state.at(piece.document, h), p_.V);
      } else if (f_.dstates) {
        store(p_.V, p_.K, w.ds_t, f_.dstates.at(b, c - 1, h), p_.K);
      }
    });
  }
  void fetch(int64_t b, int64_t h, int64_t c, Tiles<Real>& w) const {
    if (p_.documents.continues(b, c + 1))
      load(p_.V, p_.K, {f_.dstates.at(b, c, h), p_.K, 1}, w.ds_t);
  }

 private:
  void set_gates(int64_t b, int64_t h, const Piece& piece, int64_t i, Tiles<Real>& w) const {
    const int64_t t = piece.begin + i * kSub;
    w.gates[i].set(std::min(kSub, piece.end - t), p_.K, p_.rows(p_.g, b, t, h), kPrevious);
  }

  // SubChunkGates and states of a piece's sub-chunks, from the state before it.
  void states_again(int64_t b, int64_t h, const Piece& piece, int64_t subs, Tiles<Real>& w) const {
    const auto before = piece.first
                            ? p_.state_of(p_.initial_state, h, piece)
                            : MatrixView<const Real>{f_.states.at(b, piece.chunk - 1, h), p_.V};
    load(p_.K, p_.V, before, w.state);
    transpose(K_, V_, w.state, w.s_t[0]);
    for (int64_t i = 0; i < subs; ++i) {
      set_gates(b, h, piece, i, w);
      if (i + 1 == subs) break;
      const int64_t t = piece.begin + i * kSub;
      load(kSub, p_.K, p_.rows(p_.k, b, t, h / p_.group), w.k);
      load(kSub, p_.V, p_.rows(p_.v, b, t, h), w.v);
      multiply(K_, w.k, w.gates[i].down, w.k_down);
      scale_columns(V_, K_, w.gates[i].total, w.s_t[i], w.s_t[i + 1]);
      product_of_transposed(V_, K_, kSub, w.v, w.k_down, Real(1), w.s_t[i + 1]);
    }
  }

  // The gradients of n tokens from t on; q (times scale), q_up and dout are in w. README.md,
  // Backward.
  void token_gradients(int64_t b, int64_t h, int64_t t, int64_t n, const SubChunkGates<Real>& gates,
                       Tile<Real> s_t, Tiles<Real>& w) const {
    const int64_t hk = h / p_.group;
    load(n, p_.K, p_.rows(p_.k, b, t, hk), w.k, 1, kPrevious);
    load(n, p_.V, p_.rows(p_.v, b, t, h), w.v, 1, kPrevious);
    transpose(kSub, K_, w.k, w.k_t);
    transpose(kSub, V_, w.v, w.v_t);

    // What goes through the states before and after.
    product(kSub, K_, V_, w.dout, s_t, Real(0), w.through_q);
    multiply(K_, w.through_q, gates.up, w.through_q);
    product(kSub, K_, V_, w.v, w.ds_t, Real(0), w.through_k);
    multiply(K_, w.through_k, gates.down, w.through_k);
    multiply(K_, w.k, gates.down, w.k_down);
    transpose(kSub, K_, w.k_down, w.k_down_t);
    product(V_, kSub, K_, w.ds_t, w.k_down_t, Real(0), w.dv_t);
    transpose(V_, kSub, w.dv_t, w.dv);

    // What stays inside the sub-chunk.
    diagonal_scores(p_.K, w.q, w.k_t, gates.a, w.p_);
    lower_product(kSub, V_, w.dout, w.v_t, w.dp);
    decay_scores(kSub, Real(1), w.dp, Tile<Real>{}, w.dp);
    product_of_transposed(kSub, V_, kSub, w.p_, w.dout, Real(1), w.dv, Band::upper);
    diagonal_gradients(p_.K, w.dp, w.q, w.k, gates.a, w.dq, w.dk);

    if (f_.dx.g) gate_gradients(n, gates, s_t, w);
    for (int64_t i = 0; i < n; ++i) {
      const Real diagonal = w.dp.row(i)[i], scale = p_.scale;
      const Real *const q = w.q.row(i), *const k = w.k.row(i);
      const Real *const through_q = w.through_q.row(i), *const through_k = w.through_k.row(i);
      Real *const dq = w.dq.row(i), *const dk = w.dk.row(i);
#pragma omp simd
      for (int64_t d = 0; d < K_; ++d) {
        dq[d] = scale * (dq[d] + through_q[d] + diagonal * k[d]);
        dk[d] += through_k[d] + diagonal * q[d];
      }
    }
    const bool add = h % p_.group != 0;
    const auto put = [&](const View<Real>& to, int64_t head, int64_t width, Tile<Real> from,
                         bool sum) {
      if (to) store(n, width, from, to.at(b, t, head), to.stride(1), sum);
    };
    put(f_.dx.q, hk, p_.K, w.dq, add);
    put(f_.dx.k, hk, p_.K, w.dk, add);
    put(f_.dx.v, h, p_.V, w.dv, false);
    put(f_.dx.g, h, p_.K, w.dg, false);
  }

  void gate_gradients(int64_t n, const SubChunkGates<Real>& gates, Tile<Real> s_t,
                      Tiles<Real>& w) const {
    for (int64_t d = 0; d < K_; d += kTile) {
      Line<Real> sum = {};
      for (int64_t e = 0; e < p_.V; ++e) sum += line(s_t.row(e) + d) * line(w.ds_t.row(e) + d);
      sum *= line(gates.total + d);
      for (int64_t i = 0; i < n; ++i) {
        line(w.dg.row(i) + d) = sum;
        sum += line(w.k.row(i) + d) * line(w.through_k.row(i) + d);
      }
      sum = Line<Real>{};
      for (int64_t i = n - 1; i >= 0; --i) {
        sum += line(w.q.row(i) + d) * (line(w.through_q.row(i) + d) + line(w.dq.row(i) + d)) -
               line(w.k.row(i) + d) * line(w.dk.row(i) + d);
        const Line<Real> gate = line(gates.a.row(i) + d);
        stop_at_reset<Real>(gate, sum);
        line(w.dg.row(i) + d) += sum;
        stop_at_reset<Real>(gate, line(w.dg.row(i) + d));
      }
    }
  }

  const Problem<Real>& p_;
  const Gradients<Real>& f_;
  int64_t K_, V_;  // in whole tiles
};

}  // namespace

void GatedLinear::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  for_real(x.q.dtype(), [&]<class Real>() {
    const Problem<Real> p(x, o);
    const bool whole = p.whole_rows(p.Hk);
    Tensor dstates;
    if (p.chunks > 1 && !whole)
      dstates = empty({p.B, p.chunks - 1, p.H, p.V, p.K}, x.q.dtype(), x.q.device());
    const Gradients<Real> f{view<Real>(dy.o),
                            view<Real>(dy.final_state),
                            view<Real>(saved.states),
                            view<Real>(dstates),
                            {view<Real>(dx.q), view<Real>(dx.k), view<Real>(dx.v), view<Real>(dx.g),
                             view<Real>(dx.initial_state)}};
    const Tensor memory = scratch_for<Tiles<Real>, Real>(p, x.q.device());
    if (memory.is_meta()) return;
    const Backward<Real> backward(p, f);
    if (!whole)
      parallel_for(p.B * p.H, [&](int64_t i) {
        auto tiles = scratch_tiles<Tiles<Real>, Real>(p, memory);
        for (int64_t c = p.chunks - 1; c >= 0; --c)
          backward.chunk(i / p.H, i % p.H, c, tiles, /*tokens=*/false, /*keep=*/true);
      });
    // The heads that share a key follow each other, so that their sum has one order.
    parallel_for(p.B * p.Hk * (whole ? 1 : p.chunks), [&](int64_t i) {
      auto tiles = scratch_tiles<Tiles<Real>, Real>(p, memory);
      const int64_t first = i % p.Hk * p.group, row = i / p.Hk;
      for (int64_t h = first; h < first + p.group; ++h) {
        if (whole) {
          for (int64_t c = p.chunks - 1; c >= 0; --c)
            backward.chunk(row, h, c, tiles, /*tokens=*/true, /*keep=*/true);
        } else {
          backward.fetch(row / p.chunks, h, row % p.chunks, tiles);
          backward.chunk(row / p.chunks, h, row % p.chunks, tiles, true, /*keep=*/false);
        }
      }
    });
  });
}

}  // namespace weft::kernels
