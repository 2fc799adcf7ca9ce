// The chunkwise form, forward: a pass over the chunks of each head makes the states at their
// starts, then all chunks make their outputs at once. The two agree with README.md's equations
// letter by letter. One token alone (a decode step) takes neither.
#include "kernels/linear/problem.h"
#include "kernels/linear/reference.h"
#include "kernels/tokens/checks.h"
#include "kernels/tokens/cuts.h"

namespace weft::kernels {
namespace {

using linear::kChunk;
using linear::Problem;

const Registered<Linear> registered;

template <class Real>
struct StateTiles {
  StateTiles(Carver<Real>& c, const Problem<Real>& p)
      : k(c.tile(kChunk, tiled(p.K))),
        v(c.tile(kChunk, tiled(p.V))),
        s(c.tile(tiled(p.K), tiled(p.V))),
        z(c.row(p.K)) {}
  Tile<Real> k, v, s;
  Real* z;
};

// The states of one head of one row: to `states` where a chunk follows in the same document, to y
// where the document ends.
template <class Real>
void chunk_states(const Problem<Real>& p, int64_t b, int64_t h, StateTiles<Real>& w,
                  const View<Real>& states, const View<Real>& sums,
                  const Outputs<Linear, View<Real>>& y) {
  const int64_t K = p.K, V = p.V;
  Decay<Real> decay;
  const auto step = [&](const Piece& piece) {
    if (piece.last && !y.final_state) return;
    const int64_t n = piece.size();
    if (piece.first) {
      load(K, V, p.state_of(p.initial_state, h, piece), w.s);
      const auto z = p.z_of(p.initial_z, h, piece);
      load_row(K, z.data, z.column, w.z);
    }
    load(n, K, p.rows(p.k, b, piece.begin, h / p.group), w.k, 1, kNext);
    load(n, V, p.rows(p.v, b, piece.begin, h), w.v, 1, kNext);
    p.set(decay, b, h, piece);
    if (p.decays) scale_rows(n, K, decay.to_end, w.k);
    product_of_transposed(tiled(K), tiled(V), n, w.k, w.v, decay.total, w.s);
    if (p.normalize) {
      for (int64_t d = 0; d < K; ++d) w.z[d] *= decay.total;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t d = 0; d < K; ++d) w.z[d] += w.k.row(i)[d];
    }
    if (piece.last) {
      store(K, V, w.s, y.final_state.at(piece.document, h), V);
      if (p.normalize) std::copy_n(w.z, K, y.final_z.at(piece.document, h));
    } else {
      store(K, V, w.s, states.at(b, piece.chunk, h), V);
      if (p.normalize) std::copy_n(w.z, K, sums.at(b, piece.chunk, h));
    }
  };
  for (int64_t c = 0; c < p.chunks; ++c) p.documents.for_pieces(b, c, step);
}

template <class Real>
struct OutputTiles {
  OutputTiles(Carver<Real>& c, const Problem<Real>& p)
      : q(c.tile(kChunk, tiled(p.K))),
        k(c.tile(kChunk, tiled(p.K))),
        k_t(c.tile(tiled(p.K), kChunk)),
        v(c.tile(kChunk, tiled(p.V))),
        s(c.tile(tiled(p.K), tiled(p.V))),
        z(c.row(p.K)),
        scores(c.tile(kChunk, kChunk)),
        p(c.tile(kChunk, kChunk)),
        gamma(c.tile(kChunk, kChunk)),
        o(c.tile(kChunk, tiled(p.V))) {}
  Tile<Real> q, k, k_t, v, s;
  Real* z;
  Tile<Real> scores, p, gamma, o;
};

// The outputs of one piece, for the value heads of key head hk.
template <class Real>
void chunk_outputs(const Problem<Real>& p, int64_t b, int64_t hk, const Piece& piece,
                   OutputTiles<Real>& w, const View<Real>& states, const View<Real>& sums,
                   const View<Real>& o, const View<Real>& denominator) {
  const int64_t n = piece.size(), rows = tiled(n), K = tiled(p.K), V = tiled(p.V);
  load(n, p.K, p.rows(p.q, b, piece.begin, hk), w.q, 1, kNext);
  load(n, p.K, p.rows(p.k, b, piece.begin, hk), w.k, 1, kNext);
  transpose(rows, K, w.k, w.k_t);
  lower_product(rows, K, w.q, w.k_t, w.scores);
  Decay<Real> decay;
  for (int64_t h = hk * p.group; h < (hk + 1) * p.group; ++h) {
    p.set(decay, b, h, piece);
    if (p.decays) decay.matrix(n, w.gamma);
    decay_scores(n, p.scale, w.scores, p.decays ? w.gamma : Tile<Real>{}, w.p);
    load(n, p.V, p.rows(p.v, b, piece.begin, h), w.v, 1, kNext);
    const auto before = p.state_before(states, b, h, piece);
    if (before) {
      load(p.K, p.V, before, w.s);
      product(rows, V, K, w.q, w.s, Real(0), w.o);
      for (int64_t i = 0; i < n; ++i) {
        const Real factor = p.scale * (p.decays ? decay.from_start[i] : Real(1));
        for (int64_t e = 0; e < V; ++e) w.o.row(i)[e] *= factor;
      }
    }
    product(rows, V, rows, w.p, w.v, Real(before ? 1 : 0), w.o, Band::lower);
    if (p.normalize) {
      const auto z = p.z_before(sums, b, h, piece);
      load_row(p.K, z.data, z.column, w.z);
      for (int64_t i = 0; i < n; ++i) {
        Real sum = sum_of(tiled(i + 1), w.p.row(i));
        if (z)
          sum += p.scale * (p.decays ? decay.from_start[i] : Real(1)) * dot(p.K, w.q.row(i), w.z);
        sum += p.eps;
        for (int64_t e = 0; e < V; ++e) w.o.row(i)[e] /= sum;
        if (denominator) denominator(b, piece.begin + i, h) = sum;
      }
    }
    store(n, p.V, w.o, o.at(b, piece.begin, h), o.stride(1));
  }
}

// One token: a pass over the state and nothing else.
template <class Real>
void step(const Problem<Real>& p, const Outputs<Linear, View<Real>>& y,
          const View<Real>& denominator) {
  const int64_t K = p.K, V = p.V;
  parallel_ranges(p.B * p.H, head_grain(K, V), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t b = i / p.H, h = i % p.H, hk = h / p.group;
      const Real decay = vexp(p.gate(b, 0, h));
      Real* const o = y.o.at(b, 0, h);
      std::fill_n(o, V, Real(0));
      Real norm = 0;
      for (int64_t d = 0; d < K; ++d) {
        const Real q = p.scale * p.q(b, 0, hk, d), k = p.k(b, 0, hk, d);
        const Real* const v = p.v.at(b, 0, h);
        const int64_t by_v = p.v.stride(3);
        const Real* const s = p.initial_state ? p.initial_state.at(b, h, d) : nullptr;
        const int64_t by_s = s ? p.initial_state.stride(3) : 0;
        Real* const to_s = y.final_state ? y.final_state.at(b, h, d) : nullptr;
        const auto row = [&](auto value_of_s) {
#pragma omp simd
          for (int64_t e = 0; e < V; ++e) {
            const Real now = value_of_s(e) + k * v[e * by_v];
            o[e] += q * now;
            if (to_s) to_s[e] = now;
          }
        };
        if (!s)
          row([](int64_t) { return Real(0); });
        else if (by_s == 1)
          row([=](int64_t e) { return decay * s[e]; });
        else
          row([=](int64_t e) { return decay * s[e * by_s]; });
        if (!p.normalize) continue;
        const Real z = (p.initial_z ? decay * p.initial_z(b, h, d) : Real(0)) + k;
        norm += q * z;
        if (y.final_z) y.final_z(b, h, d) = z;
      }
      if (!p.normalize) continue;
      norm += p.eps;
      for (int64_t e = 0; e < V; ++e) o[e] /= norm;
      if (denominator) denominator(b, 0, h) = norm;
    }
  });
}

}  // namespace

