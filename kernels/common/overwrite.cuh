// The scans of the rules that overwrite (delta and kda): a state S [K, V] a head, carried from piece to
// piece of at most 64 tokens. With Q, K decayed from the piece's start, K_end decayed to its end, and
// the triangular matrices P (scores) and X (the inverse of the unit system) made before:
//   U = X beta (V - K S)       what is written
//   O = Q S + P U
//   S <- total S + K_end' U
// and backward, with dS the gradient of the state after the piece:
//   dU = P' dO + K_end dS      R = X' dU      dV = beta R
//   dS <- total dS + Q' dO - K' (beta R)
// A block holds 64 columns of V of one head of one document, transposed: a warp has 16 rows of S' in
// its registers for the whole document, and each product takes them, or what it made of them, as its
// left operand. So warps share the tiles that come in, and nothing that they compute.
//
// With a gate a head (kVector = false) q and k come as they are, and decays are factors of tokens.
// With a gate a key channel (kVector = true) q, k, k_end come decayed, q times the scale.
#pragma once

#include <algorithm>
#include <string_view>

#include "core/cuda.cuh"
#include "kernels/common/pieces.h"
#include "kernels/common/tile.cuh"

namespace weft::kernels::overwrite {

using namespace tile;

inline constexpr int kChunk = 64;    // tokens of a chunk of the grid on which states are kept
inline constexpr int kColumns = 64;  // of V, of a scan's block

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

// One head's tokens in a [B, T, heads, width] tensor whose last dimension is contiguous.
template <class T>
struct Heads {
  T* data = nullptr;
  int64_t row = 0, token = 0, head = 0;  // strides
  __device__ T* at(int b, int64_t t, int h) const { return data + b * row + t * token + h * head; }
};
template <class T>
Heads<T> heads(const Tensor& t) {
  if (!t) return {};
  return {dptr<std::remove_const_t<T>>(t), t.stride(0), t.stride(1), t.stride(2)};
}
// A tensor as Heads takes it.
inline Tensor with_rows(const Tensor& t) {
  if (!t || t.dims() < 4) return t;
  return t.stride(3) == 1 || t.size(3) == 1 ? t : t.contiguous();
}

// What a token's gates come to within its piece.
struct Gate {
  float up = 0;    // decay from the piece's start to the token, itself in; 1 for vector gates
  float down = 0;  // from the token to the piece's end; 1 for vector gates
  float beta = 0;
  float none = 0;
};

template <class T>
struct Scan {
  Grid grid;
  int K, V, group;  // heads that share a key head in q, k
  float scale;      // on q, where it does not hold it
  Heads<const T> q, k, k_end;
  const T *inverse, *scores;  // [B, H, T, 64]: rows of tokens, columns from the piece's start
  const Gate* gates;          // [B, H, T]
  const float* total;         // [B, H, chunks, K] of the piece that ends with the chunk; kVector
  Heads<const float> g;       // log gates a channel, for pieces that end within a chunk; kVector
  // Forward
  Heads<const T> v;
  T *o, *written;              // [B, T, H, V]; `written` and `states` may be null
  T* states;                   // [B, chunks - 1, H, V, K], the first one before chunk 1
  const float* initial_state;  // [N, H, K, V] or null
  float* final_state;
  // Backward
  Heads<const T> dout;
  T *erased, *dv;             // R and beta R, [B, T, H, V]; dv may be null
  T* dstates;                 // [B, chunks - 1, H, V, K], the first one after chunk 0
  const float* dfinal_state;  // [N, H, K, V] or null
  float* dinitial_state;
};

// --- Pieces of the two kernels -------------------------------------------------------------------

template <class T, int KP, bool kVector>
struct ScanTiles {
  // One tile serves k and then k_end where shared memory is short.
  static constexpr bool kReload = kVector && sizeof(T) == 4 && KP == 256;
  static constexpr int kKeyTiles = kVector && !kReload ? 3 : 2;
  static constexpr int kBytes =
      (kKeyTiles * kChunk * KP + 3 * kChunk * kChunk) * static_cast<int>(sizeof(T)) +
      kChunk * static_cast<int>(sizeof(Gate)) + 1024;
  static constexpr int kStages = kReload ? 1 : std::min(3, 226 * 1024 / kBytes);
  static_assert(kStages >= 1);

