// What the forward and the backward passes of the norms on the GPU share: how lanes share a row,
// and the gates. A row's group of W columns is a segment; kLanes neighbouring threads hold it in
// registers, kPacks packs each, or, where it is too long or lies unaligned, read it as often as
// they need it.
#pragma once

#include "kernels/rows/matrix.h"
#include "kernels/rows/norms.h"
#include "kernels/rows/rows.cuh"

namespace weft::kernels {

enum class Norm { scaled, centred, gated };

// A segment of up to kLanes kPacks packs of kWidth elements; kPacks = 0: any, kept nowhere.
template <int kWidth_, int kLanes_, int kPacks_>
struct RowLanes {
  static constexpr int kWidth = kWidth_, kLanes = kLanes_, kPacks = kPacks_;
  static constexpr int kThreads = kLanes <= 32 ? 256 : kLanes;
  static constexpr int kPerBlock = kThreads / kLanes;
  static constexpr int kBlocks = kThreads < 512 ? 768 / kThreads : 1;  // at least, a multiprocessor
  static constexpr int kSlots = kPacks > 0 ? kPacks : 1;

  // Calls f(slot, column) for the packs of this thread, of `count`.
  template <class F>
  static __device__ __forceinline__ void each(int count, const F& f) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    if constexpr (kPacks > 0) {
#pragma unroll
      for (int j = 0; j < kPacks; ++j)
        if (j * kLanes + lane < count) f(j, (j * kLanes + lane) * kWidth);
    } else {
      for (int i = lane; i < count; i += kLanes) f(0, i * kWidth);
    }
  }
};

// What a thread has of a segment.
template <class Real, class L>
struct Segment {
  const Real* from;
  Pack<Real, L::kWidth> kept[L::kSlots];

  __device__ __forceinline__ Segment(const Real* start, int count) : from(start) {
    if constexpr (L::kPacks > 0)
      L::each(count, [&](int j, int column) { kept[j] = load<L::kWidth>(from + column); });
  }
  __device__ __forceinline__ Pack<Real, L::kWidth> operator()(int j, int column) const {
    if constexpr (L::kPacks > 0) return kept[j];
    return load<L::kWidth>(from + column);
  }
  // Adds another segment, writes the sum to `to`, and is that from there on.
  __device__ __forceinline__ void add(const Segment& other, Real* to, int count) {
    L::each(count, [&](int j, int column) {
      Pack<Real, L::kWidth> sum = (*this)(j, column);
      const Pack<Real, L::kWidth> more = other(j, column);
#pragma unroll
      for (int k = 0; k < L::kWidth; ++k)
        sum.at[k] = from_float<Real>(to_float(sum.at[k]) + to_float(more.at[k]));
      store(to + column, sum);
      if constexpr (L::kPacks > 0) kept[j] = sum;
    });
    from = to;
  }
};

// The first element of segment s of a matrix cut into `groups` a row.
template <class Real>
__device__ __forceinline__ Real* segment_at(Real* data, int64_t stride, uint32_t s, uint32_t groups,
                                            int width) {
  if (groups == 1) return data + s * stride;
  return data + s / groups * stride + static_cast<int64_t>(s % groups) * width;
}

struct GateKind {
  bool silu = true, first = false;
};

__device__ __forceinline__ float gate_sigmoid(float z) {
  return __fdividef(1.0f, 1.0f + __expf(-z));
}
__device__ __forceinline__ float gate_value(const GateKind& gate, float z) {
  const float s = gate_sigmoid(z);
  return gate.silu ? z * s : s;
}

// How the columns of a segment are cut when all lies well; the memory of partial sums goes by it.
inline int lanes_of(Dtype dtype, int64_t W) {
  const int64_t packs = ceil_div(W * size_of(dtype), 16);
  if (packs <= 96) return packs <= 8 ? 8 : packs <= 16 ? 16 : 32;
  return packs <= 128 ? 64 : packs <= 256 ? 128 : packs <= 512 ? 256 : 512;
}

// Calls f<RowLanes<...>>(count of packs).
template <class Real, class F>
void for_lanes(bool vectors, int64_t W, const F& f) {
  constexpr int kWidth = kVector<Real>;
  const auto packs = static_cast<int>(W / kWidth);
  if (!vectors && W <= 1024) return f.template operator()<RowLanes<1, 32, 0>>(static_cast<int>(W));
  if (!vectors) return f.template operator()<RowLanes<1, 512, 0>>(static_cast<int>(W));
  if (packs <= 8) return f.template operator()<RowLanes<kWidth, 8, 1>>(packs);
  if (packs <= 16) return f.template operator()<RowLanes<kWidth, 16, 1>>(packs);
  if (packs <= 32) return f.template operator()<RowLanes<kWidth, 32, 1>>(packs);
  if (packs <= 64) return f.template operator()<RowLanes<kWidth, 32, 2>>(packs);
  if (packs <= 96) return f.template operator()<RowLanes<kWidth, 32, 3>>(packs);
  if (packs <= 128) return f.template operator()<RowLanes<kWidth, 64, 2>>(packs);
  if (packs <= 256) return f.template operator()<RowLanes<kWidth, 128, 2>>(packs);
  if (packs <= 512) return f.template operator()<RowLanes<kWidth, 256, 2>>(packs);
  if (packs <= 1024) return f.template operator()<RowLanes<kWidth, 512, 2>>(packs);
  return f.template operator()<RowLanes<kWidth, 512, 0>>(packs);
}

}  // namespace weft::kernels
