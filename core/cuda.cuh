// What .cu files need of the GPU: the stream, checks, pointers in device types, small uploads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <source_location>
#include <vector>

#include "core/tensor.h"

namespace weft {

// Throws Error with the place of the call, unless `status` is success.
void cuda_check(cudaError_t status, std::source_location place = std::source_location::current());

// After a launch: throws Error that names it, if it could not be launched.
void check_launch(const char* what);

// Lets a kernel have so many bytes of dynamic shared memory a block. Throws Error where the GPU has
// less: there is no kernel for that size on it.
void allow_shared_memory(const void* kernel, int64_t bytes);
template <class... P>
void allow_shared_memory(void (*kernel)(P...), int64_t bytes) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
}

// The stream that this thread's GPU work is ordered on.
cudaStream_t cuda_stream(Device device = kCuda);

// kernel<<<blocks, threads, bytes>>>(arguments...) on that stream, with as much dynamic shared
// memory as `bytes`. No blocks: nothing to do. check_launch() after the last of a sequence.
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, int bytes, A&&... arguments) {
  if (blocks == 0) return;
  require(blocks < (int64_t{1} << 31), "a kernel with ", blocks, " blocks: more than 2^31 - 1");
  if (bytes > 48 * 1024) allow_shared_memory(kernel, bytes);  // beyond that it has to be asked for
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<size_t>(bytes), cuda_stream()>>>(std::forward<A>(arguments)...);
}

int cuda_arch(Device device = kCuda);  // of the code that runs: 90 where sm_90a's does, else 80
int cuda_sms(Device device = kCuda);   // streaming multiprocessors

// The type in which device code sees an element.
template <class T>
struct DeviceType_ {
  using type = T;
};
template <>
struct DeviceType_<bf16> {
  using type = __nv_bfloat16;
};
template <class T>
using device_t = typename DeviceType_<T>::type;

// The first element of a tensor, whose dtype must be T's (float, __nv_bfloat16, int32_t, ...). Null
// where the tensor is absent.
template <class T>
T* dptr(const Tensor& t) {
  using Device = std::remove_const_t<T>;
  using Host = std::conditional_t<std::is_same_v<Device, __nv_bfloat16>, bf16, Device>;
  return reinterpret_cast<T*>(t.data<Host>());
}

// Calls f.template operator()<T>() with float or __nv_bfloat16.
template <class F>
decltype(auto) for_cuda_dtype(Dtype t, F&& f) {
  if (t == Dtype::bf16) return f.template operator()<__nv_bfloat16>();
  require(t == Dtype::f32, "dtype ", t, ": a GPU computes in f32 and bf16");
  return f.template operator()<float>();
}

// A few numbers of the host as a tensor [n] on the device, ordered on its stream. Not while a graph
// is recorded.
template <class T>
Tensor upload(const std::vector<T>& host, Device device) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0);
  const auto n = static_cast<int64_t>(host.size() * sizeof(T) / 4);
  const Tensor t = empty({n}, Dtype::i32, device);
  if (n > 0 && !t.is_meta())
    backend(device).copy(t.raw(), host.data(), host.size() * sizeof(T), current_stream(device));
  return t;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
__device__ __forceinline__ float to_float(T x) {
  return static_cast<float>(x);
}
template <>
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ __forceinline__ T from_float(float x) {
  return static_cast<T>(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace weft
