// Labelled rows are gathered, a chunk at a time, and their logits are made in tiles of a chunk of
// rows by a part of the vocabulary, which stay in the cache until they are done with: forward keeps
// the largest logit and the sum of exponentials of each row as it goes, backward makes a tile
// again, turns it into its gradient and multiplies that twice. Sums over tiles and chunks are made
// in their order.
#include "kernels/products/cross_entropy.h"

#include <cmath>
#include <limits>

#include "kernels/products/cross_entropy_reference.h"
#include "kernels/rows/rows.h"
#include "kernels/tile/cpu_gemm.h"
#include "kernels/tile/vmath.h"

namespace weft::kernels {
namespace {

const Registered<CrossEntropy> registered;

constexpr int64_t kTile = cuts::kLossTile, kColumns = cuts::kLossColumns;

int64_t tile_columns(int64_t V) { return std::min(V, kColumns); }

// Inputs as the loops want them, the memory for a tile, and the list of labelled rows.
struct Head {
  Head(const Inputs<CrossEntropy>& in, const CrossEntropy::Options& o)
      : x(with_rows(in.x)),
        w(in.w.contiguous()),
        bias(in.bias ? in.bias.contiguous() : Tensor()),
        targets(o.targets.contiguous()),
        softcap(o.softcap),
        R(x.size(0)),
        D(x.size(1)),
        V(w.size(0)),
        chunk(CrossEntropy::chunk_rows(R, V)),
        columns(tile_columns(V)),
        order(empty({R}, Dtype::i32, x.device())),
        gathered(empty({chunk, D}, x.dtype(), x.device())),
        logits(empty({chunk, columns}, x.dtype(), x.device())) {
    if (x.is_meta()) return;
    for (int64_t r = 0; r < R; ++r)
      if (targets.data<int32_t>()[r] != CrossEntropy::kIgnored)
        order.data<int32_t>()[labelled++] = static_cast<int32_t>(r);
  }

  Tensor x, w, bias, targets;
  double softcap;
  int64_t R, D, V, chunk, columns;
  Tensor order;     // i32 [R]: the labelled rows
  Tensor gathered;  // [chunk, D]: their x
  Tensor logits;    // [chunk, columns]
  int64_t labelled = 0;

  int64_t row(int64_t i) const { return order.data<int32_t>()[i]; }
  int64_t target(int64_t i) const { return targets.data<int32_t>()[row(i)]; }

  // Calls f(first, count) for each chunk of labelled rows, having gathered them.
  template <class Real, class F>
  void for_chunks(const F& f) const {
    const auto xs = rows<const Real>(x);
    for (int64_t first = 0; first < labelled; first += chunk) {
      const int64_t count = std::min(chunk, labelled - first);
      parallel_ranges(count, row_grain(D), [&](int64_t a, int64_t b) {
        for (int64_t i = a; i < b; ++i)
          std::copy_n(xs[row(first + i)], D, gathered.data<Real>() + i * D);
      });
      f(first, count);
    }
  }

  // Makes the logits of `count` gathered rows, entries begin .. begin + n - 1 of the vocabulary,
  // and calls f(i, row) for each row [n] of them, in parallel. The soft cap is not applied yet.
  template <class Real, class F>
  void for_logits(int64_t count, int64_t begin, int64_t n, const F& f) const {
    Real* const out = logits.data<Real>();
    parallel_gemm<Real>(count, n, D, 1, {gathered.data<Real>(), D},
                        {w.data<Real>() + begin * D, D, true}, 0, {out, n});
    parallel_ranges(count, row_grain(n), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        Real* __restrict__ row = out + i * n;
        if (bias) {
          const Real* __restrict__ add = bias.data<Real>() + begin;
          for (int64_t v = 0; v < n; ++v) row[v] += add[v];
        }
        f(i, row);
      }
    });
  }

