// The chunkwise form: the tiles of attention (kernels/softmax/tiles.h), for the blocks of a mask.
// Forward, a tile of queries lies in one row of blocks and walks the runs of that row; backward, a
// tile of keys lies in one column and walks the runs of that column. Threads share the work as in
// attention, and the same bits come out on any number of them.
#include "kernels/block_sparse/block_sparse.h"

#include "core/parallel.h"
#include "kernels/block_sparse/reference.h"
#include "kernels/softmax/softmax.h"

namespace weft::kernels {
namespace {

const Registered<BlockSparse> registered;

// The lines of a mask (its rows, or its columns) as runs of set blocks. Sized by the mask's shape
// alone: a line holds the number of its runs, then their first blocks and ends.
class BlockRuns {
 public:
  enum Line { rows, columns };
  BlockRuns(const Tensor& mask, Line line, Device device)
      : mask_(line == rows ? mask : mask.transpose(1, 2)),
        runs_(empty({mask_.size(0), mask_.size(1), mask_.size(2) + 2}, Dtype::i32, device)) {}

  void find() const {
    const View<const uint8_t> m = view<const uint8_t>(mask_);
    const View<int32_t> runs = view<int32_t>(runs_);
    parallel_for(m.size(0), [&](int64_t h) {
      for (int64_t line = 0; line < m.size(1); ++line) {
        int32_t* const run = runs.at(h, line);
        int32_t count = 0;
        for (int64_t c = 0; c < m.size(2); ++c) {
          if (!m(h, line, c)) continue;
          const auto at = static_cast<int32_t>(c);
          if (count == 0 || run[2 * count] != at) run[2 * count++ + 1] = at;
          run[2 * count] = at + 1;
        }
        run[0] = count;
      }
    });
  }

  // Calls f(begin, end) for the runs of a line, in tokens.
  template <class F>
  void each(int64_t h, int64_t line, int64_t block, const F& f) const {
    const View<const int32_t> runs = view<const int32_t>(runs_);
    const int32_t* const run = runs.at(runs.size(0) == 1 ? 0 : h, line);
    for (int32_t r = 0; r < run[0]; ++r) f(run[2 * r + 1] * block, run[2 * r + 2] * block);
  }

