// What all kernels of the delta rule (delta and kda) share on a GPU: where pieces of documents lie,
// tiles of tokens, products for 64 rows. The other files of this folder:
//   inverse           of a chunk's triangular system
//   scan, hopper      the state from piece to piece, and its gradient
//   gradients         a piece's products with the states around it
//   decode            the step of one token
//   problem           the host's side of all
#pragma once

#include <algorithm>
#include <string_view>

#include "core/cuda.cuh"
#include "kernels/tile/hopper.cuh"
#include "kernels/tokens/documents.cuh"
#include "kernels/tokens/pieces.h"

namespace weft::kernels::delta_rule {

using namespace tile;

inline constexpr int kChunk = 64;    // tokens of a chunk of the grid on which states are kept
inline constexpr int kColumns = 64;  // of V, of a scan's block

// The inverse of a chunk's system as operands: in bf16 with what rounding left of it as a second
// matrix, [T, 64] beside [T, 64]. Everything that is written or erased goes through it.
template <class Real>
inline constexpr int kInverses = sizeof(Real) == 2 ? 2 : 1;
template <class Real>
inline constexpr int kInverseWidth = kInverses<Real>* kChunk;

// What one document has in one chunk.
struct Span {
  int64_t begin;  // its first token in the row
  int n, chunk, document;
  bool first, last;  // it holds its document's first, last token
};

// Where documents lie: B rows of T tokens, or one row cut at cu [count + 1].
struct Grid {
  int64_t T;
  int B, H, chunks, count;
  const int32_t* cu;

  __device__ int64_t begin(int document) const { return cu ? cu[document] : 0; }
  __device__ int64_t end(int document) const { return cu ? cu[document + 1] : T; }
  __device__ int row(int document) const { return cu ? 0 : document; }
  // The document of token t of a row.
  __device__ int of(int row, int64_t t) const {
    if (!cu) return row;
    return document_at(cu, count, t);
  }
  __device__ Span span(int document, int chunk) const {
    const int64_t from = begin(document), to = end(document), start = int64_t{chunk} * kChunk;
    const int64_t a = max(from, start), b = min(to, start + kChunk);
    return {a, static_cast<int>(b - a), chunk, document, a == from, b == to};
  }
  // For kernels with a block for each chunk of a head: f(span, row, head) for the pieces of this
  // one's.
  template <class F>
  __device__ void for_pieces(F&& f) const {
    const int h = static_cast<int>(blockIdx.x) % H,
              chunk = static_cast<int>(blockIdx.x) / H % chunks;
    const int row = static_cast<int>(blockIdx.x) / H / chunks;
    const int64_t start = int64_t{chunk} * kChunk, stop = min(T, start + kChunk);
    int document = of(row, start);
    for (int64_t t = start; t < stop; ++document) {
      const Span s = span(document, chunk);
      f(s, row, h);
      t = s.begin + s.n;
    }
  }
  // Tokens of a [B, H, T, ...] array; the state kept at a chunk's start, or the gradient at its
  // end.
  __device__ int64_t token(int row, int h, int64_t t) const {
    return (int64_t{row} * H + h) * T + t;
  }
  __device__ int64_t kept(int row, int chunk, int h) const {
    return (int64_t{row} * (chunks - 1) + chunk) * H + h;
  }
};

// One head's tokens in a [B, T, heads, width] tensor whose rows begin at multiples of 16 bytes.
template <class Real>
struct Heads {
  Real* data = nullptr;
  int64_t row = 0, token = 0, head = 0;  // strides, 0 of sizes of 1
  __device__ Real* at(int b, int64_t t, int h) const {
    return data + b * row + t * token + h * head;
  }
};
template <class Real>
Heads<Real> heads(const Tensor& t) {
  if (!t) return {};
  const auto stride = [&](int d) { return t.size(d) == 1 ? 0 : t.stride(d); };
  return {dptr<std::remove_const_t<Real>>(t), stride(0), stride(1), stride(2)};
}
// A width in memory whose rows begin at multiples of 16 bytes.
template <class Real>
int pitch(int64_t width) {
  constexpr int kUnit = 16 / static_cast<int>(sizeof(Real));
  return static_cast<int>(ceil_div(width, kUnit) * kUnit);
}
// The same [B, T, heads, width] tensor as Heads takes it: itself, or a copy with wider rows.
inline Tensor aligned(const Tensor& t) {
  if (!t) return t;
  const int64_t unit = 16 / size_of(t.dtype()), width = t.size(3);
  bool fits = t.stride(3) == 1 || width == 1;
  for (int d = 0; d < 3; ++d)
    fits = fits && (t.size(d) == 1 || (t.stride(d) > 0 && t.stride(d) % unit == 0));
  if (fits && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0) return t;
  const Tensor copy =
      empty({t.size(0), t.size(1), t.size(2), ceil_div(width, unit) * unit}, t.dtype(), t.device())
          .slice(3, 0, width);
  if (!t.is_meta()) copy.copy_from(t);
  return copy;
}

// What a token's gates come to within its piece.
struct Gate {
  float up = 0;    // decay from the piece's start to the token, itself in; 1 for vector gates
  float down = 0;  // from the token to the piece's end; 1 for vector gates
  float beta = 0;
  float none = 0;
};

// --- Tiles of the kernels ------------------------------------------------------------------------

// The first of a warp's 16 rows, of its warpgroup's 64.
__device__ __forceinline__ int stripe() { return 16 * (warp_index() % 4); }

// tile(r, c) = from[r * stride + c] for r < rows and c < cols, zeros elsewhere, by kThreads threads
// of which this is `rank`, without waiting. Rows begin at multiples of 16 bytes.
template <int kThreads, class Real, int R, int C>
__device__ __forceinline__ void load_rows(Smem<Real, R, C> tile, const Real* from, int64_t stride,
                                          int rows, int cols, int rank) {
  using Tile = Smem<Real, R, C>;
  constexpr int kUnits = C / Tile::unit_cols, kStep = kThreads / kUnits;  // rows at a time
  static_assert(kThreads % kUnits == 0 && R % kStep == 0);
  const int r = rank / kUnits, c = rank % kUnits * Tile::unit_cols;
  const int bytes = max(0, min(Tile::unit_cols, cols - c)) * static_cast<int>(sizeof(Real));
  from += r * stride + c;
  uint32_t to = tile.address(r, c);
#pragma unroll 4
  for (int i = 0; i < R; i += kStep) {
    if constexpr (kStep % 8 != 0) to = tile.address(r + i, c);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(r + i < rows ? bytes : 0)
                 : "memory");
    from += kStep * stride;
    if constexpr (kStep % 8 == 0) to += kStep * Tile::panel_bytes;
  }
}

