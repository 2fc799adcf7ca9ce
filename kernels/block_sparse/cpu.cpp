// The chunkwise form: the tiles of attention (kernels/softmax/tiles.h), for the blocks of a mask.
// Forward, a tile of queries lies in one row of blocks, or in rows of the mask that are equal, and
// walks the runs of that row; backward, a tile of keys lies in one column and walks the runs of
// that column. Threads share the work as in attention, and the same bits come out on any number of
// them.
#include "kernels/block_sparse/block_sparse.h"

#include "core/parallel.h"
#include "kernels/block_sparse/reference.h"
#include "kernels/softmax/softmax.h"

namespace weft::kernels {
namespace {

const Registered<BlockSparse> registered;

// The lines of a mask (its rows, or its columns) as runs of set blocks, or of rows. Sized by the
// mask's shape alone: a line holds the number of its runs, then their first blocks and ends.
class BlockRuns {
 public:
  enum Line { rows, columns };
  BlockRuns(const BlockSparse::Options& o, int64_t H, Line line, Device device)
      : mask_(line == rows ? batched(o.block_mask) : batched(o.block_mask).transpose(2, 3)),
        runs_(empty({mask_.size(0), mask_.size(1), mask_.size(2), mask_.size(3) + 2}, Dtype::i32,
                    device)),
        group_(H / mask_.size(1)) {}

  void find() const {
    const View<const uint8_t> m = view<const uint8_t>(mask_);
    const View<int32_t> runs = view<int32_t>(runs_);
    parallel_for(m.size(0) * m.size(1) * m.size(2), [&](int64_t unit) {
      const int64_t line = unit % m.size(2), h = unit / m.size(2) % m.size(1);
      const int64_t b = unit / m.size(2) / m.size(1);
      int32_t* const run = runs.at(b, h, line);
      int32_t count = 0;
      for (int64_t c = 0; c < m.size(3); ++c) {
        if (!m(b, h, line, c)) continue;
        const auto at = static_cast<int32_t>(c);
        if (count == 0 || run[2 * count] != at) run[2 * count++ + 1] = at;
        run[2 * count] = at + 1;
      }
      run[0] = count;
    });
  }

  // Calls f(begin, end) for the runs of a line of head h, in units of `size`. `b`: the row of the
  // batch, or the document.
  template <class F>
  void each(int64_t b, int64_t h, int64_t line, int64_t size, const F& f) const {
    const int32_t* const run = of(b, h, line);
    for (int32_t r = 0; r < run[0]; ++r) f(run[2 * r + 1] * size, run[2 * r + 2] * size);
  }
  bool same(int64_t b, int64_t h, int64_t line, int64_t other) const {
    const int32_t *const x = of(b, h, line), *const y = of(b, h, other);
    return std::equal(x, x + 1 + 2 * x[0], y);
  }

 private:
  const int32_t* of(int64_t b, int64_t h, int64_t line) const {
    return view<const int32_t>(runs_).at(runs_.size(0) == 1 ? 0 : b, h / group_, line);
  }

  Tensor mask_, runs_;
  int64_t group_;
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

// What the tiles read of the mask: runs of its rows (of its columns, backward), and its units.
struct MaskLines {
  MaskLines(const BlockSparse::Options& o, const SoftmaxCall& s, BlockRuns::Line line)
      : runs(o, s.H, line, s.q.device()),
        block(block_of(o, s.S)),
        alike(o.alike),
        by_token(o.by_token) {}
  BlockRuns runs;
  int64_t block, alike;
  bool by_token;