void Linear::check(const Inputs<Tensor>& x, const Options& o) {
  const HeadShape s = check_heads_as_q(name, x.q, x.k, x.v);
  check_documents(name, o.cu_seqlens, s.B, s.T, o.return_state || x.initial_state || x.initial_z);
  const int64_t N = document_count(o.cu_seqlens, s.B);
  check_shape(name, "g", x.g, {s.B, s.T, s.H});
  check_shape(name, "log_gamma", x.log_gamma, {s.H});
  check_shape(name, "initial_state", x.initial_state, {N, s.H, s.K, s.V});
  check_shape(name, "initial_z", x.initial_z, {N, s.H, s.K});
  require(!x.initial_z || o.normalize, "linear: initial_z is given, but normalize is false");
}

Outputs<Linear> Linear::outputs(const Inputs<Tensor>& x, const Options& o) {
  const int64_t N = document_count(o.cu_seqlens, x.q.size(0)), H = x.v.size(2), K = x.q.size(3);
  const auto make = [&](const Shape& shape) { return empty(shape, x.q.dtype(), x.q.device()); };
  Outputs<Tensor> y{.o = make(x.v.shape())};
  if (o.return_state) y.final_state = make({N, H, K, x.v.size(3)});
  if (o.return_state && o.normalize) y.final_z = make({N, H, K});
  return y;
}

