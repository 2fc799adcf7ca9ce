// Tokens are walked in pieces of at most kPiece, channels are the inner loop. Backward makes the
// sum before the activation again, for a piece and the W - 1 tokens after it, which its inputs
// reach.
#include "kernels/sequence/short_conv.h"

#include "core/parallel.h"
#include "kernels/rows/cuts.h"
#include "kernels/rows/functions.h"
#include "kernels/rows/rows.h"
#include "kernels/sequence/short_conv_reference.h"

namespace weft::kernels {
namespace {

const Registered<ShortConv> registered;

constexpr int64_t kPiece = cuts::kConvPiece;

// The inputs in a form for loops over channels.
struct Conv {
  Conv(const Inputs<ShortConv>& in, const ShortConv::Options& o)
      : x(in.x.stride(2) == 1 || in.x.size(2) == 1 ? in.x : in.x.contiguous()),
        taps(in.w.transpose(0, 1).contiguous()),
        bias(in.bias ? in.bias.contiguous() : zeros({in.w.size(0)}, in.w.dtype(), in.w.device())),
        state(in.initial_state),
        silu(o.silu),
        B(x.size(0)),
        T(x.size(1)),
        D(x.size(2)),
        W(in.w.size(1)),
        documents(o.cu_seqlens, B, T, kPiece) {}

  Tensor x, taps, bias, state;  // [B, T, D], [W, D], [D], [N, D, W - 1] or absent
  bool silu;
  int64_t B, T, D, W;
  Documents documents;

  // The sum before the activation of token t of document n: out [D].
  template <class S>
  void sum(int64_t row, int64_t n, int64_t t, S* __restrict__ out) const {
    const int64_t first = t - W + 1, begin = documents.begin(n);
    const View<const S> in = view<const S>(x);
    const S* const w = taps.data<S>();
    if (W == 4 && first >= begin) {  // the usual width, in one pass
      const S* __restrict__ const a = in.at(row, first, 0);
      const S* __restrict__ const b = in.at(row, first + 1, 0);
      const S* __restrict__ const c = in.at(row, first + 2, 0);
      const S* __restrict__ const e = in.at(row, t, 0);
      const S* __restrict__ const wa = w;
      const S* __restrict__ const wb = w + D;
      const S* __restrict__ const wc = w + 2 * D;
      const S* __restrict__ const we = w + 3 * D;
      const S* __restrict__ const start = bias.data<S>();
      for (int64_t d = 0; d < D; ++d)
        out[d] = start[d] + wa[d] * a[d] + wb[d] * b[d] + wc[d] * c[d] + we[d] * e[d];
      return;
    }
    std::copy_n(bias.data<S>(), D, out);
    for (int64_t j = 0; j < W; ++j) add_tap(row, n, first + j, w + j * D, out);
  }

  // out += tap * input u of document n, which is a token, a column of the state, or zero.
  template <class S>
  void add_tap(int64_t row, int64_t n, int64_t u, const S* __restrict__ tap,
               S* __restrict__ out) const {
    const int64_t before = u - documents.begin(n);
    if (before >= 0) {
      const S* __restrict__ from = view<const S>(x).at(row, u, 0);
      for (int64_t d = 0; d < D; ++d) out[d] += tap[d] * from[d];
    } else if (state) {
      const View<const S> from = view<const S>(state);
      for (int64_t d = 0; d < D; ++d) out[d] += tap[d] * from(n, d, W - 1 + before);
    }
  }
};

template <class S>
void activate(S* __restrict__ y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = Silu::value(y[i]);
}

// Column j of a document's final state is its input end - W + 1 + j.
template <class S>
void final_states(const Conv& c, const Tensor& final_state) {
  const View<const S> x = view<const S>(c.x), before = view<const S>(c.state);
  const View<S> after = view<S>(final_state);
  for (int64_t n = 0; n < c.documents.count(); ++n)
    for (int64_t j = 0; j < c.W - 1; ++j) {
      const int64_t u = c.documents.end(n) - c.W + 1 + j, at = u - c.documents.begin(n);
      for (int64_t d = 0; d < c.D; ++d)
        after(n, d, j) = at >= 0  ? x(c.documents.row(n), u, d)
                         : before ? before(n, d, c.W - 1 + at)
                                  : S(0);
    }
}

// What backward adds up for each piece: the gradients of the taps and of the bias, [W + 1, D].
template <class S>
struct Backward {
  const Conv& c;
  View<const S> dy, dfinal;
  View<S> dx, dstate;
  S* parts;    // [tasks, W + 1, D], or null
  S* scratch;  // [threads, kPiece + W - 1, D]: dp, the gradient of the sum

