// The chunkwise form, forward: heads in parallel, each going from sub-chunk to sub-chunk with its
// state. A row of one token, the decode step, reads and writes its state once instead.
#include "kernels/delta_rule/form.h"
#include "kernels/kda/problem.h"
#include "kernels/kda/reference.h"
#include "kernels/tokens/checks.h"
#include "kernels/tokens/cuts.h"

namespace weft::kernels {
namespace {

using kda::Problem;
using kda::Tokens;

const Registered<Kda> registered;

template <class Real>
struct Tiles {
  Tiles(Carver<Real>& c, const Problem<Real>& p)
      : x(c, p.K, p.V),
        k_t(c.tile(tiled(p.K), kSub)),
        S(c.tile(tiled(p.K), tiled(p.V))),
        read(c.tile(2 * kSub, tiled(p.V))) {}
  Tokens<Real> x;
  Tile<Real> k_t;
  Tile<Real> S;     // the state before a sub-chunk, then after it
  Tile<Real> read;  // what q and k read of it; then o in the place of the first
};

template <class Real>
void sub_chunk(const Problem<Real>& p, Tiles<Real>& w) {
  const int64_t K = tiled(p.K), V = tiled(p.V);
  product(2 * kSub, V, K, w.x.qk_up, w.S, Real(0), w.read);
  kda::solve(V, w.read.below(kSub), w.x);
  product(kSub, V, kSub, w.x.P, w.x.U, Real(1), w.read, Band::lower);
  scale_rows(p.K, V, w.x.gates.total, w.S);
  product_of_transposed(K, V, kSub, w.x.k_down, w.x.U, Real(1), w.S);
}

// One token of head h of row b: o and the new state in two passes over the old one. written: [V].
template <class Real>
void decode(const Problem<Real>& p, int64_t b, int64_t h, Real* written, Real* out,
            View<Real> final_state) {
  const int64_t K = p.K, V = p.V, hk = h / p.group;
  std::fill_n(written, V, Real(0));
  std::fill_n(out, V, Real(0));
  Real match = 0;  // q . k
  for (int64_t d = 0; d < K; ++d) {
    match += p.q(b, 0, hk, d) * p.k(b, 0, hk, d);
    if (!p.state) continue;
    const Real *const S = p.state.at(b, h, d), decay = vexp(p.g(b, 0, h, d));
    const Real k = decay * p.k(b, 0, hk, d), q = decay * p.q(b, 0, hk, d);
#pragma omp simd
    for (int64_t c = 0; c < V; ++c) {
      written[c] += k * S[c];
      out[c] += q * S[c];
    }
  }
  for (int64_t c = 0; c < V; ++c) {
    written[c] = p.beta(b, 0, h) * (p.v(b, 0, h, c) - written[c]);
    out[c] = p.scale * (out[c] + match * written[c]);
  }
  if (!final_state) return;
  for (int64_t d = 0; d < K; ++d) {
    Real* const S = final_state.at(b, h, d);
    const Real* const before = p.state ? p.state.at(b, h, d) : nullptr;
    const Real k = p.k(b, 0, hk, d), decay = vexp(p.g(b, 0, h, d));
#pragma omp simd
    for (int64_t c = 0; c < V; ++c) S[c] = (before ? decay * before[c] : Real(0)) + k * written[c];
  }
}

}  // namespace

void Kda::check(const Inputs<Tensor>& x, const Options& o) {
  const HeadShape s = check_heads_as_v(name, x.q, x.k, x.v);
  check_shape(name, "beta", x.beta, {s.B, s.T, s.H});
  check_shape(name, "g", x.g, {s.B, s.T, s.H, s.K});
  check_documents(name, o.cu_seqlens, s.B, s.T, o.return_state || x.initial_state);
  check_shape(name, "initial_state", x.initial_state,
              {document_count(o.cu_seqlens, s.B), s.H, s.K, s.V});
}

Outputs<Kda> Kda::outputs(const Inputs<Tensor>& x, const Options& o) {
  const int64_t N = document_count(o.cu_seqlens, x.v.size(0));
  Outputs<Tensor> y{.o = empty(x.v.shape(), x.v.dtype(), x.v.device())};
  if (o.return_state)
    y.final_state = empty({N, x.v.size(2), x.k.size(3), x.v.size(3)}, x.v.dtype(), x.v.device());
  return y;
}

void Kda::cpu_forward(const Inputs<Tensor>& in, const Options& options, Outputs<Tensor>& y,
                      Saved* saved) {
  const Dtype dtype = in.v.dtype();
  const Device device = in.v.device();
  if (rounds_operands(dtype) && in.v.size(1) > 1)
    return delta_rule::Form<Kda>(in, options).forward(y);
  for_real(dtype, [&]<class Real>() {
    const Problem<Real> p(in, options);
    const View<Real> o = view<Real>(y.o), final_state = view<Real>(y.final_state);
    if (p.L == 1) {
      const Tensor scratch = empty({thread_count(), tiled(p.V)}, dtype, device);
      if (device.is_meta()) return;
      return parallel_ranges(p.B * p.H, head_grain(p.K, p.V), [&](int64_t from, int64_t to) {
        Real* const written = scratch.data<Real>() + thread_index() * scratch.size(1);
        for (int64_t i = from; i < to; ++i)
          decode(p, i / p.H, i % p.H, written, o.at(i / p.H, 0, i % p.H), final_state);
      });
    }
    if (saved && p.chunks > 1)
      saved->states = empty({p.B, p.chunks - 1, p.H, p.K, p.V}, dtype, device);
    const Tensor scratch = scratch_for<Tiles<Real>, Real>(p, device);
    if (device.is_meta()) return;
    const View<Real> states = saved ? view<Real>(saved->states) : View<Real>{};
    parallel_for(p.B * p.H, [&](int64_t i) {
      const int64_t b = i / p.H, h = i % p.H;
      auto w = scratch_tiles<Tiles<Real>, Real>(p, scratch);
      const auto piece = [&](const Piece& piece) {
        if (piece.first)
          load(p.K, p.V, p.before(piece, b, h, states), w.S);
        else if (states)
          store(p.K, p.V, w.S, states.at(b, piece.chunk - 1, h), p.V);
        for (int64_t t = piece.begin; t < piece.end; t += kSub) {
          w.x.load(p, b, h, t, std::min(kSub, piece.end - t), w.k_t, kNext);
          sub_chunk(p, w);
          store(w.x.n, p.V, w.read, o.at(b, t, h), o.stride(1));
        }
        if (piece.last && final_state) store(p.K, p.V, w.S, final_state.at(piece.document, h), p.V);
      };
      for (int64_t c = 0; c < p.chunks; ++c) p.documents.for_pieces(b, c, piece);
    });
  });
}

}  // namespace weft::kernels
