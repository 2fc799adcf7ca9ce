// The chunkwise form: heads in parallel, each walking the pieces of its row with one state in
// scratch memory. Backward starts each chunk from the state kept on the grid and makes the rest
// anew. A row of one token, the decode step, reads and writes its state once instead.
#include "core/parallel.h"
#include "kernels/delta/delta.h"
#include "kernels/delta/reference.h"
#include "kernels/delta/wy.h"
#include "kernels/delta_rule/form.h"
#include "kernels/tokens/checks.h"
#include "kernels/tokens/cuts.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

const Registered<Delta> registered;

// Work within a chunk grows with its length, memory for states shrinks with it.
int64_t chunk_length(int64_t K, int64_t V) {
  return std::max(K, V) <= delta::kNarrow ? delta::kShortChunk : kMaxChunk;
}

template <class Real>
struct Operands {
  Operands(const Inputs<Delta>& x, const Delta::Options& o)
      : initial(x.initial_state ? x.initial_state.contiguous() : x.initial_state),
        B(x.v.size(0)),
        L(x.v.size(1)),
        H(x.v.size(2)),
        group(H / x.k.size(2)),
        K(x.k.size(3)),
        V(x.v.size(3)),
        C(chunk_length(K, V)),
        docs(o.cu_seqlens, B, L, C),
        scale(static_cast<Real>(o.factor(K))),
        q(view<const Real>(x.q)),
        k(view<const Real>(x.k)),
        v(view<const Real>(x.v)),
        beta(view<const Real>(x.beta)),
        g(view<const Real>(x.g)),
        state(view<const Real>(initial)) {}

  Tensor initial;
  int64_t B, L, H, group, K, V, C;
  Documents docs;
  Real scale;
  View<const Real> q, k, v, beta, g, state;
  bool gated() const { return g.dims > 0; }

  // The tiles of one thread, in its part of `scratch`.
  int64_t tiles_size(bool gradients) const {
    Carver<Real> count;
    (void)delta::Tiles<Real>(count, C, K, V, gated(), gradients);
    return count.used();
  }
  delta::Tiles<Real> tiles(const Tensor& scratch, bool gradients) const {
    Carver<Real> memory(scratch.data<Real>() + thread_index() * scratch.size(1));
    return delta::Tiles<Real>(memory, C, K, V, gated(), gradients);
  }

  // The piece's tokens of head h.
  void load(delta::Tiles<Real>& tiles, int64_t b, int64_t h, const Piece& p) const {
    const int64_t t = p.begin, kh = h / group;
    tiles.load(
        p.size(), scale, K, rows(q, b, t, kh), rows(k, b, t, kh), V, rows(v, b, t, h),
        [&](int64_t i) { return beta(b, t + i, h); }, [&](int64_t i) { return g(b, t + i, h); });
  }
  // The state before the piece, which `kept` [K, V] holds where it is not its document's first.
  void load_state(delta::Tiles<Real>& tiles, int64_t h, const Piece& p, const Real* kept) const {
    load_matrix(p.first ? (state ? state.at(p.document, h) : nullptr) : kept, tiles.S);
  }
  // A [K, V] of contiguous numbers, or zeros.
  void load_matrix(const Real* from, Tile<Real> to) const { kernels::load(K, V, {from, V}, to); }
  // MatrixView of one head of a [B, T, heads, width] tensor.
  static MatrixView<const Real> rows(const View<const Real>& x, int64_t b, int64_t t, int64_t h) {
    return {x.at(b, t, h), x.stride(1), x.stride(3)};
  }
};

// One token of head h of row b: o and the new state in two passes over the old one. key, query:
// [V].
template <class Real>
void decode(const Operands<Real>& x, int64_t b, int64_t h, Real* key, Real* query, Real* out,
            const View<Real>& final_state) {
  const int64_t K = x.K, V = x.V, kh = h / x.group;
  const Real decay = x.gated() ? vexp(x.g(b, 0, h)) : Real(1), beta = x.beta(b, 0, h);
  std::fill_n(key, V, Real(0));
  std::fill_n(query, V, Real(0));
  Real match = 0;  // q . k
  for (int64_t d = 0; d < K; ++d) {
    match += x.q(b, 0, kh, d) * x.k(b, 0, kh, d);
    if (!x.state) continue;
    const Real *const S = x.state.at(b, h, d), kd = decay * x.k(b, 0, kh, d),
                      qd = decay * x.q(b, 0, kh, d);
    for (int64_t c = 0; c < V; ++c) {
      key[c] += kd * S[c];
      query[c] += qd * S[c];
    }
  }
  for (int64_t c = 0; c < V; ++c) {
    key[c] = beta * (x.v(b, 0, h, c) - key[c]);  // what is written along k
    out[c] = x.scale * (query[c] + match * key[c]);
  }
  if (!final_state) return;
  for (int64_t d = 0; d < K; ++d) {
    Real* const S = final_state.at(b, h, d);
    const Real* const before = x.state ? x.state.at(b, h, d) : nullptr;
    const Real kd = x.k(b, 0, kh, d);
    for (int64_t c = 0; c < V; ++c) S[c] = (before ? decay * before[c] : Real(0)) + kd * key[c];
  }
}

}  // namespace

void Delta::check(const Inputs<Tensor>& x, const Options& o) {
  const HeadShape s = check_heads_as_v(name, x.q, x.k, x.v);
  check_shape(name, "beta", x.beta, {s.B, s.T, s.H});
  check_shape(name, "g", x.g, {s.B, s.T, s.H});
  check_documents(name, o.cu_seqlens, s.B, s.T, o.return_state || x.initial_state);
  check_shape(name, "initial_state", x.initial_state,
              {document_count(o.cu_seqlens, s.B), s.H, s.K, s.V});
}