  S* dp(int64_t i) const { return scratch + (thread_index() * (kPiece + c.W - 1) + i) * c.D; }

  void find_dp(int64_t row, int64_t n, int64_t t, S* __restrict__ out) const {
    const S* __restrict__ g = dy.at(row, t, 0);
    if (!c.silu) {
      std::copy_n(g, c.D, out);
      return;
    }
    c.sum<S>(row, n, t, out);
    for (int64_t d = 0; d < c.D; ++d) out[d] = g[d] * Silu::slope(out[d]);
  }

  // Tokens p.begin .. p.end - 1 of one document.
  void piece(int64_t row, const Piece& p, S* part) const {
    const int64_t stop = std::min(c.documents.end(p.document), p.end + c.W - 1);
    const int64_t known = dx || dstate ? stop : p.end;
    for (int64_t t = p.begin; t < known; ++t) find_dp(row, p.document, t, dp(t - p.begin));
    if (part)
      for (int64_t t = p.begin; t < p.end; ++t)
        add_weights(row, p.document, t, dp(t - p.begin), part);
    if (dx)
      for (int64_t u = p.begin; u < p.end; ++u) input_gradient(row, p, u, stop);
    if (dstate && p.first) state_gradient(p, stop);
  }

  void add_weights(int64_t row, int64_t n, int64_t t, const S* flow, S* part) const {
    for (int64_t j = 0; j < c.W; ++j) c.add_tap<S>(row, n, t - c.W + 1 + j, flow, part + j * c.D);
    S* __restrict__ db = part + c.W * c.D;
    for (int64_t d = 0; d < c.D; ++d) db[d] += flow[d];
  }

  // dx_u = sum_j w_j dp_{u + W - 1 - j}, and dfinal where u is in the final state.
  void input_gradient(int64_t row, const Piece& p, int64_t u, int64_t stop) const {
    S* __restrict__ out = dx.at(row, u, 0);
    std::fill_n(out, c.D, S(0));
    for (int64_t t = u; t < std::min(stop, u + c.W); ++t) {
      const S* __restrict__ w = c.taps.data<S>() + (u - t + c.W - 1) * c.D;
      const S* __restrict__ flow = dp(t - p.begin);
      for (int64_t d = 0; d < c.D; ++d) out[d] += w[d] * flow[d];
    }
    const int64_t column = u - (c.documents.end(p.document) - c.W + 1);
    if (dfinal && column >= 0)
      for (int64_t d = 0; d < c.D; ++d) out[d] += dfinal(p.document, d, column);
  }

  // Column j of the state is input begin - W + 1 + j; in a short document it may live on in the
  // final state.
  void state_gradient(const Piece& p, int64_t stop) const {
    for (int64_t j = 0; j < c.W - 1; ++j) {
      const int64_t u = p.begin - c.W + 1 + j;
      const int64_t column = u - (c.documents.end(p.document) - c.W + 1);
      for (int64_t d = 0; d < c.D; ++d) {
        S sum = dfinal && column >= 0 ? dfinal(p.document, d, column) : S(0);
        for (int64_t t = p.begin; t < std::min(stop, u + c.W); ++t)
          sum += c.taps.data<S>()[(u - t + c.W - 1) * c.D + d] * dp(t - p.begin)[d];
        dstate(p.document, d, j) = sum;
      }
    }
  }
};

// Tasks of whole pieces: so few of them that their sums stay small.
int64_t pieces_per_task(const Conv& c) {
  return (c.B * c.documents.chunks() + cuts::kConvTasks - 1) / cuts::kConvTasks;
}

}  // namespace

void ShortConv::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 3, "short_conv: x has shape ", x.x.shape(), ", expected [B, T, D]");
  const int64_t B = x.x.size(0), T = x.x.size(1), D = x.x.size(2);
  require(x.w.dims() == 2 && x.w.size(0) == D && x.w.size(1) >= 1, "short_conv: w has shape ",
          x.w.shape(), ", expected [", D, ", W] with W >= 1");
  require(!x.bias || x.bias.shape() == Shape{D}, "short_conv: bias has shape ", x.bias.shape(),
          ", expected [", D, "]");
  check_documents(name, o.cu_seqlens, B, T, o.return_state || x.initial_state);
  const Shape state{document_count(o.cu_seqlens, B), D, x.w.size(1) - 1};
  require(!x.initial_state || x.initial_state.shape() == state,
          "short_conv: initial_state has shape ", x.initial_state.shape(), ", expected ", state);
}

