// Row by row, a row's group at a time. The weight's gradient is summed in blocks of rows.
#include "kernels/rows/norms.h"

#include <cmath>

#include "kernels/contract/rounding.h"
#include "kernels/rows/functions.h"
#include "kernels/rows/norms_reference.h"
#include "kernels/rows/rows.h"

namespace weft::kernels {
namespace {

const Registered<RmsNorm> rms_norm;
const Registered<LayerNorm> layer_norm;
const Registered<GatedNorm> gated_norm;
const Registered<L2Norm> l2_norm;

// What all of them ask of x [R, D], groups and the vectors of D.
void check_rows(std::string_view name, const Tensor& x, int64_t groups) {
  require(x.dims() == 2, name, ": x has shape ", x.shape(), ", expected [R, D]");
  require(groups >= 1 && groups <= std::max<int64_t>(1, x.size(1)) && x.size(1) % groups == 0, name,
          ": groups = ", groups, ", expected a divisor of D = ", x.size(1));
}
void check_residual(std::string_view name, const Tensor& residual, const Tensor& x) {
  require(!residual || residual.shape() == x.shape(), name, ": residual has shape ",
          residual.shape(), ", expected ", x.shape(), " as x");
}
void check_vector(std::string_view name, const char* what, const Tensor& v, int64_t D) {
  require(!v || v.shape() == Shape{D}, name, ": ", what, " has shape ", v.shape(), ", expected [",
          D, "]");
}

// A weight of ones where there is none, so that the loops are the same.
Tensor weight_or_one(const Tensor& weight, const Tensor& x) {
  return weight ? weight.contiguous() : full({x.size(1)}, 1, x.dtype(), x.device());
}

// Sums over rows: a row of D numbers for each block of rows, then one.
Tensor partial_sums(bool wanted, const RowBlocks& blocks, const Tensor& like) {
  return wanted ? empty({blocks.count, like.size(1)}, like.dtype(), like.device()) : Tensor();
}

// sum = x + residual, as it is kept: both passes go on from that.
template <class Real>
void add_rows(const Tensor& x, const Tensor& residual, const Tensor& sum) {
  const int64_t D = x.size(1);
  const auto xs = rows<const Real>(x), more = rows<const Real>(residual);
  const auto sums = rows<Real>(sum);
  parallel_ranges(x.size(0), row_grain(D), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const Real* __restrict__ a = xs[r];
      const Real* __restrict__ b = more[r];
      Real* __restrict__ out = sums[r];
      for (int64_t i = 0; i < D; ++i) out[i] = operand(a[i] + b[i]);
    }
  });
}

// What is normalised: x, or the sum, which is made here.
Tensor normalised(const Tensor& x, const Tensor& residual, const Tensor& sum) {
  const Tensor in = with_rows(x);
  if (!residual) return in;
  const Tensor more = with_rows(residual);
  if (!in.is_meta()) for_real(in.dtype(), [&]<class Real>() { add_rows<Real>(in, more, sum); });
  return sum;
}

// The gradient of x is that of the residual, too: the place for it, or the first of two.
const Tensor& place_of(const Tensor& dx, const Tensor& dresidual) { return dx ? dx : dresidual; }
void copy_to_second(const Tensor& dx, const Tensor& dresidual) {
  if (dx && dresidual) dresidual.copy_from(dx);
}

// y = x r w with r = (sum x^2 / count + eps)^-1/2 over each group of W columns; count is W, or 1
// for the L2 norm.
template <class Real>
void scale_rows(const Tensor& x, const Tensor& weight, int64_t W, double count, double eps,
                const Tensor& rstd, const Tensor& y) {
  const int64_t R = x.size(0), D = x.size(1);
  const auto xs = rows<const Real>(x);
  const Real* const w = weight.data<Real>();
  parallel_ranges(R, row_grain(D), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t at = 0; at < D; at += W) {
        const Real* __restrict__ in = xs[r] + at;
        const Real* __restrict__ wg = w + at;
        Real* __restrict__ out = y.data<Real>() + r * D + at;
        const Real root = Real(1) / std::sqrt(dot(in, in, W) / Real(count) + Real(eps));
        for (int64_t i = 0; i < W; ++i) out[i] = in[i] * root * wg[i];
        if (rstd) rstd.data<Real>()[(r * D + at) / W] = root;
      }
  });
}

