// The chunkwise form: tiles of 64 queries by 64 keys (kernels/softmax/tiles.h), so that memory is
// linear in T. Forward, a tile of queries is one piece of work. Backward, it is the tiles of keys:
// one thread walks those of a key head, and adds to dq in their order; so the same bits come out on
// any number of threads. A window bounds both loops: the cost is that of the keys seen.
#include "kernels/attention/attention.h"

#include "core/parallel.h"
#include "kernels/attention/reference.h"
#include "kernels/softmax/softmax.h"

namespace weft::kernels {
namespace {

const Registered<Attention> registered;

SoftmaxCall call_of(const Inputs<Attention>& x, const Attention::Options& o) {
  SoftmaxCall call(x.q, x.k, x.v, o.scale, o.softcap, o.cu_seqlens);
  call.causal = o.causal;
  call.window = std::min(o.window, call.T + call.S);  // all keys; nothing is added to more
  return call;
}

template <class Real>
void forward_tiles(const SoftmaxCall& s, const View<Real>& sink,
                   const Outputs<Attention, View<Real>>& y, const View<Real>& scratch) {
  const View<Real> q = view<Real>(s.q), k = view<Real>(s.k), v = view<Real>(s.v);
  const int64_t chunks = s.queries.chunks();
  parallel_for(s.B * s.H * chunks, [&](int64_t unit) {
    // The last chunk of a causal row sees the most keys: it comes first.
    const int64_t c = chunks - 1 - unit % chunks, h = unit / chunks % s.H, b = unit / chunks / s.H;
    ForwardTile<Real> tile(s.shape, scratch.at(thread_index()));
    s.queries.for_pieces(b, c, [&](const Piece& p) {
      const KeyBand band = s.band(p.document);
      const int64_t key0 = s.keys.begin(p.document), hk = s.key_head(h);
      tile.start(rows_of(q, b, p.begin, h), p.size(), s.position(p.document, p.begin), band);
      tile.see(rows_of(k, b, key0, hk), rows_of(v, b, key0, hk), 0, band.keys);
      tile.finish(sink ? sink.at(h) : nullptr, rows_of(y.o, b, p.begin, h),
                  y.lse.at(b, h, p.begin));
    });
  });
}

// The keys of one piece meet the queries of one head that see any of them.
template <class Real>
void meet_queries(const SoftmaxCall& s, const SoftmaxBackward& back, BackwardTile<Real>& tile,
                  int64_t part, int64_t b, int64_t h, const Piece& keys) {
  const int64_t n = keys.document, key0 = s.keys.begin(n);
  const KeyBand band = s.band(n);
  const int64_t first = std::max(s.row(n, band.first_query(keys.begin - key0)), s.queries.begin(n));
  const int64_t end = std::min(s.row(n, band.end_query(keys.end - key0)), s.queries.end(n));
  for (int64_t t0 = first, t1 = 0; t0 < end; t0 = t1) {
    t1 = std::min(end, (t0 / kSoftmaxTile + 1) * kSoftmaxTile);
    tile.meet(back.tile<Real>(part, b, h, t0, t1 - t0, s.position(n, t0)), band);
  }
}

template <class Real>
void backward_tiles(const SoftmaxCall& s, const SoftmaxBackward& back, const View<Real>& dk,
                    const View<Real>& dv, const View<Real>& scratch) {
  const View<Real> k = view<Real>(s.k), v = view<Real>(s.v);
  parallel_for(s.B * s.Hk * back.parts, [&](int64_t unit) {
    const int64_t part = unit % back.parts, hk = unit / back.parts % s.Hk;
    const int64_t b = unit / back.parts / s.Hk, group = s.H / s.Hk;
    BackwardTile<Real> tile(s.shape, static_cast<bool>(dk), static_cast<bool>(dv),
                            scratch.at(thread_index()));
    for (int64_t c = part; c < s.keys.chunks(); c += back.parts)
      s.keys.for_pieces(b, c, [&](const Piece& p) {
        const int64_t key0 = s.keys.begin(p.document);
        tile.start(rows_of(k, b, key0, hk), rows_of(v, b, key0, hk), p.begin - key0, p.end - key0);
        for (int64_t h = hk * group; h < (hk + 1) * group; ++h)
          meet_queries(s, back, tile, part, b, h, p);
        tile.finish(rows_of(dk, b, key0, hk), rows_of(dv, b, key0, hk));
      });
  });
}

}  // namespace

void Attention::check(const Inputs<Tensor>& x, const Options& o) {
  check_softmax(name, x.q, x.k, x.v, o.softcap, o.cu_seqlens);
  require(o.window >= 0, "attention: window is ", o.window, ", expected 0 (all keys) or more");
  require(!x.sink || x.sink.shape() == Shape{x.q.size(2)}, "attention: sink has shape ",
          x.sink.shape(), ", expected [", x.q.size(2), "], one logit a head");
  check_position(name, x.q, o.position, o.cu_seqlens);
  require(!o.position || o.window == 0, "attention: position with a window of ", o.window,
          "; the ring of keys is as long as the window");
}

Outputs<Attention> Attention::outputs(const Inputs<Tensor>& x, const Options&) {
  const int64_t B = x.q.size(0), T = x.q.size(1), H = x.q.size(2);
  return {empty({B, T, H, x.v.size(3)}, x.q.dtype(), x.q.device()),
          empty({B, H, T}, x.q.dtype(), x.q.device())};
}

void Attention::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                            Saved* saved) {
  if (o.position) {
    require(!saved, "attention: position without a gradient alone");
    Options all = o;
    all.position = {};
    const int64_t held = rows_held(o.position, x.k.size(1));
    return cpu_forward({x.q, x.k.slice(1, 0, held), x.v.slice(1, 0, held), x.sink}, all, y, saved);
  }
  if (saved) *saved = {y.o, y.lse};
  const SoftmaxCall call = call_of(x, o);
  const Tensor scratch =
      empty({thread_count(), ForwardTile<float>::scratch(call.shape)}, x.q.dtype(), x.q.device());
  if (x.q.is_meta()) return;
  for_real(x.q.dtype(), [&]<class Real>() {
    forward_tiles<Real>(call, view<Real>(x.sink), {view<Real>(y.o), view<Real>(y.lse)},
                        view<Real>(scratch));
  });
}

void Attention::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                             const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const SoftmaxCall call = call_of(x, o);
  const SoftmaxBackward back(call, saved.o, saved.lse, dy.o, dy.lse, dx.q);
  const Tensor scratch =
      empty({thread_count(), BackwardTile<float>::scratch(call.shape)}, x.q.dtype(), x.q.device());
  if (x.q.is_meta()) return;
  for_real(x.q.dtype(), [&]<class Real>() {
    back.begin<Real>();
    if (dx.sink) back.sink<Real>(view<Real>(x.sink), view<Real>(dx.sink));
    backward_tiles<Real>(call, back, view<Real>(dx.k), view<Real>(dx.v), view<Real>(scratch));
    back.end<Real>();
  });
}

}  // namespace weft::kernels
