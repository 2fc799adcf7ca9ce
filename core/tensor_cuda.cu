// Copies, casts, fills and sums of GPU tensors with any strides. Rows of 16-byte words where both
// sides are contiguous and of one type; else one element a thread.
#include "core/cuda.cuh"
#include "core/tensor_cuda.h"

namespace weft {
namespace {

constexpr int kThreads = 256;

struct Layout {
  int64_t size[Shape::kMax], a[Shape::kMax], b[Shape::kMax];
  int dims;
};

// Neighbouring dimensions that both sides walk as one are joined, so that most copies have one or
// two.
Layout layout_of(const Tensor& to, const Tensor& from) {
  Layout l{};
  for (int i = 0; i < to.dims(); ++i) {
    if (to.size(i) == 1) continue;
    const int last = l.dims - 1;
    if (l.dims > 0 && l.a[last] == to.stride(i) * to.size(i) &&
        l.b[last] == from.stride(i) * to.size(i)) {
      l.size[last] *= to.size(i);
      l.a[last] = to.stride(i);
      l.b[last] = from.stride(i);
      continue;
    }
    l.size[l.dims] = to.size(i);
    l.a[l.dims] = to.stride(i);
    l.b[l.dims++] = from.stride(i);
  }
  if (l.dims == 0) l = {{1}, {1}, {1}, 1};
  return l;
}

template <class To, class From>
__device__ To cast(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<To, __nv_bfloat16>)
    return __float2bfloat16_rn(static_cast<float>(x));
  else if constexpr (std::is_same_v<From, __nv_bfloat16>)
    return static_cast<To>(__bfloat162float(x));
  else
    return static_cast<To>(x);
}

// kAdd: to += from, else to = from.
template <bool kAdd, class To, class From>
__global__ void walk(To* to, const From* from, Layout l, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n;
       i += gridDim.x * int64_t{kThreads}) {
    int64_t rest = i, at_a = 0, at_b = 0;
    for (int d = l.dims - 1; d > 0; --d) {
      const int64_t k = rest % l.size[d];
      rest /= l.size[d];
      at_a += k * l.a[d];
      at_b += k * l.b[d];
    }
    at_a += rest * l.a[0];
    at_b += rest * l.b[0];
    if constexpr (kAdd)
      to[at_a] = from_float<To>(to_float(to[at_a]) + to_float(from[at_b]));
    else
      to[at_a] = cast<To>(from[at_b]);
  }
}

// to += from over contiguous memory, four elements a thread.
template <class To, class From>
__global__ void add_rows(To* __restrict__ to, const From* __restrict__ from, int64_t n) {
  const int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * 4;
  if (i + 4 <= n) {
    alignas(16) To a[4];
    alignas(16) From b[4];
    *reinterpret_cast<std::conditional_t<sizeof(To) == 4, float4, float2>*>(a) =
        *reinterpret_cast<const std::conditional_t<sizeof(To) == 4, float4, float2>*>(to + i);
    *reinterpret_cast<std::conditional_t<sizeof(From) == 4, float4, float2>*>(b) =
        *reinterpret_cast<const std::conditional_t<sizeof(From) == 4, float4, float2>*>(from + i);
    for (int j = 0; j < 4; ++j) a[j] = from_float<To>(to_float(a[j]) + to_float(b[j]));
    *reinterpret_cast<std::conditional_t<sizeof(To) == 4, float4, float2>*>(to + i) =
        *reinterpret_cast<const std::conditional_t<sizeof(To) == 4, float4, float2>*>(a);
    return;
  }
  for (int64_t j = i; j < n; ++j) to[j] = from_float<To>(to_float(to[j]) + to_float(from[j]));
}

template <class T>
__global__ void fill(T* to, Layout l, int64_t n, double value) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n;
       i += gridDim.x * int64_t{kThreads}) {
    int64_t rest = i, at = 0;
    for (int d = l.dims - 1; d >= 0; --d) {
      at += rest % l.size[d] * l.a[d];
      rest /= l.size[d];
    }
    to[at] = cast<T>(value);
  }
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(std::min<int64_t>(ceil_div(n, kThreads), 1 << 20));
}

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0; }

}  // namespace

void cuda_copy(const Tensor& to, const Tensor& from) {
  const int64_t n = to.numel();
  if (n == 0) return;
  const cudaStream_t stream = cuda_stream(to.device());
  const Layout l = layout_of(to, from);
  for_dtype(to.dtype(), [&]<class To>() {
    for_dtype(from.dtype(), [&]<class From>() {
      walk<false><<<blocks_for(n), kThreads, 0, stream>>>(dptr<device_t<To>>(to),
                                                          dptr<const device_t<From>>(from), l, n);
    });
  });
  check_launch("copy");
}

void cuda_fill(const Tensor& to, double value) {
  const int64_t n = to.numel();
  if (n == 0) return;
  const Layout l = layout_of(to, to);
  for_dtype(to.dtype(), [&]<class T>() {
    fill<<<blocks_for(n), kThreads, 0, cuda_stream(to.device())>>>(dptr<device_t<T>>(to), l, n,
                                                                   value);
  });
  check_launch("fill");
}

void cuda_add(const Tensor& to, const Tensor& from) {
  const int64_t n = to.numel();
  if (n == 0) return;
  const cudaStream_t stream = cuda_stream(to.device());
  const auto add = [&]<class To, class From>() {
    if (to.is_contiguous() && from.is_contiguous() && aligned(to) && aligned(from))
      add_rows<<<static_cast<unsigned>(ceil_div(n, 4 * kThreads)), kThreads, 0, stream>>>(
          dptr<To>(to), dptr<const From>(from), n);
    else
      walk<true><<<blocks_for(n), kThreads, 0, stream>>>(dptr<To>(to), dptr<const From>(from),
                                                         layout_of(to, from), n);
  };
  for_cuda_dtype(from.dtype(), [&]<class From>() {
    if (to.dtype() == Dtype::bf16)
      add.template operator()<__nv_bfloat16, __nv_bfloat16>();
    else
      add.template operator()<float, From>();
  });
  check_launch("add");
}

}  // namespace weft