template <class Real>
void add_row(const Real* __restrict__ from, int64_t n, Real* __restrict__ to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

// Its gradients, from dn = dy w: dx = r (dn - x r^2 sum(dn x) / count) + along, where that is
// there, dw = sum over rows of dy x r.
template <class Real>
void scale_rows_backward(const Tensor& x, const Tensor& weight, int64_t W, double count,
                         const Tensor& rstd, const Tensor& dy, const Tensor& along,
                         const Tensor& dx, const Tensor& dw_parts, const RowBlocks& blocks) {
  const int64_t D = x.size(1);
  const auto xs = rows<const Real>(x), flow = rows<const Real>(dy),
             alongs = rows<const Real>(along);
  const auto dxs = rows<Real>(dx), dws = rows<Real>(dw_parts);
  blocks.each([&](int64_t block, int64_t begin, int64_t end) {
    if (dws) std::fill_n(dws[block], D, Real(0));
    for (int64_t r = begin; r < end; ++r)
      for (int64_t at = 0; at < D; at += W) {
        const Real* __restrict__ in = xs[r] + at;
        const Real* __restrict__ g = flow[r] + at;
        const Real* __restrict__ wg = weight.data<Real>() + at;
        const Real root = rstd.data<Real>()[(r * D + at) / W];
        if (dxs) {
          Real* __restrict__ out = dxs[r] + at;
          const Real back = root * root * root * dot(in, g, wg, W) / Real(count);
          for (int64_t i = 0; i < W; ++i) out[i] = root * g[i] * wg[i] - back * in[i];
          if (alongs) add_row(alongs[r] + at, W, out);
        }
        if (dws) {
          Real* __restrict__ sum = dws[block] + at;
          for (int64_t i = 0; i < W; ++i) sum[i] += root * g[i] * in[i];
        }
      }
  });
}

// y = x r w a(z), r over x; or y = h r w, r over h = x a(z).
template <class Gate, bool kGateFirst, class Real>
void gated_rows(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t W, double eps,
                const Tensor& rstd, const Tensor& y) {
  const int64_t R = x.size(0), D = x.size(1);
  const auto xs = rows<const Real>(x), zs = rows<const Real>(z);
  parallel_ranges(R, row_grain(D), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t at = 0; at < D; at += W) {
        const Real* __restrict__ in = xs[r] + at;
        const Real* __restrict__ gate = zs[r] + at;
        const Real* __restrict__ wg = weight.data<Real>() + at;
        Real* __restrict__ out = y.data<Real>() + r * D + at;
        for (int64_t i = 0; i < W; ++i) out[i] = in[i] * Gate::value(gate[i]);
        const Real squares = kGateFirst ? dot<Real>(out, out, W) : dot<Real>(in, in, W);
        const Real root = Real(1) / std::sqrt(squares / Real(W) + Real(eps));
        for (int64_t i = 0; i < W; ++i) out[i] *= root * wg[i];
        if (rstd) rstd.data<Real>()[(r * D + at) / W] = root;
      }
  });
}

