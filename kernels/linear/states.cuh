// The pass of linear that makes states alone: forwards those at the starts of chunks, backwards
// their gradients at the ends. A block has 64 x 64 of a state, which know nothing of the rest, and
// walks one document; blocks of both directions can run beside each other.
#pragma once

#include "kernels/linear/problem.cuh"

namespace weft::kernels::linear {

using tile::Acc;
using tile::Arena;
using tile::Frag;
using tile::Smem;

// What is kept of a state: [B, chunks / every, H, K, V], z alike without V. The place c / every is
// that of the state after chunk c, or of its gradient, where c + 1 is a multiple of `every`.
// `exact`: the same in f32, beside states in bf16; absent where nobody wants it.
template <class Kept>
struct KeptStates {
  Kept* states = nullptr;
  float* sums = nullptr;
  int places = 0, every = 1;
  float* exact = nullptr;

  __device__ bool keeps(int c) const { return (c + 1) % every == 0; }
  __device__ int64_t place(int b, int c, int h, int H) const {
    return (int64_t{b} * places + c / every) * H + h;
  }
};

template <class Real>
struct StateGradient {
  TokenRows<const Real> dout;
  const float *denominator, *dd;         // [B, T, H]; with normalize
  const float *dfinal_state, *dfinal_z;  // absent: zero
  float *dinitial_state, *dinitial_z;    // absent: not wanted
};

inline constexpr int kPart = 64;           // channels and columns of V of a block
inline constexpr int kStateThreads = 160;  // four warps of 16 channels, and one for the decays
inline constexpr int kLoadThreads = 128;   // of the four warps

template <class Real>
struct StateTiles {
  static constexpr int kStages = 3;
  Smem<Real, kTokens, kPart> x, y;  // kStages of each
  float* decays;                    // two, with the factors of tokens in S and in z behind each
  static constexpr int kFloats = SharedDecay<kTokens>::kFloats + 2 * kTokens;

  __host__ __device__ explicit StateTiles(Arena& arena) {
    x = arena.carve<Smem<Real, kTokens, kPart>>();
    for (int i = 1; i < 2 * kStages; ++i) {
      const auto tile = arena.carve<Smem<Real, kTokens, kPart>>();
      if (i == kStages) y = tile;
    }
    decays = arena.carve<float>(2 * kFloats);
  }
};

// What rounding takes from a[i, k] factor[k]: a left operand of its own.
template <int K>
__device__ __forceinline__ Frag<tile::bf16, K> rest_of_scaling(Frag<tile::bf16, K> a,
                                                               const float* factor) {
  const auto rest = [](float x) { return x - tile::to_float(tile::from_float<tile::bf16>(x)); };
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 by = tile::load_pair(factor + tile::acc_col(2 * k + i / 2, 0));
      uint32_t& pair = a.x[k][i];
      pair = tile::pack_bf16(rest(tile::low_of(pair) * by.x), rest(tile::high_of(pair) * by.y));
    }
  }
  return a;
}