Outputs<Delta> Delta::outputs(const Inputs<Tensor>& x, const Options& o) {
  const int64_t N = document_count(o.cu_seqlens, x.v.size(0));
  const Shape state{N, x.v.size(2), x.k.size(3), x.v.size(3)};
  Outputs<Tensor> y{.o = empty(x.v.shape(), x.v.dtype(), x.v.device())};
  if (o.return_state) y.final_state = empty(state, x.v.dtype(), x.v.device());
  return y;
}

void Delta::cpu_forward(const Inputs<Tensor>& in, const Options& options, Outputs<Tensor>& y,
                        Saved* saved) {
  const Dtype dtype = in.v.dtype();
  const Device device = in.v.device();
  if (rounds_operands(dtype) && in.v.size(1) > 1)
    return delta_rule::Form<Delta>(in, options).forward(y);
  for_real(dtype, [&]<class Real>() {
    const Operands<Real> x(in, options);
    const int64_t size = x.L == 1 ? 2 * x.V : x.tiles_size(false), chunks = x.docs.chunks();
    if (saved && chunks > 1) saved->states = empty({x.B, chunks - 1, x.H, x.K, x.V}, dtype, device);
    const Tensor scratch = empty({thread_count(), size}, dtype, device);
    if (device.is_meta()) return;
    const View<Real> o = view<Real>(y.o), final_state = view<Real>(y.final_state);
    const View<Real> states = saved ? view<Real>(saved->states) : View<Real>{};
    if (x.L == 1) {
      return parallel_ranges(x.B * x.H, head_grain(x.K, x.V), [&](int64_t from, int64_t to) {
        Real* const part = scratch.data<Real>() + thread_index() * size;
        for (int64_t i = from; i < to; ++i)
          decode(x, i / x.H, i % x.H, part, part + x.V, o.at(i / x.H, 0, i % x.H), final_state);
      });
    }
    parallel_for(x.B * x.H, [&](int64_t i) {
      const int64_t b = i / x.H, h = i % x.H;
      delta::Tiles<Real> tiles = x.tiles(scratch, false);
      const auto step = [&](const Piece& p) {
        if (p.first)
          x.load_state(tiles, h, p, nullptr);
        else if (states)
          store(x.K, x.V, tiles.S, states.at(b, p.chunk - 1, h), x.V);
        x.load(tiles, b, h, p);
        tiles.forward();
        store(p.size(), x.V, tiles.read, o.at(b, p.begin, h), o.stride(1));
        if (p.last && final_state) store(x.K, x.V, tiles.S, final_state.at(p.document, h), x.V);
      };
      for (int64_t chunk = 0; chunk < chunks; ++chunk) x.docs.for_pieces(b, chunk, step);
    });
  });
}

void Delta::cpu_backward(const Inputs<Tensor>& in, const Options& options, const Saved& saved,
                         const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (rounds_operands(in.v.dtype())) return delta_rule::Form<Delta>(in, options).backward(dy, dx);
  for_real(in.v.dtype(), [&]<class Real>() {
    const Operands<Real> x(in, options);
    const Tensor dfinal = dy.final_state ? dy.final_state.contiguous() : dy.final_state;
    const Tensor scratch = empty({thread_count(), x.tiles_size(true)}, in.v.dtype(), in.v.device());
    if (scratch.is_meta()) return;
    const View<const Real> dout = view<const Real>(dy.o), dstate = view<const Real>(dfinal);
    const View<Real> dq = view<Real>(dx.q), dk = view<Real>(dx.k), dv = view<Real>(dx.v);
    const View<Real> dbeta = view<Real>(dx.beta), dg = view<Real>(dx.g);
    const View<Real> dinitial = view<Real>(dx.initial_state), states = view<Real>(saved.states);
    // Heads that share a key add up its gradient one after the other, in one task.
    const int64_t Hk = x.H / x.group;
    parallel_for(x.B * Hk, [&](int64_t i) {
      const int64_t b = i / Hk, kh = i % Hk;
      delta::Tiles<Real> tiles = x.tiles(scratch, true);
      for (int64_t h = kh * x.group; h < (kh + 1) * x.group; ++h) {
        const bool add = h % x.group > 0;
        const auto step = [&](const Piece& p) {
          const int64_t n = p.size(), t = p.begin;
          if (p.last) x.load_matrix(dstate ? dstate.at(p.document, h) : nullptr, tiles.dS);
          x.load_state(tiles, h, p, p.first ? nullptr : states.at(b, p.chunk - 1, h));
          x.load(tiles, b, h, p);
          load(n, x.V, x.rows(dout, b, t, h), tiles.dO_R);
          tiles.backward([&](Tile<Real> rows) {
            if (dv) store(n, x.V, rows, dv.at(b, t, h), dv.stride(1));
          });
          if (dq) store(n, x.K, tiles.dq_dk, dq.at(b, t, kh), dq.stride(1), add);
          if (dk) store(n, x.K, tiles.dk, dk.at(b, t, kh), dk.stride(1), add);
          for (int64_t r = 0; r < n && dbeta; ++r) dbeta(b, t + r, h) = tiles.dbeta[r];
          if (p.first && !x.state) tiles.dg[0] = 0;  // nothing to forget; the sum leaves rounding
          for (int64_t r = 0; r < n && dg; ++r) dg(b, t + r, h) = tiles.dg[r];
          if (p.first && dinitial) store(x.K, x.V, tiles.dS, dinitial.at(p.document, h), x.V);
        };
        for (int64_t chunk = x.docs.chunks() - 1; chunk >= 0; --chunk)
          x.docs.for_pieces_back(b, chunk, step);
      }
    });
  });
}

}  // namespace weft::kernels
