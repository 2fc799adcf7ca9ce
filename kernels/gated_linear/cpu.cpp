// The chunkwise form, forward. The state goes from sub-chunk to sub-chunk; where there are too few
// heads to fill the threads, one pass makes the states at the starts of all chunks, and a second
// one takes all chunks at once. One token alone (a decode step) is a pass over the state.
#include "kernels/gated_linear/problem.h"
#include "kernels/gated_linear/reference.h"
#include "kernels/tokens/checks.h"
#include "kernels/tokens/cuts.h"

namespace weft::kernels {
namespace {

using gated_linear::Problem;

const Registered<GatedLinear> registered;

template <class Real>
struct Tiles {
  Tiles(Carver<Real>& c, const Problem<Real>& p)
      : q(c.tile(kSub, tiled(p.K))),
        k(c.tile(kSub, tiled(p.K))),
        k_t(c.tile(tiled(p.K), kSub)),
        v(c.tile(kSub, tiled(p.V))),
        s(c.tile(tiled(p.K), tiled(p.V))),
        p(c.tile(kSub, kSub)),
        o(c.tile(kSub, tiled(p.V))),
        gates(c, p.K) {}
  Tile<Real> q, k, k_t, v, s, p, o;
  SubChunkGates<Real> gates;
};

template <class Real>
class Forward {
 public:
  Forward(const Problem<Real>& p, const View<Real>& states,
          const Outputs<GatedLinear, View<Real>>& y)
      : p_(p), states_(states), y_(y) {}

  // The pieces of one chunk. w.s holds the state where the chunk continues a document, and does so
  // again afterwards. `outputs`: make o; `keep`: put states into `states` and final_state.
  void chunk(int64_t b, int64_t h, int64_t c, Tiles<Real>& w, bool outputs, bool keep) const {
    p_.documents.for_pieces(b, c, [&](const Piece& piece) {
      if (piece.first) load(p_.K, p_.V, p_.state_of(p_.initial_state, h, piece), w.s);
      const bool passes_on = keep && (!piece.last || y_.final_state);
      if (!outputs && !passes_on) return;
      for (int64_t t = piece.begin; t < piece.end; t += kSub) {
        const int64_t n = std::min(kSub, piece.end - t);
        sub_chunk(b, h, t, n, w, outputs, t + n < piece.end || passes_on);
      }
      if (!passes_on) return;
      if (piece.last)
        store(p_.K, p_.V, w.s, y_.final_state.at(piece.document, h), p_.V);
      else if (states_)
        store(p_.K, p_.V, w.s, states_.at(b, piece.chunk, h), p_.V);
    });
  }
  void fetch(int64_t b, int64_t h, int64_t c, Tiles<Real>& w) const {
    if (p_.documents.continues(b, c)) load(p_.K, p_.V, {states_.at(b, c - 1, h), p_.V, 1}, w.s);
  }

 private:
  void sub_chunk(int64_t b, int64_t h, int64_t t, int64_t n, Tiles<Real>& w, bool outputs,
                 bool pass_on) const {
    const int64_t hk = h / p_.group, K = tiled(p_.K), V = tiled(p_.V);
    w.gates.set(n, p_.K, p_.rows(p_.g, b, t, h), kNext);
    load(n, p_.K, p_.rows(p_.k, b, t, hk), w.k, 1, kNext);
    load(n, p_.V, p_.rows(p_.v, b, t, h), w.v, 1, kNext);
    if (outputs) {
      load(n, p_.K, p_.rows(p_.q, b, t, hk), w.q, p_.scale, kNext);
      transpose(kSub, K, w.k, w.k_t);
      diagonal_scores(p_.K, w.q, w.k_t, w.gates.a, w.p);
      product(kSub, V, kSub, w.p, w.v, Real(0), w.o, Band::lower);
      multiply(K, w.q, w.gates.up, w.q);
      product(kSub, V, K, w.q, w.s, Real(1), w.o);
      store(n, p_.V, w.o, y_.o.at(b, t, h), y_.o.stride(1));
    }
    if (!pass_on) return;
    multiply(K, w.k, w.gates.down, w.k);
    scale_rows(p_.K, V, w.gates.total, w.s);
    product_of_transposed(K, V, n, w.k, w.v, Real(1), w.s);
  }