  Smem<T, kChunk, KP> q, k, k_end;
  Smem<T, kChunk, kChunk> v, inverse, scores;
  Gate* gates;   // [64]
  float* total;  // [KP]

  __device__ explicit ScanTiles(int stage) {
    Arena arena(dynamic_memory() + stage * kBytes);
    q = arena.carve<Smem<T, kChunk, KP>>();
    k = arena.carve<Smem<T, kChunk, KP>>();
    k_end = kKeyTiles == 3 ? arena.carve<Smem<T, kChunk, KP>>() : k;
    v = arena.carve<Smem<T, kChunk, kChunk>>();
    inverse = arena.carve<Smem<T, kChunk, kChunk>>();
    scores = arena.carve<Smem<T, kChunk, kChunk>>();
    gates = arena.carve<Gate>(kChunk);
    total = arena.carve<float>(KP);
  }
};

// kBytes of shared memory from global memory, or zeros.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
               "n"(kBytes), "r"(valid ? kBytes : 0)
               : "memory");
}

// What both directions read of a piece; `value` is v or dout.
template <class T, int KP, bool kVector>
__device__ void load_piece(const Scan<T>& a, const ScanTiles<T, KP, kVector>& x, const Span& s,
                           const Heads<const T>& value, int h, int v0) {
  const int b = a.grid.row(s.document), hk = h / a.group;
  load_tile_async(x.k, a.k.at(b, s.begin, hk), a.k.token, s.n, a.K);
  load_tile_async(x.q, a.q.at(b, s.begin, hk), a.q.token, s.n, a.K);
  if constexpr (ScanTiles<T, KP, kVector>::kKeyTiles == 3) {
    load_tile_async(x.k_end, a.k_end.at(b, s.begin, hk), a.k_end.token, s.n, a.K);
  }
  load_tile_async(x.v, value.at(b, s.begin, h) + v0, value.token, s.n, min(kColumns, a.V - v0));
  const int64_t token = a.grid.token(b, h, s.begin);
  load_tile_async(x.inverse, a.inverse + token * kChunk, kChunk, s.n, kChunk);
  load_tile_async(x.scores, a.scores + token * kChunk, kChunk, s.n, kChunk);
  const int at = static_cast<int>(threadIdx.x);
  if (at < kChunk) {
    const bool valid = at < s.n;
    copy_async<16>(x.gates + at, a.gates + token + (valid ? at : 0), valid);
  }
  if constexpr (kVector) {
    const int64_t end = s.begin + s.n;
    const bool stored = end % kChunk == 0 || end == a.grid.T;
    for (int d = at; d < KP; d += static_cast<int>(blockDim.x)) {
      const bool valid = d < a.K;
      if (stored) {
        const int64_t place = (int64_t{b} * a.grid.H + h) * a.grid.chunks + s.chunk;
        copy_async<4>(x.total + d, a.total + place * a.K + (valid ? d : 0), valid);
      } else {
        double sum = 0;
        for (int i = 0; i < s.n && valid; ++i) sum += a.g.at(b, s.begin + i, h)[d];
        x.total[d] = valid ? ex2(static_cast<float>(sum * 1.4426950408889634)) : 0.f;
      }
    }
  }
}

