// The CUDA forms of pointwise.h: 16 bytes a thread where all operands are walked alike.
#include "core/cuda.cuh"
#include "kernels/rows/pointwise_loops.h"
#include "kernels/tile/gemm.h"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256;

template <class Real>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(Real);
  Real x[kSize];
};

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Multiply {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct Scale {
  float factor;
  __device__ float operator()(float a, float) const { return a * factor; }
};

// out[i] = f(a[i], b[i]); memory from the allocator is 16-byte aligned, a view's may not be.
template <class Real, class F>
__global__ void elementwise(const Real* a, const Real* b, Real* out, int64_t n, bool packed, F f) {
  constexpr int P = Pack<Real>::kSize;
  const int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * P;
  if (packed && i + P <= n) {
    const Pack<Real> u = *reinterpret_cast<const Pack<Real>*>(a + i);
    const Pack<Real> v = *reinterpret_cast<const Pack<Real>*>(b + i);
    Pack<Real> y;
#pragma unroll
    for (int j = 0; j < P; ++j) y.x[j] = from_float<Real>(f(to_float(u.x[j]), to_float(v.x[j])));
    *reinterpret_cast<Pack<Real>*>(out + i) = y;
    return;
  }
  for (int64_t j = i; j < min(n, i + P); ++j)
    out[j] = from_float<Real>(f(to_float(a[j]), to_float(b[j])));
}

template <class Real, class W, class F>
__global__ void along(const Real* x, const W* w, Real* out, int64_t n, int64_t size, int64_t after,
                      F f) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n;
       i += gridDim.x * int64_t{kThreads})
    out[i] = from_float<Real>(f(to_float(x[i]), to_float(w[i / after % size])));
}

// partial[slice, j]: the sum over a slice of the before * after elements at j.
template <class Real>
__global__ void reduce(const Real* a, const Real* b, int64_t before, int64_t size, int64_t after,
                       int64_t a_slice, float* partial) {
  __shared__ float part[kThreads];
  const int64_t j = blockIdx.x, count = before * after;
  const int64_t begin = blockIdx.y * a_slice, end = min(count, begin + a_slice);
  float sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int64_t at = (i / after * size + j) * after + i % after;
    sum += to_float(a[at]) * (b ? to_float(b[at]) : 1.0f);
  }
  part[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) partial[blockIdx.y * size + j] = part[0];
}

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0; }

template <class F>
void launch_elementwise(const Tensor& a, const Tensor& b, const Tensor& out, F f) {
  const int64_t n = out.numel();
  if (n == 0) return;
  for_cuda_dtype(out.dtype(), [&]<class Real>() {
    const int64_t threads = ceil_div(n, Pack<Real>::kSize);
    elementwise<<<static_cast<unsigned>(ceil_div(threads, kThreads)), kThreads, 0,
                  cuda_stream(out.device())>>>(dptr<const Real>(a), dptr<const Real>(b),
                                               dptr<Real>(out), n,
                                               aligned(a) && aligned(b) && aligned(out), f);
  });
  check_launch("pointwise");
}

template <class F>
void launch_along(const Tensor& x, const Tensor& w, const Around& s, const Tensor& out, F f) {
  const int64_t n = out.numel();
  if (n == 0) return;
  for_cuda_dtype(out.dtype(), [&]<class Real>() {
    for_cuda_dtype(w.dtype(), [&]<class W>() {
      along<<<static_cast<unsigned>(std::min<int64_t>(ceil_div(n, kThreads), 1 << 20)), kThreads, 0,
              cuda_stream(out.device())>>>(dptr<const Real>(x), dptr<const W>(w), dptr<Real>(out),
                                           n, s.size, s.after, f);
    });
  });
  check_launch("along");
}

}  // namespace

void cuda_pointwise(Pointwise what, const Tensor& a, const Tensor& b, const Tensor& out) {
  if (what == Pointwise::add)
    launch_elementwise(a, b, out, Add{});
  else
    launch_elementwise(a, b, out, Multiply{});
}

void cuda_scaled(const Tensor& x, double factor, const Tensor& out) {
  launch_elementwise(x, x, out, Scale{static_cast<float>(factor)});
}

void cuda_along(Pointwise what, const Tensor& x, const Tensor& w, const Around& s,
                const Tensor& out) {
  if (what == Pointwise::add)
    launch_along(x, w, s, out, Add{});
  else
    launch_along(x, w, s, out, Multiply{});
}

void cuda_reduced(const Tensor& a, const Tensor& b, const Around& s, const Tensor& out) {
  if (s.after == 1) {
    const Shape matrix{s.before, s.size};
    return cuda_column_sums(a.reshape(matrix), out, b ? b.reshape(matrix) : b);
  }
  const int64_t count = s.before * s.after;
  const int64_t slices = std::clamp<int64_t>(
      ceil_div(count, 4096), 1, std::max<int64_t>(1, 1024 / std::max<int64_t>(1, s.size)));
  const Tensor partial = empty({slices, s.size}, Dtype::f32, a.device());
  if (s.size > 0 && !a.is_meta()) {
    for_cuda_dtype(a.dtype(), [&]<class Real>() {
      reduce<<<dim3(static_cast<unsigned>(s.size), static_cast<unsigned>(slices)), kThreads, 0,
               cuda_stream(a.device())>>>(
          dptr<const Real>(a), dptr<const Real>(b), s.before, s.size, s.after,
          std::max<int64_t>(1, ceil_div(count, slices)), dptr<float>(partial));
    });
    check_launch("reduce");
  }
  cuda_column_sums(partial, out);
}

}  // namespace weft::kernels
