// Both operations are y = f(a) b, b being absent in one of them. A block takes kSpan vectors of 16
// bytes, four a thread, all loaded before any is used; a matrix whose tensors are contiguous is one
// long row. Rows that are not aligned go element by element through the same kernels.
#include "kernels/rows/activation.h"
#include "kernels/rows/functions.cuh"
#include "kernels/tile/vectors.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kEach = 4, kSpan = kThreads * kEach;

// Rows of a matrix [R, D], or null. const T or T.
template <class Real>
struct Matrix {
  Real* data = nullptr;
  int64_t stride = 0;
};

// R rows of D columns as `across` vectors each.
struct Extent {
  int64_t R, D;
  uint32_t across;
  bool aligned;
};

// Where the vectors of this thread lie. n is the number of their elements: 0 past the end.
struct Place {
  int64_t row, column;
  int n;
};
template <int N>
__device__ __forceinline__ Place place(const Extent& e, int i) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSpan, row = first / e.across;
  const auto from = static_cast<uint32_t>(first - row * e.across) + i * kThreads + threadIdx.x;
  Place p{row + from / e.across, static_cast<int64_t>(from % e.across) * N, 0};
  if (p.row < e.R) p.n = static_cast<int>(min(static_cast<int64_t>(N), e.D - p.column));
  return p;
}

template <bool kAligned, int N, class Real>
__device__ __forceinline__ Packed<Real, N> read(const Matrix<const Real>& m, const Place& p) {
  const Real* const from = m.data + p.row * m.stride + p.column;
  if (kAligned) return p.n ? fetch<N>(from) : Packed<Real, N>{};
  float some[N];
  load_some(from, p.n, some);
  return packed<Real>(some);
}
template <bool kAligned, int N, class Real>
__device__ __forceinline__ void write(const Matrix<Real>& m, const Place& p,
                                      const float (&from)[N]) {
  Real* const to = m.data + p.row * m.stride + p.column;
  if (!kAligned)
    store_some(to, p.n, from);
  else if (p.n)
    store(to, from);
}

template <class F, bool kAligned, class Real>
__device__ __forceinline__ void apply_to(const Extent& e, const Matrix<const Real>& a,
                                         const Matrix<const Real>& b, const Matrix<Real>& y) {
  constexpr int N = kVector<Real>;
  Place p[kEach];
  Packed<Real, N> from_a[kEach], from_b[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) p[i] = place<N>(e, i);
#pragma unroll
  for (int i = 0; i < kEach; ++i) from_a[i] = read<kAligned, N>(a, p[i]);
  if (b.data) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) from_b[i] = read<kAligned, N>(b, p[i]);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    float u[N], v[N];
    unpack(from_a[i], u);
    unpack(from_b[i], v);
#pragma unroll
    for (int j = 0; j < N; ++j) u[j] = b.data ? F::value(u[j]) * v[j] : F::value(u[j]);
    write<kAligned>(y, p[i], u);
  }
}

template <class F, class Real>
__global__ void __launch_bounds__(kThreads)
    apply(Extent e, Matrix<const Real> a, Matrix<const Real> b, Matrix<Real> y) {
  if (e.aligned)
    apply_to<F, true>(e, a, b, y);
  else
    apply_to<F, false>(e, a, b, y);
}

template <class F, bool kAligned, class Real>
__device__ __forceinline__ void apply_back_to(const Extent& e, const Matrix<const Real>& a,
                                              const Matrix<const Real>& b,
                                              const Matrix<const Real>& dy, const Matrix<Real>& da,
                                              const Matrix<Real>& db, int part) {
  constexpr int N = kVector<Real>, kPart = kEach / 2;
  Place p[kPart];
  Packed<Real, N> from_a[kPart], from_b[kPart], from_dy[kPart];
#pragma unroll
  for (int i = 0; i < kPart; ++i) p[i] = place<N>(e, part * kPart + i);
#pragma unroll
  for (int i = 0; i < kPart; ++i) {
    from_a[i] = read<kAligned, N>(a, p[i]);
    from_dy[i] = read<kAligned, N>(dy, p[i]);
  }
  if (b.data) {
#pragma unroll
    for (int i = 0; i < kPart; ++i) from_b[i] = read<kAligned, N>(b, p[i]);
  }
#pragma unroll
  for (int i = 0; i < kPart; ++i) {
    float u[N], v[N], g[N], out[N];
    unpack(from_a[i], u);
    unpack(from_b[i], v);
    unpack(from_dy[i], g);
    if (db.data) {
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = g[j] * F::value(u[j]);
      write<kAligned>(db, p[i], out);
    }
    if (da.data) {
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = (b.data ? g[j] * v[j] : g[j]) * F::slope(u[j]);
      write<kAligned>(da, p[i], out);
    }
  }
}