// A thread's scratch of 2 D holds a(z) and a'(z). With n what is normalised (x, or h) and dn its
// factor's gradient (dy w a, or dy w): dn -> d' = r (dn - n r^2 sum(dn n) / W).
template <class Gate, bool kGateFirst, class Real>
void gated_rows_backward(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t W,
                         const Tensor& rstd, const Tensor& dy, const Inputs<GatedNorm>& dx,
                         const Tensor& dw_parts, const Tensor& scratch, const RowBlocks& blocks) {
  const int64_t D = x.size(1);
  const auto xs = rows<const Real>(x), zs = rows<const Real>(z), flow = rows<const Real>(dy);
  const auto dxs = rows<Real>(dx.x), dzs = rows<Real>(dx.z), dws = rows<Real>(dw_parts);
  blocks.each([&](int64_t block, int64_t begin, int64_t end) {
    Real* __restrict__ a = rows<Real>(scratch)[thread_index()];
    Real* __restrict__ slope = a + D;
    if (dws) std::fill_n(dws[block], D, Real(0));
    for (int64_t r = begin; r < end; ++r)
      for (int64_t at = 0; at < D; at += W) {
        const Real* __restrict__ in = xs[r] + at;
        const Real* __restrict__ gate = zs[r] + at;
        const Real* __restrict__ g = flow[r] + at;
        const Real* __restrict__ wg = weight.data<Real>() + at;
        const Real root = rstd.data<Real>()[(r * D + at) / W];
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < W; ++i) {
          a[i] = Gate::value(gate[i]);
          slope[i] = Gate::slope(gate[i]);
          sum += g[i] * wg[i] * a[i] * in[i];  // dn n, whichever comes first
        }
        const Real back = root * root * root * sum / Real(W);
        if (dxs) {
          Real* __restrict__ out = dxs[r] + at;
          for (int64_t i = 0; i < W; ++i)
            out[i] =
                root * g[i] * wg[i] * a[i] - back * in[i] * (kGateFirst ? a[i] * a[i] : Real(1));
        }
        if (dzs) {
          Real* __restrict__ out = dzs[r] + at;
          for (int64_t i = 0; i < W; ++i)
            out[i] = in[i] * slope[i] *
                     (root * g[i] * wg[i] - (kGateFirst ? back * in[i] * a[i] : Real(0)));
        }
        if (dws) {
          Real* __restrict__ part = dws[block] + at;
          for (int64_t i = 0; i < W; ++i) part[i] += root * g[i] * in[i] * a[i];
        }
      }
  });
}

// Calls f<T, Gate, gate_first>().
template <class F>
void for_gates(Dtype dtype, const GatedNorm::Options& o, const F& f) {
  for_real(dtype, [&]<class Real>() {
    Gates::call(o.gate, [&]<class Gate>() {
      if (o.gate_first)
        f.template operator()<Real, Gate, true>();
      else
        f.template operator()<Real, Gate, false>();
    });
  });
}

}  // namespace

void RmsNorm::check(const Inputs<Tensor>& x, const Options& o) {
  check_rows(name, x.x, o.groups);
  check_vector(name, "weight", x.weight, x.x.size(1));
  check_residual(name, x.residual, x.x);
}

Outputs<RmsNorm> RmsNorm::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.x), x.residual ? empty_like(x.x) : Tensor()};
}

void RmsNorm::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved) {
  const Tensor in = normalised(x.x, x.residual, y.sum), weight = weight_or_one(x.weight, x.x);
  if (saved) *saved = {empty({in.size(0), o.groups}, in.dtype(), in.device()), y.sum};
  if (in.is_meta()) return;
  const int64_t W = std::max<int64_t>(1, in.size(1) / o.groups);
  for_real(in.dtype(), [&]<class Real>() {
    scale_rows<Real>(in, weight, W, static_cast<double>(W), o.eps, saved ? saved->rstd : Tensor(),
                     y.y);
  });
}

void RmsNorm::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor in = x.residual ? saved.sum : with_rows(x.x), d = with_rows(dy.y);
  const Tensor along = dy.sum ? with_rows(dy.sum) : dy.sum, weight = weight_or_one(x.weight, x.x);
  const RowBlocks blocks(in.size(0));
  const Tensor parts = partial_sums(dx.weight.defined(), blocks, in);
  if (in.is_meta()) return;
  const int64_t W = std::max<int64_t>(1, in.size(1) / o.groups);
  for_real(in.dtype(), [&]<class Real>() {
    scale_rows_backward<Real>(in, weight, W, static_cast<double>(W), saved.rstd, d, along,
                              place_of(dx.x, dx.residual), parts, blocks);
    if (parts) sum_blocks(parts.data<Real>(), blocks.count, in.size(1), dx.weight.data<Real>());
  });
  copy_to_second(dx.x, dx.residual);
}