  // Calls f(begin, n) for each part of the vocabulary that makes a tile.
  template <class F>
  void for_tiles(const F& f) const {
    for (int64_t begin = 0; begin < V; begin += columns) f(begin, std::min(columns, V - begin));
  }
};

// A row's logits seen so far: the largest, and the sum of exponentials relative to it.
template <class Real>
struct Running {
  Real most = -std::numeric_limits<Real>::infinity(), sum = 0;

  void add(const Real* __restrict__ row, int64_t n) {
    Real top = most, more = 0;
#pragma omp simd reduction(max : top)
    for (int64_t v = 0; v < n; ++v) top = row[v] > top ? row[v] : top;
#pragma omp simd reduction(+ : more)
    for (int64_t v = 0; v < n; ++v) more += vexp(row[v] - top);
    sum = sum * vexp(most - top) + more;
    most = top;
  }
  Real log_sum() const { return most + std::log(sum); }
};

template <class Real>
void cap(Real* __restrict__ row, int64_t n, Real softcap) {
  for (int64_t v = 0; v < n; ++v) row[v] = softcap * vtanh(row[v] / softcap);
}

// What a logit's gradient is made of, a row's share of dloss and dz.
template <class Real>
struct Flow {
  Real dloss, dz, softcap;

  // row -> its gradient: (dloss (p - 1[target]) + dz 2 lse p) / labelled, p = exp(logit - lse),
  // times the derivative of the soft cap. `target` is negative where it is not in the row.
  void through(Real* __restrict__ row, int64_t n, Real lse, int64_t target) const {
    const Real factor = dloss + 2 * dz * lse;
    Real slope = 1;
    if (softcap > 0) {
      if (target >= 0) slope -= std::pow(vtanh(row[target] / softcap), Real(2));
      for (int64_t v = 0; v < n; ++v) {
        const Real t = vtanh(row[v] / softcap);
        row[v] = factor * vexp(softcap * t - lse) * (1 - t * t);
      }
    } else {
      for (int64_t v = 0; v < n; ++v) row[v] = factor * vexp(row[v] - lse);
    }
    if (target >= 0) row[target] -= dloss * slope;
  }
};

}  // namespace

int64_t CrossEntropy::chunk_rows(int64_t R, int64_t V) {
  return std::min(R, kTile / tile_columns(std::max<int64_t>(1, V)));
}

void CrossEntropy::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 2, "cross_entropy: x has shape ", x.x.shape(), ", expected [R, D]");
  const int64_t R = x.x.size(0), D = x.x.size(1);
  require(x.w.dims() == 2 && x.w.size(1) == D && x.w.size(0) >= 1, "cross_entropy: w has shape ",
          x.w.shape(), ", expected [V, ", D, "] for x ", x.x.shape());
  const int64_t V = x.w.size(0);
  require(!x.bias || x.bias.shape() == Shape{V}, "cross_entropy: bias has shape ", x.bias.shape(),
          ", expected [", V, "]");
  require(o.softcap >= 0, "cross_entropy: softcap = ", o.softcap, ", expected 0 (none) or more");
  check_index_shape("cross_entropy: targets", o.targets, {R});
  if (!o.targets.device().is_cpu()) return;
  const View<const int32_t> targets = view<const int32_t>(o.targets);
  for (int64_t r = 0; r < R; ++r)
    if (targets(r) != kIgnored && (targets(r) < 0 || targets(r) >= V)) [[unlikely]]
      fail("cross_entropy: targets[", r, "] = ", targets(r), ", expected 0 .. ", V - 1, ", or ",
           kIgnored, " for a row without a label");
}

Outputs<CrossEntropy> CrossEntropy::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty({1}, x.x.dtype(), x.x.device()), empty({1}, x.x.dtype(), x.x.device())};
}