// to[r * stride + c] = tile(r, c) for rows r < n of this warp's 16, and c < cols.
template <class Real, int R, int C>
__device__ __forceinline__ void store_rows(Smem<Real, R, C> tile, Real* to, int64_t stride, int n,
                                           int cols) {
  using Tile = Smem<Real, R, C>;
  constexpr int kUnits = C / Tile::unit_cols, kStep = 32 / kUnits;
  static_assert(32 % kUnits == 0);
  const int first = stripe(), end = min(first + 16, n);  // before a lane leaves: it is a shuffle
  const int c = lane_index() % kUnits * Tile::unit_cols;
  if (c >= cols) return;
  const bool whole = rows_are_aligned(to, stride) && c + Tile::unit_cols <= cols;
#pragma unroll 1
  for (int r = first + lane_index() / kUnits; r < end; r += kStep) {
    const Real* const from = tile.ptr(r, c);
    Real* const at = to + r * stride + c;
    if (whole) {
      *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int i = 0; i < min(Tile::unit_cols, cols - c); ++i) at[i] = from[i];
    }
  }
}

// Products for the 64 rows of a warpgroup, both operands in shared memory, done on return. On
// Hopper in bf16 they are the warpgroup's, and what threads wrote into the tiles must have been
// published.
template <class Real>
inline constexpr bool kWide = kHopper&& std::is_same_v<Real, bf16>;

// acc += A B with A[i, k] = a(i, k), B[k, n] = b(k, n).
template <int K, class Real, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void rows_ab(Acc<N>& acc, Smem<Real, Ra, Ca> a, Smem<Real, Rb, Cb> b) {
  if constexpr (kWide<Real>) {
    wgmma_begin(acc);
    wgmma_ab<K>(acc, a, 0, 0, b, 0, 0);
    wgmma_commit();
    wgmma_wait<0>(acc);
  } else {
    mma_ab<K>(acc, a, stripe(), 0, b, 0, 0);
  }
}
// acc += A B with A[i, k] = a(i, k), B[k, n] = b(n, k).
template <int K, class Real, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void rows_abt(Acc<N>& acc, Smem<Real, Ra, Ca> a, Smem<Real, Rb, Cb> b) {
  if constexpr (kWide<Real>) {
    wgmma_begin(acc);
    wgmma_abt<K>(acc, a, 0, 0, b, 0, 0);
    wgmma_commit();
    wgmma_wait<0>(acc);
  } else {
    mma_abt<K>(acc, a, stripe(), 0, b, 0, 0);
  }
}
// acc += A B with A[i, k] = a(k, i), B[k, n] = b(k, n).
template <int K, class Real, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void rows_atb(Acc<N>& acc, Smem<Real, Ra, Ca> a, Smem<Real, Rb, Cb> b) {
  if constexpr (kWide<Real>) {
    wgmma_begin(acc);
    wgmma_atb<K>(acc, a, 0, 0, b, 0, 0);
    wgmma_commit();
    wgmma_wait<0>(acc);
  } else {
    mma_atb<K>(acc, a, 0, stripe(), b, 0, 0);
  }
}

// dx[b, t, hk, :] = sum of part[b, t, h, :] over the heads h of a group, in their order.
template <class Real>
__global__ void sum_groups(const float* part, Real* dx, int64_t count, int group, int K) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int64_t key = at / K, d = at % K;
  float sum = 0;
  for (int i = 0; i < group; ++i) sum += part[(key * group + i) * K + d];
  dx[at] = from_float<Real>(sum);
}

// --- Host ----------------------------------------------------------------------------------------

// The rows of v as documents; `cu` keeps their borders on v's device.
inline Grid make_grid(const Tensor& cu_seqlens, const Tensor& v, Tensor& cu) {
  const int64_t B = v.size(0), T = v.size(1);
  if (cu_seqlens && !v.is_meta()) cu = cu_seqlens.to(v.device());
  return {T,
          static_cast<int>(B),
          static_cast<int>(v.size(2)),
          static_cast<int>(ceil_div(T, kChunk)),
          static_cast<int>(document_count(cu_seqlens, B)),
          cu ? dptr<int32_t>(cu) : nullptr};
}

inline void check_widths(std::string_view name, int64_t K, int64_t V) {
  require(K <= 256 && V <= 256, name, ": K = ", K, ", V = ", V,
          "; on a GPU heads are at most 256 wide");
}
// f.template operator()<KP>() with K rounded up to a width that kernels are made for.
template <class Real, class F>
void for_key_width(int64_t K, F&& f) {
  if constexpr (sizeof(Real) == 2) {
    if (K <= 64) return f.template operator()<64>();
  }
  if (K <= 128) return f.template operator()<128>();
  return f.template operator()<256>();
}

}  // namespace weft::kernels::delta_rule
