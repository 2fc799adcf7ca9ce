// The chunkwise form, backward: a pass over the chunks of each head, last to first, makes the
// gradients of the states at their ends; then all chunks make the gradients of their tokens at
// once.
#include "kernels/linear/problem.h"

namespace weft::kernels {
namespace {

using linear::kChunk;
using linear::Problem;

template <class Real>
struct Gradients {
  View<Real> dout, o, denominator;    // denominator only with normalize
  View<Real> dfinal_state, dfinal_z;  // absent: zero
  View<Real> states, sums;            // at the starts of chunks, as saved
  View<Real> dstates, dsums;          // [B, chunks - 1, H, K, V], [.., K]: at the ends of chunks
  View<Real> gate_parts;              // [B, chunks, H]: shares of dlog_gamma
  Inputs<Linear, View<Real>> dx;
  bool gates;  // is a gate's gradient wanted
};

// dn = dout / denominator and, for each row, dd = - dout . o / denominator: the gradients of a
// row's sum of values and of its denominator.
template <class Real>
void split_output(const Problem<Real>& p, const Gradients<Real>& f, int64_t b, int64_t h,
                  const Piece& piece, int64_t ahead, Tile<Real> dn, Real* dd) {
  const int64_t n = piece.size();
  load(n, p.V, p.rows(f.dout, b, piece.begin, h), dn, 1, ahead);
  if (!p.normalize) return;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = piece.begin + i;
    const Real by = 1 / f.denominator(b, t, h);
    dd[i] = -dot(p.V, dn.row(i), f.o.at(b, t, h)) * by;
    for (int64_t e = 0; e < p.V; ++e) dn.row(i)[e] *= by;
  }
}

template <class Real>
struct StateTiles {
  StateTiles(Carver<Real>& c, const Problem<Real>& p)
      : q(c.tile(kChunk, tiled(p.K))),
        dn(c.tile(kChunk, tiled(p.V))),
        ds(c.tile(tiled(p.K), tiled(p.V))),
        dz(c.row(p.K)) {}
  Tile<Real> q, dn, ds;
  Real* dz;
};

template <class Real>
void chunk_state_gradients(const Problem<Real>& p, const Gradients<Real>& f, int64_t b, int64_t h,
                           StateTiles<Real>& w) {
  const int64_t K = p.K, V = p.V;
  Decay<Real> decay;
  Real dd[kChunk];
  const auto step = [&](const Piece& piece) {
    const int64_t n = piece.size();
    if (piece.last) {
      load(K, V, p.state_of(f.dfinal_state, h, piece), w.ds);
      const auto dz = p.z_of(f.dfinal_z, h, piece);
      load_row(K, dz.data, dz.column, w.dz);
    } else {
      store(K, V, w.ds, f.dstates.at(b, piece.chunk, h), V);
      if (p.normalize) std::copy_n(w.dz, K, f.dsums.at(b, piece.chunk, h));
    }
    if (piece.first && !f.dx.initial_state && !f.dx.initial_z) return;
    split_output(p, f, b, h, piece, kPrevious, w.dn, dd);
    load(n, K, p.rows(p.q, b, piece.begin, h / p.group), w.q, 1, kPrevious);
    p.set(decay, b, h, piece);
    for (int64_t i = 0; i < n; ++i) {
      const Real factor = p.scale * (p.decays ? decay.from_start[i] : Real(1));
      for (int64_t d = 0; d < K; ++d) w.q.row(i)[d] *= factor;
    }
    product_of_transposed(tiled(K), tiled(V), n, w.q, w.dn, decay.total, w.ds);
    if (p.normalize) {
      for (int64_t d = 0; d < K; ++d) w.dz[d] *= decay.total;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t d = 0; d < K; ++d) w.dz[d] += dd[i] * w.q.row(i)[d];
    }
    if (!piece.first) return;
    if (f.dx.initial_state) store(K, V, w.ds, f.dx.initial_state.at(piece.document, h), V);
    if (f.dx.initial_z) std::copy_n(w.dz, K, f.dx.initial_z.at(piece.document, h));
  };
  for (int64_t c = p.chunks - 1; c >= 0; --c) p.documents.for_pieces_back(b, c, step);
}

