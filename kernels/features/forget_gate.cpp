#include "kernels/features/forget_gate.h"

#include <cmath>

#include "kernels/features/forget_gate_reference.h"
#include "kernels/rows/rows.h"

namespace weft::kernels {
namespace {

const Registered<ForgetGate> registered;

template <class Real>
Real log_kept(Real x, Real k, Real bound) {
  if (bound == 0) return -vsoftplus(-x);
  return k < Real(0.5) ? std::log1p(-k) : std::log(bound + (1 - bound) * vsigmoid(x));
}

}  // namespace

void ForgetGate::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 2, name, ": x has shape ", x.x.shape(), ", expected [R, D]");
  require(o.bound >= 0 && o.bound < 1, name, ": bound = ", o.bound, ", expected 0 to below 1");
}

Outputs<ForgetGate> ForgetGate::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.x), empty_like(x.x)};
}

void ForgetGate::cpu_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                             Saved*) {
  const Tensor x = in.x.contiguous();
  if (x.is_meta()) return;
  for_real(x.dtype(), [&]<class Real>() {
    const Real* const from = x.data<Real>();
    Real *const k = y.k.data<Real>(), *const g = y.g.data<Real>();
    const Real bound = static_cast<Real>(o.bound);
    parallel_ranges(x.numel(), cuts::kActivationGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        k[i] = (1 - bound) * vsigmoid(-from[i]);
        g[i] = log_kept(from[i], k[i], bound);
      }
    });
  });
}

void ForgetGate::cpu_backward(const Inputs<Tensor>& in, const Options& o, const Saved&,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor x = in.x.contiguous(), dk = dy.k.contiguous();
  const Tensor dg = dy.g ? dy.g.contiguous() : dy.g;
  if (x.is_meta() || !dx.x) return;
  for_real(x.dtype(), [&]<class Real>() {
    const Real *const from = x.data<Real>(), *const by_k = dk.data<Real>(),
                      *const by_g = dg.data<Real>();
    Real* const to = dx.x.data<Real>();
    const Real bound = static_cast<Real>(o.bound);
    parallel_ranges(x.numel(), cuts::kActivationGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Real s = vsigmoid(from[i]), k = (1 - bound) * vsigmoid(-from[i]);
        const Real slope = bound == 0 ? k : k * s / (bound + (1 - bound) * s);
        to[i] = (by_g ? by_g[i] * slope : Real(0)) - by_k[i] * k * s;
      }
    });
  });
}

}  // namespace weft::kernels
