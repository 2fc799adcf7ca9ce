// The scans of the rules that overwrite (delta and kda): a state S [K, V] a head, carried from
// piece to piece of at most 64 tokens. With Q, K decayed from the piece's start, K_end decayed to
// its end, and the triangular matrices P (scores) and X (the inverse of the unit system) made
// before:
//   U = X beta (V - K S)       what is written
//   O = Q S + P U
//   S <- total S + K_end' U
// and backward, with dS the gradient of the state after the piece:
//   dU = P' dO + K_end dS      R = X' dU      dV = beta R
//   dS <- total dS + Q' dO - K' (beta R)
// In bf16 the products with X are made of both factors' operands and of what rounding left of
// either: their errors would reach all that is written, and a chunk corrects them no more.
// A block holds 64 columns of V of one head of one document, transposed: a warp has 16 rows of S'
// in its registers for the whole document, and each product takes them, or what it made of them, as
// its left operand. So warps share the tiles that come in, and nothing that they compute.
//
// With a gate a head (kVector = false) q and k come as they are, and decays are factors of tokens.
// With a gate a key channel (kVector = true) q, k, k_end come decayed, q times the scale.
#pragma once

#include "kernels/delta_rule/delta_rule.cuh"

namespace weft::kernels::delta_rule {

template <class Real>
struct Scan {
  Grid grid;
  int K, V, group;             // heads that share a key head in q, k
  int state_pitch, row_pitch;  // widths in memory of K in states, of V in `written` and `erased`
  float scale;                 // on q, where it does not hold it
  Heads<const Real> q, k, k_end;
  const Real *inverse,
      *scores;         // [B, H, T, kInverseWidth], [B, H, T, 64]: rows of tokens, columns from
                       // the piece's start
  const Gate* gates;   // [B, H, T]
  const float* total;  // [B, H, chunks, state_pitch] of the piece that ends with the chunk; kVector
  Heads<const float> g;  // log gates a channel, for pieces that end within a chunk; kVector
  // Forward
  Heads<const Real> v;
  Real *o, *written;           // [B, T, H, V]; `written` and `states` may be null
  Real* states;                // [B, chunks - 1, H, V, K], the first one before chunk 1
  const float* initial_state;  // [N, H, K, V] or null
  float* final_state;
  // Backward
  Heads<const Real> dout;
  Real *erased, *dv;          // R and beta R, [B, T, H, V]; dv may be null
  Real* dstates;              // [B, chunks - 1, H, V, K], the first one after chunk 0
  const float* dfinal_state;  // [N, H, K, V] or null
  float* dinitial_state;

  // Of a token's row in [B, T, H, width].
  __device__ int64_t place(int b, int64_t t, int h, int width) const {
    return ((b * grid.T + t) * grid.H + h) * width;
  }
};

// What a block has of a scan: 64 columns of V of one head of one document, a warp 16 of them.
struct Part {
  int v0, h, document, b;   // b: the row where the document lies
  int first_chunk, pieces;  // one piece a chunk
  int column, v;            // the warp's first one, from the block's and from V's start
  int64_t state;            // where the head's state begins in [N, H, K, V]
  template <class Real>
  __device__ explicit Part(const Scan<Real>& a) {
    const int slices = (a.V + kColumns - 1) / kColumns, block = static_cast<int>(blockIdx.x);
    v0 = block % slices * kColumns;
    h = block / slices % a.grid.H;
    document = block / slices / a.grid.H;
    b = a.grid.row(document);
    first_chunk = static_cast<int>(a.grid.begin(document) / kChunk);
    pieces = static_cast<int>((a.grid.end(document) - 1) / kChunk) - first_chunk + 1;
    column = 16 * warp_index();
    v = v0 + column;
    state = (int64_t{document} * a.grid.H + h) * a.K * a.V;
  }
  // The i-th piece on the scan's way.
  template <bool kBackward>
  __device__ Span span(const Grid& grid, int i) const {
    return grid.span(document, first_chunk + (kBackward ? pieces - 1 - i : i));
  }
};

// False where hopper.cuh has the kernel: it need not be compiled.
template <class Real, int KP>
inline constexpr bool kRuns = !(kWide<Real> && KP <= 128);

template <class Real, int KP, bool kVector>
struct ScanTiles {
  // One tile serves k and then k_end where shared memory is short.
  static constexpr bool kReload = kVector && sizeof(Real) == 4 && KP == 256;
  static constexpr int kKeyTiles = kVector && !kReload ? 3 : 2;
  static constexpr int kBytes =
      (kKeyTiles * KP + (2 + kInverses<Real>)*kChunk) * kChunk * static_cast<int>(sizeof(Real)) +
      kChunk * static_cast<int>(sizeof(Gate)) + 1024;
  static constexpr int kStages = kReload ? 1 : std::min(3, 226 * 1024 / kBytes);
  static_assert(kStages >= 1);