void CrossEntropy::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                               Saved* saved) {
  const Tensor lse = empty({x.x.size(0)}, x.x.dtype(), x.x.device());
  if (saved) saved->lse = lse;
  const Head head(x, o);
  const Tensor running = empty({head.chunk, 3}, lse.dtype(), lse.device());
  if (lse.is_meta()) return;
  for_real(lse.dtype(), [&]<class Real>() {
    struct Row {  // of `running`
      Running<Real> logits;
      Real at_target;
    };
    static_assert(sizeof(Row) == 3 * sizeof(Real));
    auto* const state = reinterpret_cast<Row*>(running.data<Real>());
    double loss = 0, z = 0;
    head.for_chunks<Real>([&](int64_t first, int64_t count) {
      std::fill_n(state, count, Row{{}, 0});
      head.for_tiles([&](int64_t begin, int64_t n) {
        head.for_logits<Real>(count, begin, n, [&](int64_t i, Real* row) {
          if (head.softcap > 0) cap(row, n, static_cast<Real>(head.softcap));
          state[i].logits.add(row, n);
          const int64_t target = head.target(first + i) - begin;
          if (target >= 0 && target < n) state[i].at_target = row[target];
        });
      });
      for (int64_t i = 0; i < count; ++i) {
        const Real sum = state[i].logits.log_sum();
        lse.data<Real>()[head.row(first + i)] = sum;
        loss += sum - state[i].at_target;
        z += double{sum} * sum;
      }
    });
    const double labelled = std::max<double>(1, static_cast<double>(head.labelled));
    *y.loss.data<Real>() = static_cast<Real>(loss / labelled);
    *y.z.data<Real>() = static_cast<Real>(z / labelled);
  });
}

void CrossEntropy::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Head head(x, o);
  const Tensor flow =
      dx.x ? empty({head.chunk, head.D}, head.x.dtype(), head.x.device()) : Tensor();
  if (head.x.is_meta()) return;
  if (dx.x && head.labelled < head.R) dx.x.zero();
  if (dx.w && head.labelled == 0) dx.w.zero();
  if (dx.bias) dx.bias.zero();
  for_real(head.x.dtype(), [&]<class Real>() {
    const int64_t D = head.D;
    const Real labelled = static_cast<Real>(std::max<int64_t>(1, head.labelled));
    const Flow<Real> through{*dy.loss.data<Real>() / labelled,
                             dy.z ? *dy.z.data<Real>() / labelled : Real(0),
                             static_cast<Real>(head.softcap)};
    head.for_chunks<Real>([&](int64_t first, int64_t count) {
      head.for_tiles([&](int64_t begin, int64_t n) {
        head.for_logits<Real>(count, begin, n, [&](int64_t i, Real* row) {
          const int64_t target = head.target(first + i) - begin;
          through.through(row, n, saved.lse.data<Real>()[head.row(first + i)],
                          target < n ? target : -1);
        });
        const Real* const dlogits = head.logits.template data<Real>();
        if (dx.x)
          parallel_gemm<Real>(count, D, n, 1, {dlogits, n},
                              {head.w.template data<Real>() + begin * D, D}, begin > 0 ? 1 : 0,
                              {flow.data<Real>(), D});
        if (dx.w)
          parallel_gemm<Real>(n, D, count, 1, {dlogits, n, true},
                              {head.gathered.template data<Real>(), D}, first > 0 ? 1 : 0,
                              {dx.w.data<Real>() + begin * D, D});
        if (dx.bias) {
          Real* __restrict__ sum = dx.bias.data<Real>() + begin;
          for (int64_t i = 0; i < count; ++i)
            for (int64_t v = 0; v < n; ++v) sum[v] += dlogits[i * n + v];
        }
      });
      if (dx.x)
        parallel_ranges(count, row_grain(D), [&](int64_t a, int64_t b) {
          for (int64_t i = a; i < b; ++i)
            std::copy_n(flow.data<Real>() + i * D, D, dx.x.data<Real>() + head.row(first + i) * D);
        });
    });
  });
}

}  // namespace weft::kernels