// A left operand's numbers as floats, in the layout of Acc.
template <int N>
__device__ __forceinline__ Acc<N> from_frag(const Frag<float, N>& frag) {
  Acc<N> acc;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.x[j][i] = frag.x[j][i];
  }
  return acc;
}
template <int N>
__device__ __forceinline__ Acc<N> from_frag(const Frag<bf16, N>& frag) {
  Acc<N> acc;
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      acc.x[2 * k + i / 2][2 * (i % 2)] = low_of(frag.x[k][i]);
      acc.x[2 * k + i / 2][2 * (i % 2) + 1] = high_of(frag.x[k][i]);
    }
  }
  return acc;
}

// f(left, k0) for the state's columns k0 .. as left operands, without a second copy of the state.
template <class T, int KP, class F>
__device__ __forceinline__ void for_operands(Acc<KP>& state, F&& f) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll 1
    for (int k0 = 0; k0 < KP; k0 += 8) {  // the state goes round once, its first block next
      Frag<float, 8> left;
      float first[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) left.x[0][i] = first[i] = state.x[0][i];
      f(left, k0);
#pragma unroll
      for (int j = 0; j + 1 < KP / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) state.x[j][i] = state.x[j + 1][i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) state.x[KP / 8 - 1][i] = first[i];
    }
  } else {
#pragma unroll
    for (int k = 0; k < KP / 16; ++k) {
      Frag<T, 16> left;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &state.x[2 * k + i / 2][2 * (i % 2)];
        left.x[0][i] = pack_bf16(pair[0], pair[1]);
      }
      f(left, 16 * k);
    }
  }
}

// A warp's 16 columns of a tile to global rows.
template <class T>
__device__ __forceinline__ void store_columns(const Acc<kChunk>& acc, Smem<T, kChunk, kChunk> tile,
                                              int column, T* global, int64_t stride, int n,
                                              int columns) {
  acc_to_smem_t(acc, tile, 0, column);
  __syncwarp();
  constexpr int kUnit = 16 / static_cast<int>(sizeof(T)), kUnits = 16 / kUnit;
  const bool vectors = rows_are_aligned(global, stride);
  for (int at = lane_index(); at < n * kUnits; at += 32) {
    const int r = at / kUnits, c = column + at % kUnits * kUnit;
    const T* from = tile.ptr(r, c);
    T* to = global + r * stride + c;
    if (vectors && c + kUnit <= columns) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int i = 0; i < kUnit && c + i < columns; ++i) to[i] = from[i];
    }
  }
  __syncwarp();
}

// S' from [K, V] fp32, zeros outside and where there is none; and back.
template <int KP>
__device__ __forceinline__ void load_state(Acc<KP>& state, const float* from, int K, int V, int v) {
  each(state, [&](int row, int col, float& x) {
    x = from && col < K && v + row < V ? from[int64_t{col} * V + v + row] : 0.f;
  });
}
template <int KP>
__device__ __forceinline__ void store_state(Acc<KP>& state, float* to, int K, int V, int v) {
  each(state, [&](int row, int col, float& x) {
    if (col < K && v + row < V) to[int64_t{col} * V + v + row] = x;
  });
}

template <int KP>
__device__ __forceinline__ void decay_state(Acc<KP>& state, const float* total, float by) {
  if (total) {
    each(state, [&](int, int col, float& x) { x *= total[col]; });
  } else {
    scale(state, by);
  }
}

// The pieces of one document in order, each in shared memory when f(tiles, span) is called; later ones
// are under way meanwhile.
template <class T, int KP, bool kVector, class F>
__device__ __forceinline__ void walk(const Scan<T>& a, const Heads<const T>& value, int document,
                                     int h, int v0, bool backwards, F&& f) {
  using Tiles = ScanTiles<T, KP, kVector>;
  constexpr int kStages = Tiles::kStages;
  const int first = static_cast<int>(a.grid.begin(document) / kChunk);
  const int pieces = static_cast<int>((a.grid.end(document) - 1) / kChunk) - first + 1;
  const auto span = [&](int i) {
    return a.grid.span(document, first + (backwards ? pieces - 1 - i : i));
  };
  const auto issue = [&](int i) {
    if (i < pieces) load_piece(a, Tiles(i % kStages), span(i), value, h, v0);
    async_commit();
  };
  for (int i = 0; i + 1 < kStages; ++i) issue(i);
  for (int i = 0; i < pieces; ++i) {
    if constexpr (kStages == 1) {
      __syncthreads();
      issue(i);
      async_wait<0>();
      __syncthreads();
    } else {
      async_wait<kStages - 2>();
      __syncthreads();
      issue(i + kStages - 1);
    }
    f(Tiles(i % kStages), span(i));
  }
}

