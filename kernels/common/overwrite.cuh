// What the rules that overwrite (delta and kda) share on a GPU: where pieces of documents lie, tiles of
// tokens, the inverse of a chunk's triangular system, the step of one token. Their scans are in
// overwrite_scan.cuh.
#pragma once

#include <algorithm>
#include <string_view>

#include "core/cuda.cuh"
#include "kernels/common/hopper.cuh"
#include "kernels/common/pieces.h"

namespace weft::kernels::overwrite {

using namespace tile;

inline constexpr int kChunk = 64;    // tokens of a chunk of the grid on which states are kept
inline constexpr int kColumns = 64;  // of V, of a scan's block

// The inverse of a chunk's system as operands: in bf16 with what rounding left of it as a second matrix,
// [T, 64] beside [T, 64]. Everything that is written or erased goes through it.
template <class T>
inline constexpr int kInverses = sizeof(T) == 2 ? 2 : 1;
template <class T>
inline constexpr int kInverseWidth = kInverses<T>* kChunk;

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
    int low = 0, high = count;  // cu[low] <= t < cu[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (cu[middle] <= t ? low : high) = middle;
    }
    return low;
  }
  __device__ Span span(int document, int chunk) const {
    const int64_t from = begin(document), to = end(document), start = int64_t{chunk} * kChunk;
    const int64_t a = max(from, start), b = min(to, start + kChunk);
    return {a, static_cast<int>(b - a), chunk, document, a == from, b == to};
  }
  // f(span) for the pieces of a row's chunk.
  template <class F>
  __device__ void for_spans(int row, int chunk, F&& f) const {
    const int64_t start = int64_t{chunk} * kChunk, stop = min(T, start + kChunk);
    int document = of(row, start);
    for (int64_t t = start; t < stop; ++document) {
      const Span s = span(document, chunk);
      f(s);
      t = s.begin + s.n;
    }
  }
  // Tokens of a [B, H, T, ...] array; the state kept at a chunk's start, or the gradient at its end.
  __device__ int64_t token(int row, int h, int64_t t) const {
    return (int64_t{row} * H + h) * T + t;
  }
  __device__ int64_t kept(int row, int chunk, int h) const {
    return (int64_t{row} * (chunks - 1) + chunk) * H + h;
  }
};