void Linear::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                         Saved* saved) {
  for_real(x.q.dtype(), [&]<class Real>() {
    const Problem<Real> p(x, o);
    const auto make = [&](const Shape& shape) { return empty(shape, x.q.dtype(), x.q.device()); };
    Saved own;
    Saved& keep = saved ? *saved : own;
    if (p.chunks > 1) keep.states = make({p.B, p.chunks - 1, p.H, p.K, p.V});
    if (p.chunks > 1 && p.normalize) keep.sums = make({p.B, p.chunks - 1, p.H, p.K});
    if (saved && p.normalize) {
      saved->o = y.o;
      saved->denominator = make({p.B, p.T, p.H});
    }
    const Linear::Outputs<View<Real>> out{view<Real>(y.o), view<Real>(y.final_state),
                                          view<Real>(y.final_z)};
    if (p.T == 1) {
      if (!y.o.is_meta()) step(p, out, view<Real>(keep.denominator));
      return;
    }
    const bool has_states = p.chunks > 1 || y.final_state;
    Tensor memory;
    if (has_states) {
      memory = scratch_for<StateTiles<Real>, Real>(p, x.q.device());
      if (!memory.is_meta())
        parallel_for(p.B * p.H, [&](int64_t i) {
          auto tiles = scratch_tiles<StateTiles<Real>, Real>(p, memory);
          chunk_states(p, i / p.H, i % p.H, tiles, view<Real>(keep.states), view<Real>(keep.sums),
                       out);
        });
      memory = {};
    }
    memory = scratch_for<OutputTiles<Real>, Real>(p, x.q.device());
    if (memory.is_meta()) return;
    parallel_for(p.B * p.chunks * p.Hk, [&](int64_t i) {
      auto tiles = scratch_tiles<OutputTiles<Real>, Real>(p, memory);
      const int64_t b = i / (p.chunks * p.Hk), chunk = i / p.Hk % p.chunks;
      p.documents.for_pieces(b, chunk, [&](const Piece& piece) {
        chunk_outputs(p, b, i % p.Hk, piece, tiles, view<Real>(keep.states), view<Real>(keep.sums),
                      out.o, view<Real>(keep.denominator));
      });
    });
  });
}

}  // namespace weft::kernels
