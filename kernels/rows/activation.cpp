// Loops over rows, or over all numbers at once where the tensors are contiguous.
#include "kernels/rows/activation.h"

#include "kernels/rows/activation_reference.h"
#include "kernels/rows/functions.h"
#include "kernels/rows/rows.h"

namespace weft::kernels {
namespace {

const Registered<Activation> activation;
const Registered<GatedActivation> gated_activation;

constexpr int64_t kGrain = cuts::kActivationGrain;

// Calls f(row, first column, end) over an [R, D] matrix. If all tensors are contiguous, so is the
// matrix one long row.
template <class F>
void over_rows(int64_t R, int64_t D, bool contiguous, const F& f) {
  if (contiguous)
    parallel_ranges(R * D, kGrain, [&](int64_t begin, int64_t end) { f(int64_t{0}, begin, end); });
  else
    parallel_ranges(R, row_grain(D), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) f(r, int64_t{0}, D);
    });
}

}  // namespace

void Activation::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 2, "activation: x has shape ", x.x.shape(), ", expected [R, D]");
  Activations::check("activation: kind", o.kind);
}

Outputs<Activation> Activation::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.x)};
}

void Activation::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                             Saved*) {
  const Tensor a = with_rows(x.x);
  if (a.is_meta()) return;
  for_real(a.dtype(), [&]<class Real>() {
    Activations::call(o.kind, [&]<class Function>() {
      const auto from = rows<const Real>(a);
      const auto to = rows<Real>(y.y);
      over_rows(a.size(0), a.size(1), a.is_contiguous(),
                [&](int64_t r, int64_t begin, int64_t end) {
                  const Real* __restrict__ in = from[r];
                  Real* __restrict__ out = to[r];
                  for (int64_t i = begin; i < end; ++i) out[i] = Function::value(in[i]);
                });
    });
  });
}

void Activation::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor a = with_rows(x.x), d = with_rows(dy.y);
  if (a.is_meta() || !dx.x) return;
  for_real(a.dtype(), [&]<class Real>() {
    Activations::call(o.kind, [&]<class Function>() {
      const auto from = rows<const Real>(a), flow = rows<const Real>(d);
      const auto to = rows<Real>(dx.x);
      over_rows(a.size(0), a.size(1), a.is_contiguous() && d.is_contiguous(),
                [&](int64_t r, int64_t begin, int64_t end) {
                  const Real* __restrict__ in = from[r];
                  const Real* __restrict__ g = flow[r];
                  Real* __restrict__ out = to[r];
                  for (int64_t i = begin; i < end; ++i) out[i] = g[i] * Function::slope(in[i]);
                });
    });
  });
}

void GatedActivation::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.a.dims() == 2, "gated_activation: a has shape ", x.a.shape(), ", expected [R, D]");
  require(x.b.shape() == x.a.shape(), "gated_activation: b has shape ", x.b.shape(), ", expected ",
          x.a.shape(), " as a");
  Activations::check("gated_activation: kind", o.kind);
}

Outputs<GatedActivation> GatedActivation::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.a)};
}

void GatedActivation::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                  Saved*) {
  const Tensor a = with_rows(x.a), b = with_rows(x.b);
  if (a.is_meta()) return;
  for_real(a.dtype(), [&]<class Real>() {
    Activations::call(o.kind, [&]<class Function>() {
      const auto as = rows<const Real>(a), bs = rows<const Real>(b);
      const auto to = rows<Real>(y.y);
      over_rows(a.size(0), a.size(1), a.is_contiguous() && b.is_contiguous(),
                [&](int64_t r, int64_t begin, int64_t end) {
                  const Real* __restrict__ ar = as[r];
                  const Real* __restrict__ br = bs[r];
                  Real* __restrict__ out = to[r];
                  for (int64_t i = begin; i < end; ++i) out[i] = Function::value(ar[i]) * br[i];
                });
    });
  });
}

void GatedActivation::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                   const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor a = with_rows(x.a), b = with_rows(x.b), d = with_rows(dy.y);
  if (a.is_meta()) return;
  for_real(a.dtype(), [&]<class Real>() {
    Activations::call(o.kind, [&]<class Function>() {
      const auto as = rows<const Real>(a), bs = rows<const Real>(b), flow = rows<const Real>(d);
      const auto da = rows<Real>(dx.a), db = rows<Real>(dx.b);
      over_rows(a.size(0), a.size(1), a.is_contiguous() && b.is_contiguous() && d.is_contiguous(),
                [&](int64_t r, int64_t begin, int64_t end) {
                  const Real* __restrict__ ar = as[r];
                  const Real* __restrict__ br = bs[r];
                  const Real* __restrict__ g = flow[r];
                  if (da && db) {  // in one pass, so that the exponential is shared
                    Real* __restrict__ out_a = da[r], * __restrict__ out_b = db[r];
                    for (int64_t i = begin; i < end; ++i) {
                      out_a[i] = g[i] * br[i] * Function::slope(ar[i]);
                      out_b[i] = g[i] * Function::value(ar[i]);
                    }
                  } else if (da) {
                    Real* __restrict__ out = da[r];
                    for (int64_t i = begin; i < end; ++i)
                      out[i] = g[i] * br[i] * Function::slope(ar[i]);
                  } else if (db) {
                    Real* __restrict__ out = db[r];
                    for (int64_t i = begin; i < end; ++i) out[i] = g[i] * Function::value(ar[i]);
                  }
                });
    });
  });
}

}  // namespace weft::kernels
