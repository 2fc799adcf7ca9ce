// Labelled rows are gathered, a chunk at a time; their logits are one matrix product, made again in
// the backward pass. The weight's gradient is summed chunk by chunk.
#include "kernels/basic/cross_entropy.h"

#include "kernels/basic/cross_entropy_reference.h"
#include "kernels/basic/rows.h"
#include "kernels/common/blas.h"
#include "kernels/common/vmath.h"

namespace weft::kernels {
namespace {

const Registered<CrossEntropy> registered;

// Inputs as the loops want them, the memory for a chunk, and the list of labelled rows.
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
        order(empty({R}, Dtype::i32, x.device())),
        gathered(empty({chunk, D}, x.dtype(), x.device())),
        logits(empty({chunk, V}, x.dtype(), x.device())) {
    if (x.is_meta()) return;
    for (int64_t r = 0; r < R; ++r)
      if (targets.data<int32_t>()[r] != CrossEntropy::kIgnored)
        order.data<int32_t>()[labelled++] = static_cast<int32_t>(r);
  }

  Tensor x, w, bias, targets;
  double softcap;
  int64_t R, D, V, chunk;
  Tensor order;     // i32 [R]: the labelled rows first come first
  Tensor gathered;  // [chunk, D]: their x
  Tensor logits;    // [chunk, V]
  int64_t labelled = 0;

  int64_t row(int64_t i) const { return order.data<int32_t>()[i]; }
  int64_t target(int64_t i) const { return targets.data<int32_t>()[row(i)]; }

  // Fills `gathered` and `logits` for labelled rows begin .. begin + count - 1, before the soft cap.
  template <class T>
  void make_logits(int64_t begin, int64_t count) const {
    T* const to = gathered.data<T>();
    T* const out = logits.data<T>();
    const auto xs = rows<const T>(x);
    parallel_ranges(count, row_grain(D + (bias ? V : 0)), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        std::copy_n(xs[row(begin + i)], D, to + i * D);
        if (bias) std::copy_n(bias.data<T>(), V, out + i * V);
      }
    });
    parallel_gemm<T>(count, V, D, 1, {to, D}, {w.data<T>(), D, true}, bias ? 1 : 0, {out, V});
  }

  // Calls f(i, row of logits) for i < count, in parallel.
  template <class T, class F>
  void over_logits(int64_t count, const F& f) const {
    parallel_ranges(count, row_grain(V), [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) f(i, logits.data<T>() + i * V);
    });
  }
};

template <class T>
void cap(T* __restrict__ row, int64_t V, T softcap) {
  for (int64_t v = 0; v < V; ++v) row[v] = softcap * vtanh(row[v] / softcap);
}

}  // namespace

int64_t CrossEntropy::chunk_rows(int64_t R, int64_t V) {
  constexpr int64_t kLogits = 1 << 18, kFewest = 128;  // fewer rows would read w too often
  const int64_t chunk = std::max(kFewest, kLogits / std::max<int64_t>(1, V));
  return std::min(R, chunk);
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
  if (o.targets.is_meta()) return;
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
  if (lse.is_meta()) return;
  for_real(lse.dtype(), [&]<class T>() {
    double loss = 0, z = 0;
    const auto losses = head.gathered.template data<T>();  // done with when a row's loss is known
    for (int64_t begin = 0; begin < head.labelled; begin += head.chunk) {
      const int64_t count = std::min(head.chunk, head.labelled - begin);
      head.make_logits<T>(begin, count);
      head.over_logits<T>(count, [&](int64_t i, T* row) {
        if (head.softcap > 0) cap(row, head.V, static_cast<T>(head.softcap));
        const T sum = log_sum_exp(row, head.V);
        lse.data<T>()[head.row(begin + i)] = sum;
        losses[i] = sum - row[head.target(begin + i)];
      });
      for (int64_t i = 0; i < count; ++i) {
        const double sum = lse.data<T>()[head.row(begin + i)];
        loss += losses[i];
        z += sum * sum;
      }
    }
    const double labelled = std::max<double>(1, static_cast<double>(head.labelled));
    *y.loss.data<T>() = static_cast<T>(loss / labelled);
    *y.z.data<T>() = static_cast<T>(z / labelled);
  });
}

// Of a logit: (dloss (p - 1[target]) + dz 2 lse p) / labelled, p = exp(logit - lse).
void CrossEntropy::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Head head(x, o);
  const Tensor flow =
      dx.x ? empty({head.chunk, head.D}, head.x.dtype(), head.x.device()) : Tensor();
  if (head.x.is_meta()) return;
  if (dx.x) dx.x.zero();
  if (dx.w) dx.w.zero();
  if (dx.bias) dx.bias.zero();
  for_real(head.x.dtype(), [&]<class T>() {
    const int64_t D = head.D, V = head.V;
    const T labelled = static_cast<T>(std::max<int64_t>(1, head.labelled));
    const T dloss = *dy.loss.data<T>() / labelled;
    const T dz = dy.z ? *dy.z.data<T>() / labelled : T(0);
    const T softcap = static_cast<T>(head.softcap);
    for (int64_t begin = 0; begin < head.labelled; begin += head.chunk) {
      const int64_t count = std::min(head.chunk, head.labelled - begin);
      head.make_logits<T>(begin, count);
      head.over_logits<T>(count, [&](int64_t i, T* __restrict__ row) {
        const T lse = saved.lse.data<T>()[head.row(begin + i)];
        const T factor = dloss + 2 * dz * lse;
        const int64_t target = head.target(begin + i);
        if (softcap > 0) {
          const T tanh_target = vtanh(row[target] / softcap);
          for (int64_t v = 0; v < V; ++v) {
            const T t = vtanh(row[v] / softcap);
            row[v] = factor * vexp(softcap * t - lse) * (1 - t * t);
          }
          row[target] -= dloss * (1 - tanh_target * tanh_target);
        } else {
          for (int64_t v = 0; v < V; ++v) row[v] = factor * vexp(row[v] - lse);
          row[target] -= dloss;
        }
      });
      const Matrix<const T> dlogits{head.logits.template data<T>(), V};
      if (dx.x) {
        parallel_gemm<T>(count, D, V, 1, dlogits, {head.w.template data<T>(), D}, 0,
                         {flow.data<T>(), D});
        parallel_ranges(count, row_grain(D), [&](int64_t a, int64_t b) {
          for (int64_t i = a; i < b; ++i)
            std::copy_n(flow.data<T>() + i * D, D, dx.x.data<T>() + head.row(begin + i) * D);
        });
      }
      if (dx.w)
        parallel_gemm<T>(V, D, count, 1, {dlogits.data, V, true},
                         {head.gathered.template data<T>(), D}, 1, {dx.w.data<T>(), D});
      if (dx.bias)
        parallel_ranges(V, 256, [&](int64_t a, int64_t b) {
          T* __restrict__ sum = dx.bias.data<T>();
          for (int64_t i = 0; i < count; ++i)
            for (int64_t v = a; v < b; ++v) sum[v] += dlogits.data[i * V + v];
        });
    }
  });
}

}  // namespace weft::kernels