  // Calls f(begin, end, line) for the parts of a piece of queries whose rows of the mask are one.
  template <class F>
  void for_rows(const SoftmaxCall& s, const Piece& p, int64_t h, const F& f) const {
    if (!by_token) return for_lines(p, s.position(p.document, p.begin), block, f);
    for (int64_t t = p.begin, next = 0; t < p.end; t = next) {
      const int64_t at = s.position(p.document, t);
      next = alike > 1 ? std::min(p.end, t + alike - at % alike) : t + 1;
      for (int64_t other = t + 1; other < next; ++other)
        require(runs.same(p.document, h, t, other), "block_sparse: alike is ", alike, ", but rows ",
                t, " and ", other, " of block_mask differ; expected equal ones, or alike = 1");
      f(t, next, t);
    }
  }
  // Calls f(begin, end) for the rows of q that see keys [begin, end) of document n, in `column`.
  template <class F>
  void for_queries(const SoftmaxCall& s, int64_t n, int64_t h, int64_t column, int64_t begin,
                   int64_t end, const F& f) const {
    const KeyBand band = s.band(n);
    const auto row = [&](int64_t at) { return by_token ? at : s.row(n, at); };
    runs.each(n, h, column, by_token ? 1 : block, [&](int64_t first, int64_t stop) {
      f(std::max({row(first), s.row(n, band.first_query(begin)), s.queries.begin(n)}),
        std::min({row(stop), s.row(n, band.end_query(end)), s.queries.end(n)}));
    });
  }
};

template <class Real>
void forward_tiles(const SoftmaxCall& s, const MaskLines& rows,
                   const Outputs<BlockSparse, View<Real>>& y, const View<Real>& scratch) {
  const View<Real> q = view<Real>(s.q), k = view<Real>(s.k), v = view<Real>(s.v);
  const int64_t chunks = s.queries.chunks();
  parallel_for(s.B * s.H * chunks, [&](int64_t unit) {
    const int64_t c = chunks - 1 - unit % chunks, h = unit / chunks % s.H, b = unit / chunks / s.H;
    ForwardTile<Real> tile(s.shape, scratch.at(thread_index()));
    s.queries.for_pieces(b, c, [&](const Piece& p) {
      const int64_t n = p.document, key0 = s.keys.begin(n), hk = s.key_head(h);
      rows.for_rows(s, p, h, [&](int64_t begin, int64_t end, int64_t row) {
        tile.start(rows_of(q, b, begin, h), end - begin, s.position(n, begin), s.band(n));
        rows.runs.each(n, h, row, rows.block, [&](int64_t first, int64_t stop) {
          tile.see(rows_of(k, b, key0, hk), rows_of(v, b, key0, hk), first, stop);
        });
        tile.finish(nullptr, rows_of(y.o, b, begin, h), y.lse.at(b, h, begin));
      });
    });
  });
}

// The keys [begin, end) of a document, all of one column of blocks, meet the queries of one head.
template <class Real>
void meet_queries(const SoftmaxCall& s, const SoftmaxBackward& back, const MaskLines& columns,
                  BackwardTile<Real>& tile, int64_t part, int64_t b, int64_t h, int64_t n,
                  int64_t begin, int64_t end, int64_t column) {
  const KeyBand band = s.band(n);
  columns.for_queries(s, n, h, column, begin, end, [&](int64_t t_first, int64_t t_end) {
    for (int64_t t0 = t_first, t1 = 0; t0 < t_end; t0 = t1) {
      t1 = std::min(t_end, (t0 / kSoftmaxTile + 1) * kSoftmaxTile);
      tile.meet(back.tile<Real>(part, b, h, t0, t1 - t0, s.position(n, t0)), band);
    }
  });
}

template <class Real>
void backward_tiles(const SoftmaxCall& s, const SoftmaxBackward& back, const MaskLines& columns,
                    const View<Real>& dk, const View<Real>& dv, const View<Real>& scratch) {
  const View<Real> k = view<Real>(s.k), v = view<Real>(s.v);
  parallel_for(s.B * s.Hk * back.parts, [&](int64_t unit) {
    const int64_t part = unit % back.parts, hk = unit / back.parts % s.Hk;
    const int64_t b = unit / back.parts / s.Hk, group = s.H / s.Hk;
    BackwardTile<Real> tile(s.shape, static_cast<bool>(dk), static_cast<bool>(dv),
                            scratch.at(thread_index()));
    for (int64_t c = part; c < s.keys.chunks(); c += back.parts)
      s.keys.for_pieces(b, c, [&](const Piece& p) {
        const int64_t n = p.document, key0 = s.keys.begin(n);
        for_lines(p, p.begin - key0, columns.block,
                  [&](int64_t begin, int64_t end, int64_t column) {
                    tile.start(rows_of(k, b, key0, hk), rows_of(v, b, key0, hk), begin - key0,
                               end - key0);
                    for (int64_t h = hk * group; h < (hk + 1) * group; ++h)
                      meet_queries(s, back, columns, tile, part, b, h, n, begin - key0, end - key0,
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
  require(T <= S || (o.by_token && !o.causal), "block_sparse: q has ", T, " tokens and k ", S,
          "; expected at most as many");
  require(o.block >= 1, "block_sparse: block is ", o.block, ", expected 1 or more");
  require(o.alike >= 1 && (o.alike == 1 || (o.by_token && T <= S)), "block_sparse: alike is ",
          o.alike, ", expected 1, or more with by_token and no more queries than keys");
  require(static_cast<bool>(o.block_mask),
          "block_sparse: block_mask [1 or H, rows, columns] is missing");
  const Shape& mask = o.block_mask.shape();
  require(o.block_mask.dtype() == Dtype::u8 && (mask.dims() == 3 || mask.dims() == 4) &&
              (o.block_mask.device().is_cpu() || o.block_mask.device() == x.q.device()),
          "block_sparse: block_mask is ", o.block_mask.dtype(), " ", mask, " on ",
          o.block_mask.device(), ", expected u8 [heads, rows, columns], perhaps with a batch in ",
          "front, on cpu or as q");
  int64_t longest = S;
  if (o.cu_seqlens) {
    const Documents docs(o.cu_seqlens, 1, T);
    longest = 0;
    for (int64_t n = 0; n < docs.count(); ++n)
      longest = std::max(longest, docs.end(n) - docs.begin(n));
  }
  const int64_t heads = mask[-3], least = block_count(longest, o.block);
  require(heads > 0 && H % heads == 0 && mask[-1] >= least &&
              (o.by_token ? mask[-2] == T : mask[-2] >= least),
          "block_sparse: block_mask has shape ", mask, ", expected [1 or ", H, ", ",
          o.by_token ? T : least, ", ", least, "] or more for ", longest, " tokens in blocks of ",
          o.block, o.by_token ? concat("; its rows are those of q, ", T) : std::string(),
          H > 1 ? "; heads may be any divisor of those of q" : "");
  const int64_t batches = mask.dims() == 3 ? 1 : mask[0];
  const bool packed = o.cu_seqlens && !o.by_token;
  const int64_t rows = packed ? o.cu_seqlens.size(0) - 1 : x.q.size(0);
  int64_t least_rows = packed ? 0 : rows;  // empty documents at the end need no mask
  while (packed && least_rows < rows &&
         o.cu_seqlens.data<int32_t>()[least_rows] < o.cu_seqlens.data<int32_t>()[least_rows + 1])
    ++least_rows;
  require(batches == 1 || (batches >= least_rows && batches <= rows),
          "block_sparse: block_mask has shape ", mask, ", expected a batch of 1 or of ", rows,
          packed ? " documents" : " as q");
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
  const MaskLines rows(o, call, BlockRuns::rows);
  const Tensor scratch =
      empty({thread_count(), ForwardTile<float>::scratch(call.shape)}, x.q.dtype(), x.q.device());
  if (x.q.is_meta()) return;
  rows.runs.find();
  for_real(x.q.dtype(), [&]<class Real>() {
    forward_tiles<Real>(call, rows, {view<Real>(y.o), view<Real>(y.lse)}, view<Real>(scratch));
  });
}

void BlockSparse::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const SoftmaxCall call = call_of(x, o);
  const MaskLines columns(o, call, BlockRuns::columns);
  const SoftmaxBackward back(call, saved.o, saved.lse, dy.o, dy.lse, dx.q);
  const Tensor scratch =
      empty({thread_count(), BackwardTile<float>::scratch(call.shape)}, x.q.dtype(), x.q.device());
  if (x.q.is_meta()) return;
  columns.runs.find();
  for_real(x.q.dtype(), [&]<class Real>() {
    back.begin<Real>();
    backward_tiles<Real>(call, back, columns, view<Real>(dx.k), view<Real>(dx.v),
                         view<Real>(scratch));
    back.end<Real>();
  });
}

}  // namespace weft::kernels