  const Problem<Real>& p_;
  View<Real> states_;
  Outputs<GatedLinear, View<Real>> y_;
};

// One token: a pass over the state and nothing else.
template <class Real>
void step(const Problem<Real>& p, const Outputs<GatedLinear, View<Real>>& y) {
  const int64_t K = p.K, V = p.V;
  parallel_ranges(p.B * p.H, head_grain(K, V), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t b = i / p.H, h = i % p.H, hk = h / p.group;
      Real* const o = y.o.at(b, 0, h);
      const Real* const v = p.v.at(b, 0, h);
      const int64_t by_v = p.v.stride(3);
      std::fill_n(o, V, Real(0));
      for (int64_t d = 0; d < K; ++d) {
        const Real q = p.scale * p.q(b, 0, hk, d), k = p.k(b, 0, hk, d);
        const Real decay = vexp(p.g(b, 0, h, d));
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
      }
    }
  });
}

}  // namespace

void GatedLinear::check(const Inputs<Tensor>& x, const Options& o) {
  const HeadShape s = check_heads_as_q(name, x.q, x.k, x.v);
  check_shape(name, "g", x.g, {s.B, s.T, s.H, s.K});
  check_documents(name, o.cu_seqlens, s.B, s.T, o.return_state || x.initial_state);
  check_shape(name, "initial_state", x.initial_state,
              {document_count(o.cu_seqlens, s.B), s.H, s.K, s.V});
}

Outputs<GatedLinear> GatedLinear::outputs(const Inputs<Tensor>& x, const Options& o) {
  const int64_t N = document_count(o.cu_seqlens, x.q.size(0));
  Outputs<Tensor> y{.o = empty(x.v.shape(), x.q.dtype(), x.q.device())};
  if (o.return_state)
    y.final_state = empty({N, x.v.size(2), x.q.size(3), x.v.size(3)}, x.q.dtype(), x.q.device());
  return y;
}

void GatedLinear::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                              Saved* saved) {
  for_real(x.q.dtype(), [&]<class Real>() {
    const Problem<Real> p(x, o);
    const bool whole = p.whole_rows(p.H);
    Saved own;
    Saved& keep = saved ? *saved : own;
    if (p.chunks > 1 && (saved || !whole))
      keep.states = empty({p.B, p.chunks - 1, p.H, p.K, p.V}, x.q.dtype(), x.q.device());
    const GatedLinear::Outputs<View<Real>> out{view<Real>(y.o), view<Real>(y.final_state)};
    if (p.T == 1) {
      if (!y.o.is_meta()) step(p, out);
      return;
    }
    const Tensor memory = scratch_for<Tiles<Real>, Real>(p, x.q.device());
    if (memory.is_meta()) return;
    const Forward<Real> forward(p, view<Real>(keep.states), out);
    parallel_for(p.B * p.H, [&](int64_t i) {
      auto tiles = scratch_tiles<Tiles<Real>, Real>(p, memory);
      for (int64_t c = 0; c < p.chunks; ++c)
        forward.chunk(i / p.H, i % p.H, c, tiles, /*outputs=*/whole, /*keep=*/true);
    });
    if (whole) return;
    parallel_for(p.B * p.chunks * p.H, [&](int64_t i) {
      auto tiles = scratch_tiles<Tiles<Real>, Real>(p, memory);
      const int64_t b = i / (p.chunks * p.H), c = i / p.H % p.chunks, h = i % p.H;
      forward.fetch(b, h, c, tiles);
      forward.chunk(b, h, c, tiles, /*outputs=*/true, /*keep=*/false);
    });
  });
}

}  // namespace weft::kernels