template <class Real>
struct TokenTiles {
  TokenTiles(Carver<Real>& c, const Problem<Real>& p)
      : q(c.tile(kChunk, tiled(p.K))),
        k(c.tile(kChunk, tiled(p.K))),
        k_t(c.tile(tiled(p.K), kChunk)),
        v(c.tile(kChunk, tiled(p.V))),
        v_t(c.tile(tiled(p.V), kChunk)),
        dn(c.tile(kChunk, tiled(p.V))),
        state(c.tile(tiled(p.K), tiled(p.V))),
        s_t(c.tile(tiled(p.V), tiled(p.K))),
        ds_t(c.tile(tiled(p.V), tiled(p.K))),
        z(c.row(p.K)),
        dz(c.row(p.K)),
        scores(c.tile(kChunk, kChunk)),
        gamma(c.tile(kChunk, kChunk)),
        p(c.tile(kChunk, kChunk)),
        dp(c.tile(kChunk, kChunk)),
        dq(c.tile(kChunk, tiled(p.K))),
        dk(c.tile(kChunk, tiled(p.K))),
        dv(c.tile(kChunk, tiled(p.V))) {}
  Tile<Real> q, k, k_t, v, v_t, dn, state, s_t, ds_t;
  Real *z, *dz;
  Tile<Real> scores, gamma, p, dp, dq, dk, dv;
};

// What the gradient of a gate is summed from; see README.md, Backward.
template <class Real>
struct GateParts {
  Real pairs[kChunk] = {};   // of row i minus of column i of P (.) dP, the diagonal left out
  Real before[kChunk] = {};  // what row i reads of the state before the piece
  Real after[kChunk] = {};   // what column i gives to the state after it
  Real through = 0;          // from the state before to the state after

  void add_pairs(int64_t n, Tile<Real> p, Tile<Real> dp) {
    for (int64_t i = 1; i < n; ++i) {
      const Real *const a = p.row(i), *const b = dp.row(i);
      Real products[kChunk];
      for (int64_t j = 0; j < tiled(i); ++j) products[j] = j < i ? a[j] * b[j] : Real(0);
      for (int64_t j = 0; j < tiled(i); ++j) pairs[j] -= products[j];
      pairs[i] += sum_of(tiled(i), products);
    }
  }
  // Calls f(i, gradient of gate i). What tokens from a reset on read of each other comes to nothing
  // for the gates before them: the sum starts anew, and leaves no rounding.
  template <class F>
  void finish(int64_t n, const Decay<Real>& decay, const F& f) const {
    Real earlier[kChunk];
    Real sum = through;
    for (int64_t i = 0; i < n; ++i) {
      earlier[i] = sum;
      sum += after[i];
    }
    sum = 0;
    for (int64_t i = n - 1; i >= 0; --i) {
      sum += before[i] + pairs[i];
      if (decay.resets(i)) sum = earlier[i] = 0;
      f(i, sum + earlier[i]);
    }
  }
};