// A query over its denominator is the sum of two operands: its rounding would be the only one in
// dS.
// Forwards:   S  <- e^{G_C} S  + (e^{G_C - G} . K)' V,          z alike with 1 for v
// Backwards:  dS <- e^{G_C} dS + (s e^{G} / denominator . Q)' dout, dz with dd denominator for dout
template <bool kBackwards, bool kExact, class Real, class Kept>
__device__ void walk_states(const CudaProblem<Real>& p, const StateGradient<Real>& f,
                            const KeptStates<Kept>& kept, int index) {
  constexpr int kStages = StateTiles<Real>::kStages;
  Arena arena(tile::dynamic_memory());
  const StateTiles<Real> w(arena);
  const int warp = tile::warp_index(), lane = tile::lane_index();
  const int parts_k = (p.K + kPart - 1) / kPart, parts_v = (p.V + kPart - 1) / kPart;
  const int v0 = index % parts_v * kPart, k0 = index / parts_v % parts_k * kPart;
  index /= parts_v * parts_k;
  const int h = index % p.H, n = index / p.H, hk = h / p.group;
  const int b = p.documents.row(n), begin = p.documents.begin(n), end = p.documents.end(n);

  const TokenRows<const Real> left = kBackwards ? p.q : p.k, right = kBackwards ? f.dout : p.v;
  const auto after = [&](const GridPiece& piece) {
    return kBackwards ? p.documents.up_to(begin, end, piece.begin)
                      : p.documents.from(begin, end, piece.end);
  };
  const auto is_final = [&](const GridPiece& piece) {
    return kBackwards ? piece.first : piece.last;
  };
  GridPiece coming =
      kBackwards ? p.documents.up_to(begin, end, end) : p.documents.from(begin, end, begin);
  bool comes = true;
  const auto fetch = [&](int stage) {  // the coming piece, if there is one
    if (comes) {
      load_rows_async<kLoadThreads>(stage_of(w.x, stage), left.at(b, coming.begin, hk) + k0,
                                    left.by_token, coming.size(), p.K - k0);
      load_rows_async<kLoadThreads>(stage_of(w.y, stage), right.at(b, coming.begin, h) + v0,
                                    right.by_token, coming.size(), p.V - v0);
      comes = !is_final(coming);
      if (comes) coming = after(coming);
    }
    tile::async_commit();
  };
  // By the last warp: decays and factors of a piece.
  const auto prepare = [&](const GridPiece& piece, float2 gates, int turn) {
    const SharedDecay<kTokens> decay{w.decays + turn % 2 * StateTiles<Real>::kFloats};
    decay.set(gates.x, gates.y);
#pragma unroll
    for (int i = 2 * lane; i < 2 * lane + 2; ++i) {
      float by = kBackwards ? p.scale * decay.from_start()[i] : decay.to_end()[i], by_z = by;
      if (kBackwards && p.normalize && i < piece.size()) {
        const int64_t at = (int64_t{b} * p.documents.T + piece.begin + i) * p.H + h;
        by /= f.denominator[at];
        by_z *= f.dd[at];
      }
      decay.data[SharedDecay<kTokens>::kFloats + i] = by;
      decay.data[SharedDecay<kTokens>::kFloats + kTokens + i] = by_z;
    }
  };
  const auto gates_of = [&](const GridPiece& at) {
    return lane_gates(p.gates, b, at.begin, at.end, h);
  };

  Acc<kPart> s;
  float z = 0.f;  // of channel k0 + threadIdx.x
  const bool owns_s = warp < 4;
  const bool owns_z =
      p.normalize && v0 == 0 && static_cast<int>(threadIdx.x) < min(kPart, p.K - k0);
  const int rows = owns_s ? p.K - k0 - 16 * warp : 0, columns = p.V - v0;
  const int64_t head = int64_t{n} * p.H + h;
  const int64_t at_head = (head * p.K + k0 + 16 * warp) * p.V + v0, at_z = head * p.K + k0;
  const float* const from = kBackwards ? f.dfinal_state : p.initial_state;
  const float* const from_z = kBackwards ? f.dfinal_z : p.initial_z;
  fill(s, 0.f);
  if (from) load_acc(s, from + at_head, p.V, rows, columns);
  if (from_z && owns_z) z = from_z[at_z + threadIdx.x];
  const auto keep = [&](int c) {
    if (!kept.keeps(c)) return;
    const int64_t at = kept.place(b, c, h, p.H) * p.K + k0;
    store_acc(s, kept.states + (at + 16 * warp) * p.V + v0, p.V, rows, columns);
    if constexpr (kExact)
      store_acc(s, kept.exact + (at + 16 * warp) * p.V + v0, p.V, rows, columns);
    if (owns_z) kept.sums[at + threadIdx.x] = z;
  };
  const bool to_the_end = kBackwards && (f.dinitial_state || f.dinitial_z);

  GridPiece piece = coming;
  if (is_final(piece) && !to_the_end) return;
  float2 gates = {0.f, 0.f};  // of the piece after
  if (!owns_s) {
    prepare(piece, gates_of(piece), 0);
    if (!is_final(piece)) gates = gates_of(after(piece));
  }
#pragma unroll
  for (int i = 0; i + 1 < kStages; ++i) fetch(i);
  int stage = 0;
  for (int turn = 0;; ++turn) {
    if (kBackwards && !piece.last) keep(piece.chunk);
    if (is_final(piece) && !to_the_end) break;
    tile::async_wait<kStages - 2>();
    __syncthreads();
    fetch(stage == 0 ? kStages - 1 : stage - 1);
    const float* const decays = w.decays + turn % 2 * StateTiles<Real>::kFloats;
    const float total = decays[4 * kTokens];
    const float* const factor = decays + SharedDecay<kTokens>::kFloats;
    if (owns_s) {
      const auto add_chunk = [&](Acc<kPart>& sum) {
        auto a = tile::load_frag_t<Real, kTokens>(stage_of(w.x, stage), 0, 16 * warp);
        if constexpr (kBackwards && std::is_same_v<Real, tile::bf16>)
          if (p.normalize) mma_ab(sum, rest_of_scaling(a, factor), stage_of(w.y, stage), 0, 0);
        scale_inner(a, factor);
        mma_ab(sum, a, stage_of(w.y, stage), 0, 0);
      };
      if constexpr (std::is_same_v<Real, tile::bf16> && std::is_same_v<Kept, float>) {
        Acc<kPart> added;
        fill(added, 0.f);
        add_chunk(added);
        carry(s, total, added);
      } else {  // f32 rounds to nearest; kept in bf16, a state does not feel it
        scale(s, total);
        add_chunk(s);
      }
      if (owns_z) {
        const auto x = stage_of(w.x, stage);
        z *= total;
        for (int i = 0; i < kTokens; ++i)
          z += factor[kTokens + i] * tile::to_float(x.at(i, threadIdx.x));
      }
    } else if (!is_final(piece)) {
      const GridPiece next = after(piece);
      prepare(next, gates, turn + 1);
      if (!is_final(next)) gates = gates_of(after(next));
    }
    if (is_final(piece)) break;
    if (!kBackwards) keep(piece.chunk);
    piece = after(piece);
    if (!kBackwards && piece.last) break;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  tile::async_wait<0>();
  if (!kBackwards) return;
  if (f.dinitial_state) store_acc(s, f.dinitial_state + at_head, p.V, rows, columns);
  if (f.dinitial_z && owns_z) f.dinitial_z[at_z + threadIdx.x] = z;
}

inline int64_t state_blocks(int64_t N, int64_t H, int64_t K, int64_t V) {
  return N * H * ceil_div(K, kPart) * ceil_div(V, kPart);
}

}  // namespace weft::kernels::linear