// Brings k_end into the place of k where they share one.
template <class T, int KP>
__device__ __forceinline__ void swap_keys(const Heads<const T>& k, const Smem<T, kChunk, KP>& tile,
                                          const Span& s, int b, int h, int K) {
  __syncthreads();
  load_tile(tile, k.at(b, s.begin, h), k.token, s.n, K);
  __syncthreads();
}

template <class T, int KP, bool kVector>
__global__ void __launch_bounds__(128) scan_forward(const __grid_constant__ Scan<T> a) {
  using Tiles = ScanTiles<T, KP, kVector>;
  const int slices = (a.V + kColumns - 1) / kColumns;
  const int v0 = static_cast<int>(blockIdx.x) % slices * kColumns;
  const int h = static_cast<int>(blockIdx.x) / slices % a.grid.H;
  const int document = static_cast<int>(blockIdx.x) / slices / a.grid.H;
  const int b = a.grid.row(document), column = 16 * warp_index(), v = v0 + column;
  const int64_t state_size = int64_t{a.K} * a.V,
                state = (int64_t{document} * a.grid.H + h) * state_size;

  Acc<KP> S;
  load_state(S, a.initial_state ? a.initial_state + state : nullptr, a.K, a.V, v);
  walk<T, KP, kVector>(a, a.v, document, h, v0, false, [&](const Tiles& x, const Span& s) {
    if (a.states && !s.first) {
      store_acc(S, a.states + a.grid.kept(b, s.chunk - 1, h) * state_size + int64_t{v} * a.K, a.K,
                a.V - v, a.K);
    }
    Acc<kChunk> read, O;
    fill(read, 0.f);
    fill(O, 0.f);
    for_operands<T>(S, [&](const auto& left, int k0) {
      mma_abt(read, left, x.k, 0, k0);
      mma_abt(O, left, x.q, 0, k0);
    });
    Acc<kChunk> missed = from_frag(load_frag_t<T, kChunk>(x.v, 0, column));
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Gate& gate = x.gates[acc_col(j, i)];
        const float up = kVector ? 1.f : gate.up;
        missed.x[j][i] = gate.beta * (missed.x[j][i] - up * read.x[j][i]);
        if (!kVector) O.x[j][i] *= up * a.scale;
      }
    }
    Acc<kChunk> U;
    fill(U, 0.f);
    mma_abt(U, to_frag<T>(missed), x.inverse, 0, 0);
    const int64_t place = ((b * a.grid.T + s.begin) * a.grid.H + h) * a.V + v0;
    const int64_t stride = int64_t{a.grid.H} * a.V;
    __syncwarp();  // this warp's columns of v have been read; they take what goes out
    if (a.written) store_columns(U, x.v, column, a.written + place, stride, s.n, a.V - v0);
    mma_abt(O, to_frag<T>(U), x.scores, 0, 0);
    store_columns(O, x.v, column, a.o + place, stride, s.n, a.V - v0);
    if (s.last && !a.final_state) return;
    if constexpr (Tiles::kReload) swap_keys(a.k_end, x.k, s, b, h, a.K);
    if constexpr (!kVector) {
      each(U, [&](int, int col, float& u) { u *= x.gates[col].down; });
    }
    decay_state(S, kVector ? x.total : nullptr, x.gates[s.n - 1].up);
    mma_ab(S, to_frag<T>(U), x.k_end, 0, 0);
  });
  if (a.final_state) store_state(S, a.final_state + state, a.K, a.V, v);
}