void LayerNorm::check(const Inputs<Tensor>& x, const Options& o) {
  check_rows(name, x.x, o.groups);
  check_vector(name, "weight", x.weight, x.x.size(1));
  check_vector(name, "bias", x.bias, x.x.size(1));
  check_residual(name, x.residual, x.x);
}

Outputs<LayerNorm> LayerNorm::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.x), x.residual ? empty_like(x.x) : Tensor()};
}

void LayerNorm::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                            Saved* saved) {
  const Tensor in = normalised(x.x, x.residual, y.sum), weight = weight_or_one(x.weight, x.x);
  const Tensor bias = x.bias ? x.bias.contiguous() : zeros({in.size(1)}, in.dtype(), in.device());
  const Tensor mean = empty({in.size(0), o.groups}, in.dtype(), in.device());
  const Tensor rstd = empty_like(mean);
  if (saved) *saved = {mean, rstd, y.sum};
  if (in.is_meta()) return;
  const int64_t R = in.size(0), D = in.size(1), W = std::max<int64_t>(1, D / o.groups);
  for_real(in.dtype(), [&]<class Real>() {
    const auto xs = rows<const Real>(in);
    parallel_ranges(R, row_grain(D), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t at = 0; at < D; at += W) {
          const Real* __restrict__ from = xs[r] + at;
          const Real* __restrict__ w = weight.data<Real>() + at;
          const Real* __restrict__ b = bias.data<Real>() + at;
          Real* __restrict__ out = y.y.data<Real>() + r * D + at;
          Real sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < W; ++i) sum += from[i];
          const Real m = sum / Real(W);
#pragma omp simd reduction(+ : squares)
          for (int64_t i = 0; i < W; ++i) squares += (from[i] - m) * (from[i] - m);
          const Real root = Real(1) / std::sqrt(squares / Real(W) + Real(o.eps));
          for (int64_t i = 0; i < W; ++i) out[i] = (from[i] - m) * root * w[i] + b[i];
          mean.data<Real>()[(r * D + at) / W] = m;
          rstd.data<Real>()[(r * D + at) / W] = root;
        }
    });
  });
}

// With n = (x - m) r and dn = dy w: dx = r (dn - mean dn - n mean(dn n)) + dsum.
void LayerNorm::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                             const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor in = x.residual ? saved.sum : with_rows(x.x), d = with_rows(dy.y);
  const Tensor along = dy.sum ? with_rows(dy.sum) : dy.sum, weight = weight_or_one(x.weight, x.x);
  const RowBlocks blocks(in.size(0));
  const Tensor weight_parts = partial_sums(dx.weight.defined(), blocks, in);
  const Tensor bias_parts = partial_sums(dx.bias.defined(), blocks, in);
  if (in.is_meta()) return;
  const int64_t D = in.size(1), W = std::max<int64_t>(1, D / o.groups);
  for_real(in.dtype(), [&]<class Real>() {
    const auto xs = rows<const Real>(in), flow = rows<const Real>(d),
               alongs = rows<const Real>(along);
    const auto dxs = rows<Real>(place_of(dx.x, dx.residual)), dws = rows<Real>(weight_parts),
               dbs = rows<Real>(bias_parts);
    blocks.each([&](int64_t block, int64_t begin, int64_t end) {
      if (dws) std::fill_n(dws[block], D, Real(0));
      if (dbs) std::fill_n(dbs[block], D, Real(0));
      for (int64_t r = begin; r < end; ++r)
        for (int64_t at = 0; at < D; at += W) {
          const Real* __restrict__ from = xs[r] + at;
          const Real* __restrict__ g = flow[r] + at;
          const Real* __restrict__ w = weight.data<Real>() + at;
          const Real m = saved.mean.data<Real>()[(r * D + at) / W];
          const Real root = saved.rstd.data<Real>()[(r * D + at) / W];
          if (dxs) {
            Real* __restrict__ out = dxs[r] + at;
            const Real flat = dot(g, w, W) / Real(W);
            Real sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < W; ++i) sum += g[i] * w[i] * (from[i] - m);
            const Real back = root * root * sum / Real(W);
            for (int64_t i = 0; i < W; ++i)
              out[i] = root * (g[i] * w[i] - flat - (from[i] - m) * back);
            if (alongs) add_row(alongs[r] + at, W, out);
          }
          if (dws) {
            Real* __restrict__ part = dws[block] + at;
            for (int64_t i = 0; i < W; ++i) part[i] += g[i] * (from[i] - m) * root;
          }
          if (dbs) {
            Real* __restrict__ part = dbs[block] + at;
            for (int64_t i = 0; i < W; ++i) part[i] += g[i];
          }
        }
    });
    if (dws) sum_blocks(weight_parts.data<Real>(), blocks.count, D, dx.weight.data<Real>());
    if (dbs) sum_blocks(bias_parts.data<Real>(), blocks.count, D, dx.bias.data<Real>());
  });
  copy_to_second(dx.x, dx.residual);
}