 private:
  Tensor mask_, runs_;
};

SoftmaxCall call_of(const Inputs<BlockSparse>& x, const BlockSparse::Options& o) {
  SoftmaxCall call(x.q, x.k, x.v, o.scale, o.softcap, o.cu_seqlens);
  call.causal = o.causal;
  return call;
}

// A block that holds the whole sequence is as good as any larger one, and its ends can be counted.
int64_t block_of(const BlockSparse::Options& o, int64_t S) {
  return std::min(o.block, std::max<int64_t>(1, S));
}

// Calls f(begin, end, line) for the parts of a piece in the lines of blocks. `position` is that of
// the piece's first token in its document; begin and end are tokens of the row.
template <class F>
void for_lines(const Piece& p, int64_t position, int64_t block, const F& f) {
  for (int64_t t = p.begin, next = 0; t < p.end; t = next) {
    const int64_t line = (position + t - p.begin) / block;
    next = std::min(p.end, p.begin - position + (line + 1) * block);
    f(t, next, line);
  }
}

template <class Real>
void forward_tiles(const SoftmaxCall& s, const BlockRuns& rows, int64_t block,
                   const Outputs<BlockSparse, View<Real>>& y, const View<Real>& scratch) {
  const View<Real> q = view<Real>(s.q), k = view<Real>(s.k), v = view<Real>(s.v);
  const int64_t chunks = s.queries.chunks();
  parallel_for(s.B * s.H * chunks, [&](int64_t unit) {
    const int64_t c = chunks - 1 - unit % chunks, h = unit / chunks % s.H, b = unit / chunks / s.H;
    ForwardTile<Real> tile(s.shape, scratch.at(thread_index()));
    s.queries.for_pieces(b, c, [&](const Piece& p) {
      const int64_t n = p.document, key0 = s.keys.begin(n), hk = s.key_head(h);
      for_lines(p, s.position(n, p.begin), block, [&](int64_t begin, int64_t end, int64_t row) {
        tile.start(rows_of(q, b, begin, h), end - begin, s.position(n, begin), s.band(n));
        rows.each(h, row, block, [&](int64_t first, int64_t stop) {
          tile.see(rows_of(k, b, key0, hk), rows_of(v, b, key0, hk), first, stop);
        });
        tile.finish(nullptr, rows_of(y.o, b, begin, h), y.lse.at(b, h, begin));
      });
    });
  });
}

// The keys [begin, end) of a document, all of one column of blocks, meet the queries of one head.
template <class Real>
void meet_queries(const SoftmaxCall& s, const SoftmaxBackward& back, const BlockRuns& columns,
                  int64_t block, BackwardTile<Real>& tile, int64_t part, int64_t b, int64_t h,
                  int64_t n, int64_t begin, int64_t end, int64_t column) {
  const KeyBand band = s.band(n);
  columns.each(h, column, block, [&](int64_t first, int64_t stop) {
    first = std::max(first, band.first_query(begin));
    stop = std::min(stop, band.end_query(end));
    const int64_t t_first = std::max(s.row(n, first), s.queries.begin(n));
    const int64_t t_end = std::min(s.row(n, stop), s.queries.end(n));
    for (int64_t t0 = t_first, t1 = 0; t0 < t_end; t0 = t1) {
      t1 = std::min(t_end, (t0 / kSoftmaxTile + 1) * kSoftmaxTile);
      tile.meet(back.tile<Real>(part, b, h, t0, t1 - t0, s.position(n, t0)), band);
    }
  });
}

template <class Real>
void backward_tiles(const SoftmaxCall& s, const SoftmaxBackward& back, const BlockRuns& columns,
                    int64_t block, const View<Real>& dk, const View<Real>& dv,
                    const View<Real>& scratch) {
  const View<Real> k = view<Real>(s.k), v = view<Real>(s.v);
  parallel_for(s.B * s.Hk * back.parts, [&](int64_t unit) {
    const int64_t part = unit % back.parts, hk = unit / back.parts % s.Hk;
    const int64_t b = unit / back.parts / s.Hk, group = s.H / s.Hk;
    BackwardTile<Real> tile(s.shape, static_cast<bool>(dk), static_cast<bool>(dv),
                            scratch.at(thread_index()));
    for (int64_t c = part; c < s.keys.chunks(); c += back.parts)
      s.keys.for_pieces(b, c, [&](const Piece& p) {
        const int64_t n = p.document, key0 = s.keys.begin(n);
        for_lines(p, p.begin - key0, block, [&](int64_t begin, int64_t end, int64_t column) {
          tile.start(rows_of(k, b, key0, hk), rows_of(v, b, key0, hk), begin - key0, end - key0);
          for (int64_t h = hk * group; h < (hk + 1) * group; ++h)
            meet_queries(s, back, columns, block, tile, part, b, h, n, begin - key0, end - key0,
                         column);
          tile.finish(rows_of(dk, b, key0, hk), rows_of(dv, b, key0, hk));
        });
      });
  });
}

}  // namespace

void BlockSparse::check(const Inputs<Tensor>& x, const Options& o) {
  check_softmax(name, x.q, x.k, x.v, o.softcap, o.cu_seqlens);
  check_position(name, x.q, o.position, o.cu_seqlens);
  const int64_t T = x.q.size(1), S = x.k.size(1), H = x.q.size(2);
  require(T <= S, "block_sparse: q has ", T, " tokens and k ", S, "; expected at most as many");
  require(o.block >= 1, "block_sparse: block is ", o.block, ", expected 1 or more");
  require(static_cast<bool>(o.block_mask),
          "block_sparse: block_mask [1 or H, rows, columns] is missing");
  require(o.block_mask.dtype() == Dtype::u8 && o.block_mask.dims() == 3 &&
              (o.block_mask.device().is_cpu() || o.block_mask.device() == x.q.device()),
          "block_sparse: block_mask is ", o.block_mask.dtype(), " ", o.block_mask.shape(), " on ",
          o.block_mask.device(), ", expected u8 [1 or H, rows, columns] on cpu or as q");
  int64_t longest = S;
  if (o.cu_seqlens) {
    const Documents docs(o.cu_seqlens, 1, T);
    longest = 0;
    for (int64_t n = 0; n < docs.count(); ++n)
      longest = std::max(longest, docs.end(n) - docs.begin(n));
  }
  const int64_t heads = o.block_mask.size(0), least = block_count(longest, o.block);
  require(
      (heads == 1 || heads == H) && o.block_mask.size(1) >= least && o.block_mask.size(2) >= least,
      "block_sparse: block_mask has shape ", o.block_mask.shape(), ", expected [1 or ", H, ", ",
      least, ", ", least, "] or more for ", longest, " tokens in blocks of ", o.block);
}

Outputs<BlockSparse> BlockSparse::outputs(const Inputs<Tensor>& x, const Options&) {
  const int64_t B = x.q.size(0), T = x.q.size(1), H = x.q.size(2);
  return {empty({B, T, H, x.v.size(3)}, x.q.dtype(), x.q.device()),
          empty({B, H, T}, x.q.dtype(), x.q.device())};
}

void BlockSparse::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                              Saved* saved) {
  if (o.position) {
    require(!saved, "block_sparse: position without a gradient alone");
    Options all = o;
    all.position = {};
    const int64_t held = rows_held(o.position, x.k.size(1));
    return cpu_forward({x.q, x.k.slice(1, 0, held), x.v.slice(1, 0, held)}, all, y, saved);
  }
  if (saved) *saved = {y.o, y.lse};
  const SoftmaxCall call = call_of(x, o);
  const BlockRuns rows(o.block_mask, BlockRuns::rows, x.q.device());
  const Tensor scratch =
      empty({thread_count(), ForwardTile<float>::scratch(call.shape)}, x.q.dtype(), x.q.device());
  if (x.q.is_meta()) return;
  rows.find();
  for_real(x.q.dtype(), [&]<class Real>() {
    forward_tiles<Real>(call, rows, block_of(o, call.S), {view<Real>(y.o), view<Real>(y.lse)},
                        view<Real>(scratch));
  });
}

void BlockSparse::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const SoftmaxCall call = call_of(x, o);
  const BlockRuns columns(o.block_mask, BlockRuns::columns, x.q.device());
  const SoftmaxBackward back(call, saved.o, saved.lse, dy.o, dy.lse, dx.q);
  const Tensor scratch =
      empty({thread_count(), BackwardTile<float>::scratch(call.shape)}, x.q.dtype(), x.q.device());
  if (x.q.is_meta()) return;
  columns.find();
  for_real(x.q.dtype(), [&]<class Real>() {
    back.begin<Real>();
    backward_tiles<Real>(call, back, columns, block_of(o, call.S), view<Real>(dx.k),
                         view<Real>(dx.v), view<Real>(scratch));
    back.end<Real>();
  });
}

}  // namespace weft::kernels