template <class Real>
void head_gradients(const Problem<Real>& p, const Gradients<Real>& f, int64_t b, int64_t h,
                    bool first_of_group, const Piece& piece, TokenTiles<Real>& w) {
  const int64_t n = piece.size(), rows = tiled(n), K = tiled(p.K), V = tiled(p.V);
  const int64_t hk = h / p.group;
  Decay<Real> decay;
  Real dd[kChunk];
  GateParts<Real> gate;
  p.set(decay, b, h, piece);
  if (p.decays) decay.matrix(n, w.gamma);
  const Tile<Real> gamma = p.decays ? w.gamma : Tile<Real>{};
  decay_scores(n, p.scale, w.scores, gamma, w.p);
  load(n, p.V, p.rows(p.v, b, piece.begin, h), w.v, 1, kNext);
  transpose(rows, V, w.v, w.v_t);
  split_output(p, f, b, h, piece, kNext, w.dn, dd);

  lower_product(rows, V, w.dn, w.v_t, w.dp);
  if (p.normalize)
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < tiled(i + 1); ++j) w.dp.row(i)[j] += dd[i];
  if (f.gates) gate.add_pairs(n, w.p, w.dp);
  decay_scores(n, p.scale, w.dp, gamma, w.dp);

  // What goes through the state before the piece.
  const auto before = p.state_before(f.states, b, h, piece);
  const auto z = p.normalize ? p.z_before(f.sums, b, h, piece) : MatrixView<const Real>{};
  if (before || z) {
    load(p.K, p.V, before, w.state);
    transpose(K, V, w.state, w.s_t);
    load_row(p.K, z.data, z.column, w.z);
    product(rows, K, V, w.dn, w.s_t, Real(0), w.dq);
    for (int64_t i = 0; i < n; ++i) {
      Real* const row = w.dq.row(i);
      const Real factor = p.scale * (p.decays ? decay.from_start[i] : Real(1));
      if (z)
        for (int64_t d = 0; d < p.K; ++d) row[d] += dd[i] * w.z[d];
      for (int64_t d = 0; d < p.K; ++d) row[d] *= factor;
      if (f.gates) gate.before[i] = dot(p.K, row, w.q.row(i));
    }
  }
  product(rows, K, rows, w.dp, w.k, Real(before || z ? 1 : 0), w.dq, Band::lower);

  // What goes through the state after it.
  MatrixView<const Real> after, dz;
  if (piece.last) {
    after = p.state_of(f.dfinal_state, h, piece);
    dz = p.z_of(f.dfinal_z, h, piece);
  } else {
    after = {f.dstates.at(b, piece.chunk, h), p.V, 1};
    if (p.normalize) dz = {f.dsums.at(b, piece.chunk, h), p.K, 1};
  }
  const bool flows = after || dz;
  if (flows) {
    load(p.K, p.V, after, w.state);
    transpose(K, V, w.state, w.ds_t);
    load_row(p.K, dz.data, dz.column, w.dz);
    product(rows, K, V, w.v, w.ds_t, Real(0), w.dk);
    product(rows, V, K, w.k, w.state, Real(0), w.dv);
    for (int64_t i = 0; i < n; ++i) {
      Real* const row = w.dk.row(i);
      if (dz)
        for (int64_t d = 0; d < p.K; ++d) row[d] += w.dz[d];
      if (!p.decays) continue;
      for (int64_t d = 0; d < p.K; ++d) row[d] *= decay.to_end[i];
      for (int64_t e = 0; e < p.V; ++e) w.dv.row(i)[e] *= decay.to_end[i];
      if (f.gates) gate.after[i] = dot(p.K, row, w.k.row(i));
    }
    if (f.gates && before && after)
      for (int64_t e = 0; e < p.V; ++e) gate.through += dot(p.K, w.s_t.row(e), w.ds_t.row(e));
    if (f.gates && z && dz) gate.through += dot(p.K, w.z, w.dz);
    gate.through *= decay.total;
  }
  const Real keep = flows ? 1 : 0;
  product_of_transposed(rows, K, rows, w.dp, w.q, keep, w.dk, Band::upper);
  product_of_transposed(rows, V, rows, w.p, w.dn, keep, w.dv, Band::upper);

  const auto put = [&](const View<Real>& to, int64_t head, int64_t width, Tile<Real> from,
                       bool add) {
    if (to) store(n, width, from, to.at(b, piece.begin, head), to.stride(1), add);
  };
  put(f.dx.q, hk, p.K, w.dq, !first_of_group);
  put(f.dx.k, hk, p.K, w.dk, !first_of_group);
  put(f.dx.v, h, p.V, w.dv, false);
  if (f.gates)
    gate.finish(n, decay, [&](int64_t i, Real dg) {
      if (f.dx.g) f.dx.g(b, piece.begin + i, h) = dg;
      if (f.gate_parts) f.gate_parts(b, piece.chunk, h) += dg;
    });
}