Outputs<ShortConv> ShortConv::outputs(const Inputs<Tensor>& x, const Options& o) {
  const Shape state{document_count(o.cu_seqlens, x.x.size(0)), x.x.size(2), x.w.size(1) - 1};
  return {empty_like(x.x), o.return_state ? empty(state, x.x.dtype(), x.x.device()) : Tensor()};
}

void ShortConv::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y, Saved*) {
  const Conv c(x, o);
  if (c.x.is_meta()) return;
  for_real(c.x.dtype(), [&]<class S>() {
    parallel_for(c.B * c.documents.chunks(), [&](int64_t i) {
      const int64_t row = i / c.documents.chunks();
      c.documents.for_pieces(row, i % c.documents.chunks(), [&](const Piece& p) {
        S* const out = y.y.data<S>() + (row * c.T + p.begin) * c.D;
        for (int64_t t = 0; t < p.size(); ++t) {
          c.sum<S>(row, p.document, p.begin + t, out + t * c.D);
          if (c.silu) activate(out + t * c.D, c.D);
        }
      });
    });
    if (y.final_state) final_states<S>(c, y.final_state);
  });
}

void ShortConv::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                             const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Conv c(x, o);
  const Tensor d = dy.y.stride(2) == 1 || c.D == 1 ? dy.y : dy.y.contiguous();
  const int64_t chunks = c.documents.chunks(), step = pieces_per_task(c);
  const int64_t tasks = step ? (c.B * chunks + step - 1) / step : 0;
  const bool weights = dx.w || dx.bias;
  const Device device = c.x.device();
  const Tensor scratch = empty({thread_count(), kPiece + c.W - 1, c.D}, c.x.dtype(), device);
  const Tensor parts = weights ? empty({tasks, c.W + 1, c.D}, c.x.dtype(), device) : Tensor();
  const Tensor sums = weights ? empty({c.W + 1, c.D}, c.x.dtype(), device) : Tensor();
  if (c.x.is_meta()) return;
  for_real(c.x.dtype(), [&]<class S>() {
    const Backward<S> back{c,
                           view<const S>(d),
                           view<const S>(dy.final_state),
                           view<S>(dx.x),
                           view<S>(dx.initial_state),
                           parts.data<S>(),
                           scratch.data<S>()};
    parallel_for(tasks, [&](int64_t task) {
      S* const part = weights ? back.parts + task * (c.W + 1) * c.D : nullptr;
      if (part) std::fill_n(part, (c.W + 1) * c.D, S(0));
      for (int64_t i = task * step; i < std::min(c.B * chunks, (task + 1) * step); ++i)
        c.documents.for_pieces(i / chunks, i % chunks,
                               [&](const Piece& p) { back.piece(i / chunks, p, part); });
    });
    if (dx.initial_state && c.T == 0) {  // no piece: the state went through
      if (dy.final_state)
        dx.initial_state.copy_from(dy.final_state);
      else
        dx.initial_state.zero();
    }
    if (!weights) return;
    sum_blocks(back.parts, tasks, (c.W + 1) * c.D, sums.data<S>());
    if (dx.w) dx.w.copy_from(sums.slice(0, 0, c.W).transpose(0, 1));
    if (dx.bias) dx.bias.copy_from(sums.select(0, c.W));
  });
}

}  // namespace weft::kernels