void GatedNorm::check(const Inputs<Tensor>& x, const Options& o) {
  check_rows(name, x.x, o.groups);
  require(x.z.shape() == x.x.shape(), "gated_norm: z has shape ", x.z.shape(), ", expected ",
          x.x.shape(), " as x");
  check_vector(name, "weight", x.weight, x.x.size(1));
  Gates::check("gated_norm: gate", o.gate);
}

Outputs<GatedNorm> GatedNorm::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.x)};
}

void GatedNorm::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                            Saved* saved) {
  const Tensor in = with_rows(x.x), z = with_rows(x.z), weight = weight_or_one(x.weight, x.x);
  if (saved) saved->rstd = empty({in.size(0), o.groups}, in.dtype(), in.device());
  if (in.is_meta()) return;
  const int64_t W = std::max<int64_t>(1, in.size(1) / o.groups);
  for_gates(in.dtype(), o, [&]<class Real, class Gate, bool kGateFirst>() {
    gated_rows<Gate, kGateFirst, Real>(in, z, weight, W, o.eps, saved ? saved->rstd : Tensor(),
                                       y.y);
  });
}

void GatedNorm::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                             const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor in = with_rows(x.x), z = with_rows(x.z), d = with_rows(dy.y);
  const Tensor weight = weight_or_one(x.weight, x.x);
  const RowBlocks blocks(in.size(0));
  const Tensor parts = partial_sums(dx.weight.defined(), blocks, in);
  const Tensor scratch = empty({thread_count(), 2 * in.size(1)}, in.dtype(), in.device());
  if (in.is_meta()) return;
  const int64_t W = std::max<int64_t>(1, in.size(1) / o.groups);
  for_gates(in.dtype(), o, [&]<class Real, class Gate, bool kGateFirst>() {
    gated_rows_backward<Gate, kGateFirst, Real>(in, z, weight, W, saved.rstd, d, dx, parts, scratch,
                                                blocks);
    if (parts) sum_blocks(parts.data<Real>(), blocks.count, in.size(1), dx.weight.data<Real>());
  });
}

void L2Norm::check(const Inputs<Tensor>& x, const Options&) { check_rows(name, x.x, 1); }

Outputs<L2Norm> L2Norm::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.x)};
}

void L2Norm::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                         Saved* saved) {
  const Tensor in = with_rows(x.x), one = weight_or_one({}, x.x);
  if (saved) saved->rstd = empty({in.size(0), 1}, in.dtype(), in.device());
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    scale_rows<Real>(in, one, std::max<int64_t>(1, in.size(1)), 1, o.eps,
                     saved ? saved->rstd : Tensor(), y.y);
  });
}

void L2Norm::cpu_backward(const Inputs<Tensor>& x, const Options&, const Saved& saved,
                          const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor in = with_rows(x.x), d = with_rows(dy.y), one = weight_or_one({}, x.x);
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    scale_rows_backward<Real>(in, one, std::max<int64_t>(1, in.size(1)), 1, saved.rstd, d, {}, dx.x,
                              {}, RowBlocks(in.size(0)));
  });
}

}  // namespace weft::kernels