template <class T, int KP, bool kVector>
__global__ void __launch_bounds__(128) scan_backward(const __grid_constant__ Scan<T> a) {
  using Tiles = ScanTiles<T, KP, kVector>;
  const int slices = (a.V + kColumns - 1) / kColumns;
  const int v0 = static_cast<int>(blockIdx.x) % slices * kColumns;
  const int h = static_cast<int>(blockIdx.x) / slices % a.grid.H;
  const int document = static_cast<int>(blockIdx.x) / slices / a.grid.H;
  const int b = a.grid.row(document), column = 16 * warp_index(), v = v0 + column;
  const int64_t state_size = int64_t{a.K} * a.V,
                state = (int64_t{document} * a.grid.H + h) * state_size;

  Acc<KP> dS;
  load_state(dS, a.dfinal_state ? a.dfinal_state + state : nullptr, a.K, a.V, v);
  walk<T, KP, kVector>(a, a.dout, document, h, v0, true, [&](const Tiles& x, const Span& s) {
    if (!s.last) {
      store_acc(dS, a.dstates + a.grid.kept(b, s.chunk, h) * state_size + int64_t{v} * a.K, a.K,
                a.V - v, a.K);
    }
    if constexpr (Tiles::kReload) swap_keys(a.k_end, x.k, s, b, h, a.K);
    Acc<kChunk> dU;
    fill(dU, 0.f);
    for_operands<T>(dS, [&](const auto& left, int k0) { mma_abt(dU, left, x.k_end, 0, k0); });
    if constexpr (!kVector) {
      each(dU, [&](int, int col, float& u) { u *= x.gates[col].down; });
    }
    auto dO = load_frag_t<T, kChunk>(x.v, 0, column);
    mma_ab(dU, dO, x.scores, 0, 0);
    Acc<kChunk> R;
    fill(R, 0.f);
    mma_ab(R, to_frag<T>(dU), x.inverse, 0, 0);
    const int64_t place = ((b * a.grid.T + s.begin) * a.grid.H + h) * a.V + v0;
    const int64_t stride = int64_t{a.grid.H} * a.V;
    __syncwarp();  // this warp's columns of dout have been read; they take what goes out
    store_columns(R, x.v, column, a.erased + place, stride, s.n, a.V - v0);
    each(R, [&](int, int col, float& r) { r *= x.gates[col].beta; });
    if (a.dv) store_columns(R, x.v, column, a.dv + place, stride, s.n, a.V - v0);
    if (s.first && !a.dinitial_state) return;
    if constexpr (Tiles::kReload) swap_keys(a.k, x.k, s, b, h, a.K);
    decay_state(dS, kVector ? x.total : nullptr, x.gates[s.n - 1].up);
    if constexpr (!kVector) {
      Acc<kChunk> faded = from_frag(dO);
      each(faded, [&](int, int col, float& d) { d *= x.gates[col].up * a.scale; });
      dO = to_frag<T>(faded);
    }
    mma_ab(dS, dO, x.q, 0, 0);
    each(R, [&](int, int col, float& r) { r *= kVector ? -1.f : -x.gates[col].up; });
    mma_ab(dS, to_frag<T>(R), x.k, 0, 0);
  });
  if (a.dinitial_state) store_state(dS, a.dinitial_state + state, a.K, a.V, v);
}

// --- Parts of other kernels ----------------------------------------------------------------------