template <class F, class Real>
__global__ void __launch_bounds__(kThreads)
    apply_back(Extent e, Matrix<const Real> a, Matrix<const Real> b, Matrix<const Real> dy,
               Matrix<Real> da, Matrix<Real> db) {
#pragma unroll 1
  for (int part = 0; part < 2; ++part) {
    if (e.aligned)
      apply_back_to<F, true>(e, a, b, dy, da, db, part);
    else
      apply_back_to<F, false>(e, a, b, dy, da, db, part);
  }
}

// A matrix whose rows lie contiguous is used as it is; any other is copied.
Tensor with_rows(const Tensor& t) {
  return !t || t.stride(1) == 1 || t.size(1) == 1 ? t : t.contiguous();
}

template <class Real>
Extent extent_of(const Shape& shape, std::initializer_list<const Tensor*> all) {
  Extent e{shape[0], shape[1], 0, true};
  bool contiguous = true;
  for (const Tensor* t : all) contiguous &= !*t || t->is_contiguous();
  if (contiguous) e = {1, e.R * e.D, 0, true};
  constexpr int N = kVector<Real>;
  e.aligned = e.D % N == 0;
  for (const Tensor* t : all)
    e.aligned &=
        contiguous ? !*t || reinterpret_cast<size_t>(t->raw()) % 16 == 0 : vector_rows(*t, N);
  const int64_t across = ceil_div(e.D, N);
  require(across <= int64_t{1} << 31, "activation: ", e.D, " columns, expected at most 2^34");
  e.across = static_cast<uint32_t>(across);
  return e;
}

template <class Real>
Matrix<Real> matrix(const Tensor& t) {
  if (!t) return {};
  return {dptr<std::remove_const_t<Real>>(t), t.stride(0)};
}

unsigned blocks_of(const Extent& e) {
  return static_cast<unsigned>(ceil_div(e.R * e.across, kSpan));
}

void forward_of(const std::string& kind, const Tensor& in_a, const Tensor& in_b, const Tensor& y) {
  const Tensor a = with_rows(in_a), b = with_rows(in_b);
  if (a.is_meta() || a.numel() == 0) return;
  for_cuda_dtype(a.dtype(), [&]<class Real>() {
    device::Activations::call(kind, [&]<class F>() {
      const Extent e = extent_of<Real>(a.shape(), {&a, &b, &y});
      apply<F, Real><<<blocks_of(e), kThreads, 0, cuda_stream()>>>(
          e, matrix<const Real>(a), matrix<const Real>(b), matrix<Real>(y));
    });
  });
  check_launch("activation forward");
}

void backward_of(const std::string& kind, const Tensor& in_a, const Tensor& in_b,
                 const Tensor& in_dy, const Tensor& da, const Tensor& db) {
  const Tensor a = with_rows(in_a), b = with_rows(in_b), dy = with_rows(in_dy);
  if (a.is_meta() || a.numel() == 0 || (!da && !db)) return;
  for_cuda_dtype(a.dtype(), [&]<class Real>() {
    device::Activations::call(kind, [&]<class F>() {
      const Extent e = extent_of<Real>(a.shape(), {&a, &b, &dy, &da, &db});
      apply_back<F, Real><<<blocks_of(e), kThreads, 0, cuda_stream()>>>(
          e, matrix<const Real>(a), matrix<const Real>(b), matrix<const Real>(dy), matrix<Real>(da),
          matrix<Real>(db));
    });
  });
  check_launch("activation backward");
}

}  // namespace

void Activation::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                              Saved*) {
  forward_of(o.kind, x.x, {}, y.y);
}

void Activation::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  backward_of(o.kind, x.x, {}, dy.y, dx.x, {});
}

void GatedActivation::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                   Saved*) {
  forward_of(o.kind, x.a, x.b, y.y);
}

void GatedActivation::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                    const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  backward_of(o.kind, x.a, x.b, dy.y, dx.a, dx.b);
}

}  // namespace weft::kernels