template <class Real>
void chunk_gradients(const Problem<Real>& p, const Gradients<Real>& f, int64_t b, int64_t hk,
                     const Piece& piece, TokenTiles<Real>& w) {
  const int64_t n = piece.size(), rows = tiled(n), K = tiled(p.K);
  load(n, p.K, p.rows(p.q, b, piece.begin, hk), w.q, 1, kNext);
  load(n, p.K, p.rows(p.k, b, piece.begin, hk), w.k, 1, kNext);
  transpose(rows, K, w.k, w.k_t);
  lower_product(rows, K, w.q, w.k_t, w.scores);
  // The heads that share a key follow each other, so that their sum has one order.
  for (int64_t h = hk * p.group; h < (hk + 1) * p.group; ++h)
    head_gradients(p, f, b, h, h == hk * p.group, piece, w);
}

}  // namespace

void Linear::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                          const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  for_real(x.q.dtype(), [&]<class Real>() {
    const Problem<Real> p(x, o);
    const auto make = [&](const Shape& shape) { return empty(shape, x.q.dtype(), x.q.device()); };
    Tensor dstates, dsums, gate_parts;
    if (p.chunks > 1) dstates = make({p.B, p.chunks - 1, p.H, p.K, p.V});
    if (p.chunks > 1 && p.normalize) dsums = make({p.B, p.chunks - 1, p.H, p.K});
    if (dx.log_gamma) gate_parts = make({p.B, p.chunks, p.H});
    const Gradients<Real> f{
        .dout = view<Real>(dy.o),
        .o = view<Real>(saved.o),
        .denominator = view<Real>(saved.denominator),
        .dfinal_state = view<Real>(dy.final_state),
        .dfinal_z = view<Real>(dy.final_z),
        .states = view<Real>(saved.states),
        .sums = view<Real>(saved.sums),
        .dstates = view<Real>(dstates),
        .dsums = view<Real>(dsums),
        .gate_parts = view<Real>(gate_parts),
        .dx = {view<Real>(dx.q), view<Real>(dx.k), view<Real>(dx.v), view<Real>(dx.g),
               view<Real>(dx.log_gamma), view<Real>(dx.initial_state), view<Real>(dx.initial_z)},
        .gates = dx.g || dx.log_gamma};
    Tensor memory;
    if (p.chunks > 1 || dx.initial_state || dx.initial_z) {
      memory = scratch_for<StateTiles<Real>, Real>(p, x.q.device());
      if (!memory.is_meta())
        parallel_for(p.B * p.H, [&](int64_t i) {
          auto tiles = scratch_tiles<StateTiles<Real>, Real>(p, memory);
          chunk_state_gradients(p, f, i / p.H, i % p.H, tiles);
        });
      memory = {};
    }
    memory = scratch_for<TokenTiles<Real>, Real>(p, x.q.device());
    if (memory.is_meta()) return;
    if (gate_parts) gate_parts.zero();
    parallel_for(p.B * p.chunks * p.Hk, [&](int64_t i) {
      auto tiles = scratch_tiles<TokenTiles<Real>, Real>(p, memory);
      const int64_t b = i / (p.chunks * p.Hk), chunk = i / p.Hk % p.chunks;
      p.documents.for_pieces(
          b, chunk, [&](const Piece& piece) { chunk_gradients(p, f, b, i % p.Hk, piece, tiles); });
    });
    if (!dx.log_gamma) return;
    const Real* const part = gate_parts.data<Real>();
    for (int64_t h = 0; h < p.H; ++h) {
      double sum = 0;
      for (int64_t i = 0; i < p.B * p.chunks; ++i) sum += static_cast<double>(part[i * p.H + h]);
      dx.log_gamma.data<Real>()[h] = static_cast<Real>(sum);
    }
  });
}

}  // namespace weft::kernels