// One head's tokens in a [B, T, heads, width] tensor whose rows begin at multiples of 16 bytes.
template <class T>
struct Heads {
  T* data = nullptr;
  int64_t row = 0, token = 0, head = 0;  // strides, 0 of sizes of 1
  __device__ T* at(int b, int64_t t, int h) const { return data + b * row + t * token + h * head; }
};
template <class T>
Heads<T> heads(const Tensor& t) {
  if (!t) return {};
  const auto stride = [&](int d) { return t.size(d) == 1 ? 0 : t.stride(d); };
  return {dptr<std::remove_const_t<T>>(t), stride(0), stride(1), stride(2)};
}
// A width in memory whose rows begin at multiples of 16 bytes.
template <class T>
int pitch(int64_t width) {
  constexpr int kUnit = 16 / static_cast<int>(sizeof(T));
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

// tile(r, c) = from[r * stride + c] for r < rows and c < cols, zeros elsewhere, by kThreads threads of
// which this is `rank`, without waiting. Rows begin at multiples of 16 bytes.
template <int kThreads, class T, int R, int C>
__device__ __forceinline__ void load_rows(Smem<T, R, C> tile, const T* from, int64_t stride,
                                          int rows, int cols, int rank) {
  using Tile = Smem<T, R, C>;
  constexpr int kUnits = C / Tile::unit_cols, kStep = kThreads / kUnits;  // rows at a time
  static_assert(kThreads % kUnits == 0 && R % kStep == 0);
  const int r = rank / kUnits, c = rank % kUnits * Tile::unit_cols;
  const int bytes = max(0, min(Tile::unit_cols, cols - c)) * static_cast<int>(sizeof(T));
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
template <class T, int R, int C>
__device__ __forceinline__ void store_rows(Smem<T, R, C> tile, T* to, int64_t stride, int n,
                                           int cols) {
  using Tile = Smem<T, R, C>;
  constexpr int kUnits = C / Tile::unit_cols, kStep = 32 / kUnits;
  static_assert(32 % kUnits == 0);
  const int first = stripe(), end = min(first + 16, n);  // before a lane leaves: it is a shuffle
  const int c = lane_index() % kUnits * Tile::unit_cols;
  if (c >= cols) return;
  const bool whole = rows_are_aligned(to, stride) && c + Tile::unit_cols <= cols;
#pragma unroll 1
  for (int r = first + lane_index() / kUnits; r < end; r += kStep) {
    const T* const from = tile.ptr(r, c);
    T* const at = to + r * stride + c;
    if (whole) {
      *reinterpret_cast<uint4*>(at) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int i = 0; i < min(Tile::unit_cols, cols - c); ++i) at[i] = from[i];
    }
  }
}

// Products for the 64 rows of a warpgroup, both operands in shared memory, done on return. On Hopper in
// bf16 they are the warpgroup's, and what threads wrote into the tiles must have been published.
template <class T>
inline constexpr bool kWide = kHopper&& std::is_same_v<T, bf16>;

// acc += A B with A[i, k] = a(i, k), B[k, n] = b(k, n).
template <int K, class T, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void rows_ab(Acc<N>& acc, Smem<T, Ra, Ca> a, Smem<T, Rb, Cb> b) {
  if constexpr (kWide<T>) {
    wgmma_begin(acc);
    wgmma_ab<K>(acc, a, 0, 0, b, 0, 0);
    wgmma_commit();
    wgmma_wait<0>(acc);
  } else {
    mma_ab<K>(acc, a, stripe(), 0, b, 0, 0);
  }
}
// acc += A B with A[i, k] = a(i, k), B[k, n] = b(n, k).
template <int K, class T, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void rows_abt(Acc<N>& acc, Smem<T, Ra, Ca> a, Smem<T, Rb, Cb> b) {
  if constexpr (kWide<T>) {
    wgmma_begin(acc);
    wgmma_abt<K>(acc, a, 0, 0, b, 0, 0);
    wgmma_commit();
    wgmma_wait<0>(acc);
  } else {
    mma_abt<K>(acc, a, stripe(), 0, b, 0, 0);
  }
}
// acc += A B with A[i, k] = a(k, i), B[k, n] = b(k, n).
template <int K, class T, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void rows_atb(Acc<N>& acc, Smem<T, Ra, Ca> a, Smem<T, Rb, Cb> b) {
  if constexpr (kWide<T>) {
    wgmma_begin(acc);
    wgmma_atb<K>(acc, a, 0, 0, b, 0, 0);
    wgmma_commit();
    wgmma_wait<0>(acc);
  } else {
    mma_atb<K>(acc, a, 0, stripe(), b, 0, 0);
  }
}

// out = sign * A B, N x N each, rows kPitch apart, by 4 N threads: a row's quarter each.
inline constexpr int kPitch = kChunk + 4;
template <int N>
__device__ __forceinline__ void small_product(const float* A, const float* B, float* out,
                                              float sign, int rank) {
  const int r = rank / 4, c = rank % 4 * (N / 4);
  float sum[N / 4] = {};
#pragma unroll 2
  for (int k = 0; k < N; k += 4) {
    const float4 four = *reinterpret_cast<const float4*>(A + r * kPitch + k);
    const float left[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < N / 4; j += 4) {
        const float4 right = *reinterpret_cast<const float4*>(B + (k + i) * kPitch + c + j);
        sum[j] = fmaf(left[i], right.x, sum[j]);
        sum[j + 1] = fmaf(left[i], right.y, sum[j + 1]);
        sum[j + 2] = fmaf(left[i], right.z, sum[j + 2]);
        sum[j + 3] = fmaf(left[i], right.w, sum[j + 3]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < N / 4; j += 4) {
    *reinterpret_cast<float4*>(out + r * kPitch + c + j) =
        make_float4(sign * sum[j], sign * sum[j + 1], sign * sum[j + 2], sign * sum[j + 3]);
  }
}

// The inverse of 1 + L, L [64, 64] strictly lower triangular in shared memory, in its place. Zeros
// must lie above the diagonal in each block of 32; what lies to the right of those is scratch. 128
// threads. By substitution in fp32 for blocks of 16 on the diagonal, then X21 = -X22 (L21 X11) for
// blocks of 16 and of 32: powers of L lose all digits where keys are alike, substitution does not.
__device__ inline void invert(float* L) {
  constexpr int kSmall = 16, kDiagonal = kPitch + 1;
  const int warp = warp_index(), lane = lane_index(), rank = static_cast<int>(threadIdx.x);
  float* const block = L + warp * kSmall * kDiagonal;
  float x[kSmall];  // this lane's column; lanes 16 .. 31 do as lanes 0 .. 15
#pragma unroll
  for (int r = 0; r < kSmall; ++r) {
    float sum[4] = {r == lane % kSmall ? 1.f : 0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int s = 0; s < r; s += 4) {
      const float4 row = *reinterpret_cast<const float4*>(block + r * kPitch + s);
      const float l[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (s + i < r) sum[i] = fmaf(-l[i], x[s + i], sum[i]);
      }
    }
    x[r] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < kSmall; ++r) {
    if (lane < kSmall) block[r * kPitch + lane] = x[r];
  }
  __syncthreads();
  float* const scratch = L + 2 * kSmall;
  float* const pair = L + rank / 64 * 2 * kSmall * kDiagonal;
  float* const L21 = pair + kSmall * kPitch;
  small_product<kSmall>(L21, pair, scratch + rank / 64 * kSmall * kPitch, 1.f, rank % 64);
  __syncthreads();
  small_product<kSmall>(pair + kSmall * kDiagonal, scratch + rank / 64 * kSmall * kPitch, L21, -1.f,
                        rank % 64);
  __syncthreads();
  float* const lower = L + 2 * kSmall * kPitch;
  small_product<2 * kSmall>(lower, L, scratch, 1.f, rank);
  __syncthreads();
  small_product<2 * kSmall>(L + 2 * kSmall * kDiagonal, scratch, lower, -1.f, rank);
  __syncthreads();
}

// Rows r < n of the inverse to global [n, kInverseWidth], zeros above the diagonal. 128 threads.
template <class T>
__device__ inline void store_inverse(const float* X, T* global, int n) {
  constexpr int kUnit = 16 / static_cast<int>(sizeof(T)), kUnits = kChunk / kUnit;
#pragma unroll 2
  for (int at = static_cast<int>(threadIdx.x); at < n * kUnits; at += 128) {
    const int r = at / kUnits, c = at % kUnits * kUnit;
    T* const to = global + r * kInverseWidth<T> + c;
    float x[kUnit];
    alignas(16) T unit[kUnit];
#pragma unroll
    for (int i = 0; i < kUnit; ++i) x[i] = c + i <= r ? X[r * kPitch + c + i] : 0.f;
#pragma unroll
    for (int part = 0; part < kInverses<T>; ++part) {
#pragma unroll
      for (int i = 0; i < kUnit; i += 2) {
        store_pair(unit + i, x[i], x[i + 1]);
        x[i] -= to_float(unit[i]);
        x[i + 1] -= to_float(unit[i + 1]);
      }
      *reinterpret_cast<uint4*>(to + part * kChunk) = *reinterpret_cast<const uint4*>(unit);
    }
  }
}

template <class T>
struct Decode {
  int B, H, K, V, group;
  float scale;
  Heads<const T> q, k, v;
  Heads<const float> beta, g;  // g of a channel where kVector; may be null where not
  const float* initial_state;  // [B, H, K, V] or null
  float* final_state;          // or null
  T* o;                        // [B, 1, H, V]
};

// A step of one token: the state is read once, stays in registers, and is written once. A block has 32
// columns of V of one head, a lane each; its 8 warps share the rows.
inline constexpr int kDecodeWarps = 8, kDecodeRows = 256 / kDecodeWarps;
template <class T, bool kVector>
__global__ void __launch_bounds__(32 * kDecodeWarps) decode(const __grid_constant__ Decode<T> a) {
  __shared__ float parts[3][kDecodeWarps][32];
  const int slices = (a.V + 31) / 32, warp = warp_index(), lane = lane_index();
  const int c = static_cast<int>(blockIdx.x) % slices * 32 + lane;
  const int h = static_cast<int>(blockIdx.x) / slices % a.H;
  const int b = static_cast<int>(blockIdx.x) / slices / a.H;
  const int64_t state = (int64_t{b} * a.H + h) * a.K * a.V + c;
  const T *const q = a.q.at(b, 0, h / a.group), *const k = a.k.at(b, 0, h / a.group);
  const float* const g = a.g.data ? a.g.at(b, 0, h) : nullptr;

  float S[kDecodeRows], key = 0, query = 0, match = 0;
#pragma unroll
  for (int i = 0; i < kDecodeRows; ++i) {
    const int d = i * kDecodeWarps + warp;
    S[i] = 0;
    if (d >= a.K) continue;
    const float kd = to_float(k[d]), qd = to_float(q[d]);
    match += qd * kd;
    if (!a.initial_state || c >= a.V) continue;
    const float decay = g ? ex2(kLog2e * g[kVector ? d : 0]) : 1.f;
    S[i] = decay * a.initial_state[state + int64_t{d} * a.V];
    key += kd * S[i];
    query += qd * S[i];
  }
  parts[0][warp][lane] = key;
  parts[1][warp][lane] = query;
  parts[2][warp][lane] = match;
  __syncthreads();
  key = query = match = 0;
#pragma unroll
  for (int i = 0; i < kDecodeWarps; ++i) {
    key += parts[0][i][lane];
    query += parts[1][i][lane];
    match += parts[2][i][lane];
  }
  if (c >= a.V) return;
  const float u = *a.beta.at(b, 0, h) * (to_float(a.v.at(b, 0, h)[c]) - key);
  if (warp == 0) {
    a.o[(int64_t{b} * a.H + h) * a.V + c] = from_float<T>(a.scale * (query + match * u));
  }
  if (!a.final_state) return;
#pragma unroll
  for (int i = 0; i < kDecodeRows; ++i) {
    const int d = i * kDecodeWarps + warp;
    if (d < a.K) a.final_state[state + int64_t{d} * a.V] = S[i] + to_float(k[d]) * u;
  }
}

// dx[b, t, hk, :] = sum of part[b, t, h, :] over the heads h of a group, in their order.
template <class T>
__global__ void sum_groups(const float* part, T* dx, int64_t count, int group, int K) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int64_t key = at / K, d = at % K;
  float sum = 0;
  for (int i = 0; i < group; ++i) sum += part[(key * group + i) * K + d];
  dx[at] = from_float<T>(sum);
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
template <class T, class F>
void for_key_width(int64_t K, F&& f) {
  if constexpr (sizeof(T) == 2) {
    if (K <= 64) return f.template operator()<64>();
  }
  if (K <= 128) return f.template operator()<128>();
  return f.template operator()<256>();
}

}  // namespace weft::kernels::overwrite
