#include "core/cuda.cuh"
#include "kernels/features/forget_gate.h"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kEach = 4;  // numbers of a thread, kThreads apart

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float log_kept(float x, float k, float bound) {
  if (bound == 0) return fminf(x, 0.0f) - log1pf(expf(-fabsf(x)));
  return k < 0.5f ? log1pf(-k) : logf(bound + (1 - bound) * sigmoid(x));
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    gates(const Real* x, int64_t n, float bound, Real* k, float* g) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kEach + threadIdx.x;
  for (int j = 0; j < kEach; ++j) {
    const int64_t i = first + j * kThreads;
    if (i >= n) return;
    const float u = to_float(x[i]), rest = (1 - bound) * sigmoid(-u);
    k[i] = from_float<Real>(rest);
    g[i] = log_kept(u, rest, bound);
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    gradients(const Real* x, int64_t n, float bound, const Real* dk, const float* dg, Real* dx) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kEach + threadIdx.x;
  for (int j = 0; j < kEach; ++j) {
    const int64_t i = first + j * kThreads;
    if (i >= n) return;
    const float u = to_float(x[i]), s = sigmoid(u), k = (1 - bound) * sigmoid(-u);
    const float slope = bound == 0 ? k : k * s / (bound + (1 - bound) * s);
    dx[i] = from_float<Real>((dg ? dg[i] * slope : 0.0f) - to_float(dk[i]) * k * s);
  }
}

}  // namespace

void ForgetGate::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                              Saved*) {
  const Tensor x = in.x.contiguous();
  if (x.is_meta()) return;
  for_cuda_dtype(x.dtype(), [&]<class Real>() {
    launch(gates<Real>, ceil_div(x.numel(), kThreads * kEach), kThreads, 0, dptr<const Real>(x),
           x.numel(), static_cast<float>(o.bound), dptr<Real>(y.k), dptr<float>(y.g));
  });
  check_launch("forget_gate forward");
}

void ForgetGate::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved&,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor x = in.x.contiguous(), dk = dy.k.contiguous();
  const Tensor dg = dy.g ? dy.g.contiguous() : dy.g;
  if (x.is_meta() || !dx.x) return;
  for_cuda_dtype(x.dtype(), [&]<class Real>() {
    launch(gradients<Real>, ceil_div(x.numel(), kThreads * kEach), kThreads, 0, dptr<const Real>(x),
           x.numel(), static_cast<float>(o.bound), dptr<const Real>(dk), dptr<const float>(dg),
           dptr<Real>(dx.x));
  });
  check_launch("forget_gate backward");
}

}  // namespace weft::kernels