// The inverse of 1 + L, L [64, 64] strictly lower triangular in shared memory, rows kPitch apart, in
// its place (above the diagonal lies scratch). 128 threads. By substitution in fp32 for the two blocks of
// 32 on the diagonal, then X21 = -X22 (L21 X11): products of such a matrix by itself lose all digits
// where keys are alike, substitution does not.
inline constexpr int kPitch = kChunk + 4;
__device__ inline void invert(float* L) {
  const int warp = warp_index(), lane = lane_index();
  constexpr int kHalf = kChunk / 2;
  if (warp < 2) {
    float* const block = L + warp * kHalf * (kPitch + 1);
    float x[kHalf];  // this lane's column
#pragma unroll
    for (int r = 0; r < kHalf; ++r) {
      float sum[4] = {r == lane ? 1.f : 0.f, 0.f, 0.f, 0.f};
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
    for (int r = 0; r < kHalf; ++r) block[r * kPitch + lane] = x[r];
  }
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x) / 4, c = static_cast<int>(threadIdx.x) % 4 * 8;
  // out[r, c ..] = sign * A B, 32 x 32 each.
  const auto product = [&](const float* A, const float* B, float* out, float sign) {
    float sum[8] = {};
#pragma unroll 4
    for (int k = 0; k < kHalf; ++k) {
      const float left = A[r * kPitch + k];
      const float4 b0 = *reinterpret_cast<const float4*>(B + k * kPitch + c);
      const float4 b1 = *reinterpret_cast<const float4*>(B + k * kPitch + c + 4);
      const float right[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] = fmaf(left, right[i], sum[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      *reinterpret_cast<float4*>(out + r * kPitch + c + i) =
          make_float4(sign * sum[i], sign * sum[i + 1], sign * sum[i + 2], sign * sum[i + 3]);
    }
  };
  float *const L21 = L + kHalf * kPitch, *const scratch = L + kHalf;
  product(L21, L, scratch, 1.f);
  __syncthreads();
  product(L + kHalf * (kPitch + 1), scratch, L21, -1.f);
  __syncthreads();
}

// Rows r < n of the inverse to global [n, 64], zeros above the diagonal.
template <class T>
__device__ inline void store_inverse(const float* X, T* global, int n) {
  for (int at = static_cast<int>(threadIdx.x); at < n * kChunk / 2;
       at += static_cast<int>(blockDim.x)) {
    const int r = at / (kChunk / 2), c = at % (kChunk / 2) * 2;
    const float* const from = X + r * kPitch + c;
    store_pair(global + r * kChunk + c, c <= r ? from[0] : 0.f, c + 1 <= r ? from[1] : 0.f);
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

template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, int bytes, A&&... args) {
  if (blocks == 0) return;
  if (bytes > 48 * 1024) {
    cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, cuda_stream()>>>(
      std::forward<A>(args)...);
}

// The rows of v as documents; `cu` keeps their borders on v's device.
inline Grid make_grid(const Tensor& cu_seqlens, const Tensor& v, Tensor& cu) {
  const int64_t B = v.size(0), T = v.size(1);
  if (cu_seqlens && !v.is_meta()) {
    const auto from = view<const int32_t>(cu_seqlens);
    std::vector<int32_t> borders;
    for (int64_t i = 0; i < from.size(0); ++i) borders.push_back(from(i));
    cu = upload(borders, v.device());
  }
  return {T,
          static_cast<int>(B),
          static_cast<int>(v.size(2)),
          static_cast<int>(ceil_div(T, kChunk)),
          static_cast<int>(document_count(cu_seqlens, B)),
          cu ? dptr<int32_t>(cu) : nullptr};
}

// f.template operator()<KP>() with K rounded up to 64, 128 or 256.
template <class F>
void for_key_width(std::string_view name, int64_t K, int64_t V, F&& f) {
  require(K <= 256 && V <= 256, name, ": K = ", K, ", V = ", V,
          "; on a GPU heads are at most 256 wide");
  if (K <= 64) return f.template operator()<64>();
  if (K <= 128) return f.template operator()<128>();
  return f.template operator()<256>();
}

}  // namespace weft::kernels::overwrite