  Smem<Real, kChunk, KP> q, k, k_end;
  Smem<Real, kChunk, kChunk> v, inverse, inverse_rest, scores;
  Gate* gates;   // [64]
  float* total;  // [KP]

  __device__ explicit ScanTiles(int stage) {
    Arena arena(dynamic_memory() + stage * kBytes);
    q = arena.carve<Smem<Real, kChunk, KP>>();
    k = arena.carve<Smem<Real, kChunk, KP>>();
    k_end = kKeyTiles == 3 ? arena.carve<Smem<Real, kChunk, KP>>() : k;
    v = arena.carve<Smem<Real, kChunk, kChunk>>();
    inverse = arena.carve<Smem<Real, kChunk, kChunk>>();
    inverse_rest = kInverses<Real> == 2 ? arena.carve<Smem<Real, kChunk, kChunk>>() : inverse;
    scores = arena.carve<Smem<Real, kChunk, kChunk>>();
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
template <class Real, int KP, bool kVector>
__device__ void load_piece(const Scan<Real>& a, const ScanTiles<Real, KP, kVector>& x,
                           const Span& s, const Heads<const Real>& value, int h, int v0) {
  const int b = a.grid.row(s.document), hk = h / a.group;
  const int rank = static_cast<int>(threadIdx.x);
  load_rows<128>(x.k, a.k.at(b, s.begin, hk), a.k.token, s.n, a.K, rank);
  load_rows<128>(x.q, a.q.at(b, s.begin, hk), a.q.token, s.n, a.K, rank);
  if constexpr (ScanTiles<Real, KP, kVector>::kKeyTiles == 3) {
    load_rows<128>(x.k_end, a.k_end.at(b, s.begin, hk), a.k_end.token, s.n, a.K, rank);
  }
  load_rows<128>(x.v, value.at(b, s.begin, h) + v0, value.token, s.n, a.V - v0, rank);
  const int64_t token = a.grid.token(b, h, s.begin);
  const Real* const inverse = a.inverse + token * kInverseWidth<Real>;
  load_rows<128>(x.inverse, inverse, kInverseWidth<Real>, s.n, kChunk, rank);
  if constexpr (kInverses<Real> == 2) {
    load_rows<128>(x.inverse_rest, inverse + kChunk, kInverseWidth<Real>, s.n, kChunk, rank);
  }
  load_rows<128>(x.scores, a.scores + token * kChunk, kChunk, s.n, kChunk, rank);
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
        copy_async<4>(x.total + d, a.total + place * a.state_pitch + (valid ? d : 0), valid);
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

// What rounding to operands left of numbers, as operands.
template <class Real, int N>
__device__ __forceinline__ Frag<Real, N> rest_of(const Acc<N>& acc, const Frag<Real, N>& rounded) {
  Acc<N> rest = from_frag(rounded);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) rest.x[j][i] = acc.x[j][i] - rest.x[j][i];
  }
  return to_frag<Real>(rest);
}

// f(left, k0) for the state's columns k0 .. as left operands, without a second copy of the state.
template <class Real, int KP, class F>
__device__ __forceinline__ void for_operands(Acc<KP>& state, F&& f) {
  if constexpr (std::is_same_v<Real, float>) {
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
      Frag<Real, 16> left;
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
template <class Real>
__device__ __forceinline__ void store_columns(const Acc<kChunk>& acc,
                                              Smem<Real, kChunk, kChunk> tile, int column,
                                              Real* global, int64_t stride, int n, int columns) {
  acc_to_smem_t(acc, tile, 0, column);
  __syncwarp();
  constexpr int kUnit = 16 / static_cast<int>(sizeof(Real)), kUnits = 16 / kUnit;
  const bool vectors = rows_are_aligned(global, stride);
  for (int at = lane_index(); at < n * kUnits; at += 32) {
    const int r = at / kUnits, c = column + at % kUnits * kUnit;
    const Real* from = tile.ptr(r, c);
    Real* to = global + r * stride + c;
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

// The pieces of one document in the scan's order, each in shared memory when f(tiles, span) is
// called; later ones are under way meanwhile.
template <class Real, int KP, bool kVector, bool kBackward, class F>
__device__ __forceinline__ void walk(const Scan<Real>& a, const Part& part, F&& f) {
  using Tiles = ScanTiles<Real, KP, kVector>;
  constexpr int kStages = Tiles::kStages;
  const auto issue = [&](int i) {
    if (i < part.pieces) {
      load_piece(a, Tiles(i % kStages), part.span<kBackward>(a.grid, i), kBackward ? a.dout : a.v,
                 part.h, part.v0);
    }
    async_commit();
  };
  for (int i = 0; i + 1 < kStages; ++i) issue(i);
  for (int i = 0; i < part.pieces; ++i) {
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
    f(Tiles(i % kStages), part.span<kBackward>(a.grid, i));
  }
}

// Brings k_end into the place of k where they share one.
template <class Real, int KP>
__device__ __forceinline__ void swap_keys(const Heads<const Real>& k,
                                          const Smem<Real, kChunk, KP>& tile, const Span& s, int b,
                                          int h, int K) {
  __syncthreads();
  load_rows<128>(tile, k.at(b, s.begin, h), k.token, s.n, K, static_cast<int>(threadIdx.x));
  async_commit();
  async_wait<0>();
  __syncthreads();
}

template <class Real, int KP, bool kVector>
__global__ void __launch_bounds__(128) scan_forward(const __grid_constant__ Scan<Real> a) {
  if constexpr (kRuns<Real, KP>) {
    using Tiles = ScanTiles<Real, KP, kVector>;
    const Part part(a);
    const int b = part.b, h = part.h, v0 = part.v0, v = part.v, column = part.column;

    Acc<KP> S;
    load_state(S, a.initial_state ? a.initial_state + part.state : nullptr, a.K, a.V, v);
    walk<Real, KP, kVector, false>(a, part, [&](const Tiles& x, const Span& s) {
      if (a.states && !s.first) {
        store_acc(S, a.states + (a.grid.kept(b, s.chunk - 1, h) * a.V + v) * a.state_pitch,
                  a.state_pitch, a.V - v, a.K);
      }
      Acc<kChunk> read, O;
      fill(read, 0.f);
      fill(O, 0.f);
      for_operands<Real>(S, [&](const auto& left, int k0) {
        mma_abt(read, left, x.k, 0, k0);
        mma_abt(O, left, x.q, 0, k0);
      });
      Acc<kChunk> missed = from_frag(load_frag_t<Real, kChunk>(x.v, 0, column));
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
      const auto erasing = to_frag<Real>(missed);
      mma_abt(U, erasing, x.inverse, 0, 0);
      if constexpr (kInverses<Real> == 2) {
        mma_abt(U, erasing, x.inverse_rest, 0, 0);
        mma_abt(U, rest_of(missed, erasing), x.inverse, 0, 0);
      }
      const int64_t place = a.place(b, s.begin, h, a.V) + v0;
      const int64_t stride = int64_t{a.grid.H} * a.V;
      __syncwarp();  // this warp's columns of v have been read; they take what goes out
      if (a.written) {
        store_columns(U, x.v, column, a.written + a.place(b, s.begin, h, a.row_pitch) + v0,
                      int64_t{a.grid.H} * a.row_pitch, s.n, a.V - v0);
      }
      mma_abt(O, to_frag<Real>(U), x.scores, 0, 0);
      store_columns(O, x.v, column, a.o + place, stride, s.n, a.V - v0);
      if (s.last && !a.final_state) return;
      if constexpr (Tiles::kReload) swap_keys(a.k_end, x.k, s, b, h, a.K);
      if constexpr (!kVector) {
        each(U, [&](int, int col, float& u) { u *= x.gates[col].down; });
      }
      decay_state(S, kVector ? x.total : nullptr, x.gates[s.n - 1].up);
      mma_ab(S, to_frag<Real>(U), x.k_end, 0, 0);
    });
    if (a.final_state) store_state(S, a.final_state + part.state, a.K, a.V, v);
  }
}

template <class Real, int KP, bool kVector>
__global__ void __launch_bounds__(128) scan_backward(const __grid_constant__ Scan<Real> a) {
  if constexpr (kRuns<Real, KP>) {
    using Tiles = ScanTiles<Real, KP, kVector>;
    const Part part(a);
    const int b = part.b, h = part.h, v0 = part.v0, v = part.v, column = part.column;

    Acc<KP> dS;
    load_state(dS, a.dfinal_state ? a.dfinal_state + part.state : nullptr, a.K, a.V, v);
    walk<Real, KP, kVector, true>(a, part, [&](const Tiles& x, const Span& s) {
      if (!s.last) {
        store_acc(dS, a.dstates + (a.grid.kept(b, s.chunk, h) * a.V + v) * a.state_pitch,
                  a.state_pitch, a.V - v, a.K);
      }
      if constexpr (Tiles::kReload) swap_keys(a.k_end, x.k, s, b, h, a.K);
      Acc<kChunk> dU;
      fill(dU, 0.f);
      for_operands<Real>(dS, [&](const auto& left, int k0) { mma_abt(dU, left, x.k_end, 0, k0); });
      if constexpr (!kVector) {
        each(dU, [&](int, int col, float& u) { u *= x.gates[col].down; });
      }
      auto dO = load_frag_t<Real, kChunk>(x.v, 0, column);
      mma_ab(dU, dO, x.scores, 0, 0);
      Acc<kChunk> R;
      fill(R, 0.f);
      const auto writing = to_frag<Real>(dU);
      mma_ab(R, writing, x.inverse, 0, 0);
      if constexpr (kInverses<Real> == 2) {
        mma_ab(R, writing, x.inverse_rest, 0, 0);
        mma_ab(R, rest_of(dU, writing), x.inverse, 0, 0);
      }
      const int64_t place = a.place(b, s.begin, h, a.V) + v0;
      const int64_t stride = int64_t{a.grid.H} * a.V;
      __syncwarp();  // this warp's columns of dout have been read; they take what goes out
      store_columns(R, x.v, column, a.erased + a.place(b, s.begin, h, a.row_pitch) + v0,
                    int64_t{a.grid.H} * a.row_pitch, s.n, a.V - v0);
      each(R, [&](int, int col, float& r) { r *= x.gates[col].beta; });
      if (a.dv) store_columns(R, x.v, column, a.dv + place, stride, s.n, a.V - v0);
      if (s.first && !a.dinitial_state) return;
      if constexpr (Tiles::kReload) swap_keys(a.k, x.k, s, b, h, a.K);
      decay_state(dS, kVector ? x.total : nullptr, x.gates[s.n - 1].up);
      if constexpr (!kVector) {
        Acc<kChunk> faded = from_frag(dO);
        each(faded, [&](int, int col, float& d) { d *= x.gates[col].up * a.scale; });
        dO = to_frag<Real>(faded);
      }
      mma_ab(dS, dO, x.q, 0, 0);
      each(R, [&](int, int col, float& r) { r *= kVector ? -1.f : -x.gates[col].up; });
      mma_ab(dS, to_frag<Real>(R), x.k, 0, 0);
    });
    if (a.dinitial_state) store_state(dS, a.dinitial_state + part.state, a.K, a.V, v);
  }
}

}  // namespace weft::kernels::delta_rule
