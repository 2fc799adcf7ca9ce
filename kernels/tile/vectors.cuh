// N consecutive elements of a row as floats: in one access of 16 bytes (or less) where the row is
// aligned, else one by one. For kernels that stream their operands.
#pragma once

#include "core/cuda.cuh"

namespace weft::kernels {

// Elements in 16 bytes: 4 floats or 8 bf16.
template <class Real>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(Real));

// Do rows of this tensor allow accesses of n elements? Yes where the elements of the last dimension
// are neighbours and every row begins on a multiple of n. An absent tensor allows all.
inline bool vector_rows(const Tensor& t, int64_t n) {
  if (!t) return true;
  const auto bytes = static_cast<size_t>(std::min<int64_t>(n * size_of(t.dtype()), 16));
  bool fits = t.stride(-1) == 1 && reinterpret_cast<size_t>(t.raw()) % bytes == 0;
  for (int i = 0; i + 1 < t.dims(); ++i) fits &= t.stride(i) % n == 0 || t.size(i) == 1;
  return fits;
}

namespace detail {

template <int kBytes>
struct Word {
  using type = uint4;  // several of them beyond 16 bytes
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = uint32_t;
};

}  // namespace detail

// N elements as they lie in memory; N is even for bf16. To have many loads under way, fetch first
// and unpack later: unpacking waits.
template <class Real, int N>
union Packed {
  static constexpr int kBytes = sizeof(Real) * N;
  using Word = typename detail::Word<(kBytes < 16 ? kBytes : 16)>::type;
  static constexpr int kWords = kBytes / sizeof(Word);
  Word words[kWords];
  uint32_t bits[kBytes / 4];
};

// `from` is aligned to N elements or 16 bytes.
template <int N, class Real>
__device__ __forceinline__ Packed<Real, N> fetch(const Real* from) {
  Packed<Real, N> p;
#pragma unroll
  for (int i = 0; i < p.kWords; ++i)
    p.words[i] = reinterpret_cast<const typename Packed<Real, N>::Word*>(from)[i];
  return p;
}

template <int N, class Real>
__device__ __forceinline__ void unpack(const Packed<Real, N>& p, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (sizeof(Real) == 4)
      to[i] = __uint_as_float(p.bits[i]);
    else
      to[i] = __uint_as_float(i % 2 ? p.bits[i / 2] & 0xffff0000u : p.bits[i / 2] << 16);
  }
}

template <class Real, int N>
__device__ __forceinline__ Packed<Real, N> packed(const float (&from)[N]) {
  Packed<Real, N> p;
  if constexpr (sizeof(Real) == 4) {
#pragma unroll
    for (int i = 0; i < N; ++i) p.bits[i] = __float_as_uint(from[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[i], from[i + 1]);
      p.bits[i / 2] = reinterpret_cast<const uint32_t&>(pair);
    }
  }
  return p;
}

template <int N, class Real>
__device__ __forceinline__ void load(const Real* from, float (&to)[N]) {
  unpack(fetch<N>(from), to);
}

template <int N, class Real>
__device__ __forceinline__ void store(Real* to, const float (&from)[N]) {
  const Packed<Real, N> p = packed<Real>(from);
#pragma unroll
  for (int i = 0; i < p.kWords; ++i)
    reinterpret_cast<typename Packed<Real, N>::Word*>(to)[i] = p.words[i];
}

// The same into shared memory, without waiting (cp.async); zeros if not `there`.
template <int N, class Real>
__device__ __forceinline__ void fetch_async(Packed<Real, N>* to, const Real* from, bool there) {
  constexpr int kBytes = Packed<Real, N>::kBytes;
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "n"(kBytes), "r"(there ? kBytes : 0)
               : "memory");
}

// The first n elements, `stride` apart, one by one; zeros for the rest.
template <int N, class Real>
__device__ __forceinline__ void load_some(const Real* from, int n, float (&to)[N],
                                          int64_t stride = 1) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = i < n ? to_float(from[i * stride]) : 0.0f;
}
template <int N, class Real>
__device__ __forceinline__ void store_some(Real* to, int n, const float (&from)[N],
                                           int64_t stride = 1) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (i < n) to[i * stride] = from_float<Real>(from[i]);
}

}  // namespace weft::kernels
