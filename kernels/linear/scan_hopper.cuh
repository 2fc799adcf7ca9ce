// A scan over the chunks of a head on Hopper, for bf16 and K up to 128:
//   P = tril(Q K' . decays),   O = scale (P V + e^G . Q S)
//   S_out = e^{G_C} S + (e^{G_C - G} . K)' V
// forwards, or the same on time that runs backwards. The forward pass is one scan. The gradients of
// q, k and v are three, with other tensors in the places of Q, K and V (README.md, On a GPU).
//
// A block takes 64 columns of V of one head, in three roles. One warpgroup loads (TMA) and turns
// gates into decays; one computes the scores P of a chunk, a chunk ahead; one keeps the state S',
// 64 x K, in its registers from the first chunk to the last, with S', V' and V' P' as left operands
// from registers and Q, K, P as they lie in shared memory.
#pragma once

#include "kernels/linear/problem.cuh"
#include "kernels/tile/hopper.cuh"

namespace weft::kernels::linear::hopper {

using tile::Acc;
using tile::Arena;
using tile::bf16;
using tile::Frag;
using tile::kFirst;
using tile::Ring;
using tile::Smem;
using tile::Stages;
using tile::Turn;

inline constexpr int kSlice = 64;   // columns of V of a block
inline constexpr int kBuffers = 3;  // chunks of scores and of decays
inline constexpr int kThreads = 384;
inline constexpr int kGatesAhead = 3;  // chunks whose gates are on their way

// What a scan of a gradient says for the gradients of gates (README.md, Backward).
enum class Gates {
  unmoved,     // nothing
  of_queries,  // dQ, forwards: x_i, r_i - c_i, and the states, which the scan of dK meets
  of_keys      // dK, backwards: y_j, and <dS, S>
};

// Of each token and head there are `parts` partial sums, one of a warp of each block: [B, H, parts,
// tokens of whole chunks]; of e^{G_C} <dS, S> one of each chunk, [B, H, chunks, parts].
struct GateShares {
  float *x = nullptr, *pairs = nullptr, *y = nullptr, *through = nullptr;
  uint4* states = nullptr;  // at the starts of chunks 1, 2, .., as the threads hold them
};

// The sizes of a scan: K and V are the widths of what stands for keys and for values, and so many
// heads share one of theirs.
struct Sizes {
  int T, H, K, V, share_key, share_value;
  float scale;
  ScalarGates gates;
  const float* initial_state;  // [B, H, K, V]; absent: zero
  float* final_state;          // absent: not wanted
  GateShares shares;

  __host__ __device__ int chunks() const { return (T + kTokens - 1) / kTokens; }
  __host__ __device__ int slices() const { return (V + kSlice - 1) / kSlice; }
  __host__ __device__ int parts() const { return 4 * slices(); }
};

struct Maps {
  CUtensorMap q, k, v, o;
  CUtensorMap with;  // what o is multiplied with, token by token; with gates' shares
};

template <int K, Gates kGates>
struct Tiles {
  static constexpr int kStages = kGates == Gates::unmoved ? 4 : 3;  // chunks of q, k, v
  using Keys = Smem<bf16, kTokens, K>;
  using Values = Smem<bf16, kTokens, kSlice>;
  using Scores = Smem<bf16, kTokens, kTokens>;
  Stages<Keys, kStages> q, k;
  Stages<Values, kStages> v, with;
  Stages<Values, 2> o;
  Stages<Scores, kBuffers> scores;
  Ring<kStages> loaded;
  Ring<kBuffers> scored, decayed;
  float* decays;

  __host__ __device__ explicit Tiles(Arena& arena)
      : q(arena.carve<Stages<Keys, kStages>>()),
        k(arena.carve<Stages<Keys, kStages>>()),
        v(arena.carve<Stages<Values, kStages>>()),
        with(kGates == Gates::unmoved ? v : arena.carve<Stages<Values, kStages>>()),
        o(arena.carve<Stages<Values, 2>>()),
        scores(arena.carve<Stages<Scores, kBuffers>>()),
        loaded(arena.carve<Ring<kStages>>()),
        scored(arena.carve<Ring<kBuffers>>()),
        decayed(arena.carve<Ring<kBuffers>>()),
        decays(arena.carve<float>(kBuffers * SharedDecay<kTokens>::kFloats)) {}
  __device__ SharedDecay<kTokens> decay(Turn turn) const {
    return {decays + turn.stage * SharedDecay<kTokens>::kFloats};
  }
};

// What a block does. Its turns are chunks in the scan's order.
struct Work {
  int b, h, key_head, value_head, slice, chunks;
  bool backwards;

  __device__ int v0() const { return slice * kSlice; }
  __device__ int chunk(int turn) const { return backwards ? chunks - 1 - turn : turn; }
  __device__ int64_t head(int H) const { return int64_t{b} * H + h; }
};

// The state that this block keeps at the start of a chunk above 0: 128 threads' shares of 64 x K.
template <int K>
__device__ uint4* state_before(const Sizes& p, const Work& at, int chunk) {
  const int64_t slice = at.head(p.H) * p.slices() + at.slice;
  return p.shares.states + (slice * (at.chunks - 1) + chunk - 1) * (K / 16) * 128;
}

// One thread: every chunk of the tensors, as stages become free. The states that the other scan
// kept come as far as the cache.
template <int K, Gates kGates>
__device__ void load_chunks(const Tiles<K, kGates>& w, const Sizes& p, const Maps& maps,
                            const Work& at) {
  using T = Tiles<K, kGates>;
  constexpr int kWith = kGates == Gates::unmoved ? 0 : T::Values::bytes;
  constexpr int kBytes = 2 * T::Keys::bytes + T::Values::bytes + kWith;
  Turn turn;
  for (int i = 0; i < at.chunks; ++i) {
    const int token = at.chunk(i) * kTokens;
    w.loaded.acquire(turn, kBytes);
    tile::Barrier* full = w.loaded.full(turn);
    tma_load(w.k[turn.stage], maps.k, full, at.b, token, at.key_head, 0);
    tma_load(w.q[turn.stage], maps.q, full, at.b, token, at.key_head, 0);
    tma_load(w.v[turn.stage], maps.v, full, at.b, token, at.value_head, at.v0());
    if (kGates == Gates::of_keys && at.chunk(i) > 0)
      tile::prefetch(state_before<K>(p, at, at.chunk(i)), kTokens * K * 2);
    if constexpr (kWith > 0)
      tma_load(w.with[turn.stage], maps.with, full, at.b, token, at.value_head, at.v0());
    turn.next<T::kStages>();
  }
}

// One warp: the decays of every chunk. The gates of several chunks are on their way at a time, as
// they lie in memory: an addition to one would wait for it.
template <int K, Gates kGates>
__device__ void make_decays(const Tiles<K, kGates>& w, const Sizes& p, const Work& at) {
  const float* const g = p.gates.g + at.b * p.gates.by_row + at.h * p.gates.by_head;
  const float common = p.gates.log_gamma ? p.gates.log_gamma[at.h] : 0.f;
  const auto token_of = [&](int turn) { return at.chunk(turn) * kTokens + 2 * tile::lane_index(); };
  const auto load = [&](int turn) {
    float2 x = {0.f, 0.f};
    const int t = token_of(turn);
    if (p.gates.g && turn < at.chunks) {
      if (t < p.T) x.x = __ldg(g + t * p.gates.by_token);
      if (t + 1 < p.T) x.y = __ldg(g + (t + 1) * p.gates.by_token);
    }
    return x;
  };
  float2 ahead[kGatesAhead];
#pragma unroll
  for (int i = 0; i < kGatesAhead; ++i) ahead[i] = load(i);
  Turn turn;
  for (int i = 0; i < at.chunks; ++i) {
    const float2 gates = ahead[0];
#pragma unroll
    for (int j = 1; j < kGatesAhead; ++j) ahead[j - 1] = ahead[j];
    ahead[kGatesAhead - 1] = load(i + kGatesAhead);
    w.decayed.acquire(turn);
    const int t = token_of(i);
    w.decay(turn).set(t < p.T ? gates.x + common : 0.f, t + 1 < p.T ? gates.y + common : 0.f);
    __syncwarp();
    if (tile::lane_index() == 0) tile::barrier_arrive(w.decayed.full(turn));
    turn.next<kBuffers>();
  }
}

// The logarithms of decays that a lane needs for its scores, in registers before the scores are
// there.
template <bool kBackwards>
struct LaneDecays {
  tile::Rows row_high, row_low;
  tile::Cols<kTokens> col_high, col_low;

  __device__ LaneDecays(const SharedDecay<kTokens>& decay, int row0)
      : row_high(tile::load_rows(decay.high() + row0)),
        row_low(tile::load_rows(decay.low() + row0)),
        col_high(tile::load_cols<kTokens>(decay.high())),
        col_low(tile::load_cols<kTokens>(decay.low())) {}
  // From the earlier to the later token of element i of column block j.
  __device__ float at(int j, int i) const {
    const float high = row_high.x[i / 2] - col_high.x[j][i % 2];
    const float low = row_low.x[i / 2] - col_low.x[j][i % 2];
    return tile::ex2(kBackwards ? -high - low : high + low);
  }
};

// Zero for tokens that the row does not see; `factor` (j, i) elsewhere. It may be infinite where it
// is not used.
template <bool kBackwards, class F>
__device__ __forceinline__ void mask_and_scale(Acc<kTokens>& p, int row0, F&& factor) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + tile::acc_row(i), col = tile::acc_col(j, i);
      const bool sees = kBackwards ? row <= col : row >= col;
      p.x[j][i] = sees ? p.x[j][i] * factor(j, i) : 0.f;
    }
  }
}

// The sums over this warp's 16 rows of the columns of x: of columns 2 l and 2 l + 1 for lane l.
// Lanes halve what they add each time, so that 14 exchanges do.
__device__ __forceinline__ float2 column_sums(const Acc<kTokens>& x) {
  const int lane = tile::lane_index();
  float sum[kTokens / 8][2];
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[j][i] = x.x[j][i] + x.x[j][2 + i];
  }
#pragma unroll
  for (int half = kTokens / 16; half > 0; half /= 2) {
    const bool keeps_upper = lane & 4 * half;
#pragma unroll
    for (int j = 0; j < half; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float kept = keeps_upper ? sum[j + half][i] : sum[j][i];
        const float given = keeps_upper ? sum[j][i] : sum[j + half][i];
        sum[j][i] = kept + __shfl_xor_sync(~0u, given, 4 * half);
      }
    }
  }
  return {sum[0][0], sum[0][1]};
}

// column_sums of o (.) with, of which `with` is a left operand of the same rows and columns.
__device__ __forceinline__ float2 token_sums(const Acc<kTokens>& o,
                                             const Frag<bf16, kTokens>& with) {
  Acc<kTokens> both;
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const uint32_t pair = with.x[j / 2][2 * (j % 2) + i / 2];
      both.x[j][i] = o.x[j][i] * tile::low_of(pair);
      both.x[j][i + 1] = o.x[j][i + 1] * tile::high_of(pair);
    }
  }
  return column_sums(both);
}

// Row sums less column sums of x below its diagonal, of tokens 2 l and 2 l + 1 for lane l: what the
// rows row0 .. row0 + 15 of a warp say.
__device__ __forceinline__ float2 sums_of_pairs(Acc<kTokens>& x, int row0) {
  tile::each(x, [&](int row, int col, float& value) {
    if (row0 + row <= col) value = 0.f;
  });
  const tile::Rows rows = row_sum(x);  // in all lanes of a quad
  const float2 cols = column_sums(x);
  float sums[2] = {-cols.x, -cols.y};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = 2 * tile::lane_index() + i - row0, from = row % 8 * 4 & 31;
    const float upper = __shfl_sync(~0u, rows.x[0], from),
                lower = __shfl_sync(~0u, rows.x[1], from);
    if (row >= 0 && row < 16) sums[i] += row < 8 ? upper : lower;
  }
  return {sums[0], sums[1]};
}

// Where a block puts its shares of the gradients of gates.
template <int K, Gates kGates>
struct ShareWriter {
  static constexpr int kBlock = TransposedState<K>::kWidth, kBlocks = K / kBlock;
  const Sizes& p;
  const Work& at;
  int warp;

  __device__ int64_t part() const { return at.head(p.H) * p.parts() + 4 * at.slice + warp; }
  __device__ void put(float* to, int chunk, float2 sums, float scale) const {
    float* const row = to + (part() * at.chunks + chunk) * kTokens + 2 * tile::lane_index();
    *reinterpret_cast<float2*>(row) = {sums.x * scale, sums.y * scale};
  }
  __device__ uint4* states_of(int chunk) const {
    return state_before<K>(p, at, chunk) + threadIdx.x % 128;
  }
  __device__ void keep(int chunk, const Frag<bf16, kBlock> (&state)[kBlocks]) const {
    if (chunk == 0) return;
    uint4* const to = states_of(chunk);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kBlock / 16; ++j) {
        const auto& x = state[i].x[j];
        to[(i * (kBlock / 16) + j) * 128] = {x[0], x[1], x[2], x[3]};
      }
    }
  }
  // Two columns of the fragment are one block of eight of the accumulator and the next.
  __device__ void add_through(int chunk, const TransposedState<K>& ds, float factor) const {
    float sum = 0.f;
    if (chunk > 0) {
      const uint4* const from = states_of(chunk);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
        for (int j = 0; j < kBlock / 16; ++j) {
          const uint4 s = __ldg(from + (i * (kBlock / 16) + j) * 128);
          const uint32_t x[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
          for (int pair = 0; pair < 4; ++pair) {
            const auto& d = ds.s[i].x[2 * j + pair / 2];
            sum = fmaf(d[pair % 2 * 2], tile::low_of(x[pair]), sum);
            sum = fmaf(d[pair % 2 * 2 + 1], tile::high_of(x[pair]), sum);
          }
        }
      }
    }
    sum = tile::warp_sum(sum) * factor;
    const int64_t place = (at.head(p.H) * at.chunks + chunk) * p.parts() + 4 * at.slice + warp;
    if (tile::lane_index() == 0) p.shares.through[place] = sum;
  }
};

// One warpgroup: P of every chunk. For dQ, where P is the D of the README, also what pairs of
// tokens say of the gates between them, by the channels of q and k that this block has.
template <int K, bool kDecays, bool kBackwards, Gates kGates>
__device__ void make_scores(const Tiles<K, kGates>& w, const Sizes& p, const Work& at) {
  const int row0 = tile::warp_index() % 4 * 16;
  const bool speaks = tile::lane_index() == 0;
  Turn load, turn;
  for (int i = 0; i < at.chunks; ++i) {
    w.loaded.wait(load);
    Acc<kTokens> scores, of_keys;
    tile::wgmma_begin();
    tile::wgmma_abt<K, kFirst>(scores, w.q[load.stage], 0, 0, w.k[load.stage], 0, 0);
    if constexpr (kGates == Gates::of_queries)
      tile::wgmma_abt<kSlice, kFirst>(of_keys, w.with[load.stage], 0, 0, w.v[load.stage], 0, 0);
    tile::wgmma_commit();
    w.scored.acquire(turn);
    if constexpr (kDecays) {
      w.decayed.wait(turn);
      const LaneDecays<kBackwards> decays(w.decay(turn), row0);
      tile::wgmma_wait<0>(scores);
      mask_and_scale<kBackwards>(scores, row0, [&](int j, int i) { return decays.at(j, i); });
    } else {
      tile::wgmma_wait<0>(scores);
      mask_and_scale<kBackwards>(scores, row0, [](int, int) { return 1.f; });
    }
    __syncwarp();
    if (speaks) w.loaded.release(load);
    acc_to_smem(scores, w.scores[turn.stage], row0, 0);
    tile::publish();
    __syncwarp();
    if (speaks) {
      tile::barrier_arrive(w.scored.full(turn));
      if constexpr (kDecays) w.decayed.release(turn);
    }
    if constexpr (kGates == Gates::of_queries) {
      tile::pin(of_keys);
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) of_keys.x[j][e] *= scores.x[j][e] * p.scale;
      }
      const ShareWriter<K, kGates> shares{p, at, tile::warp_index() % 4};
      shares.put(p.shares.pairs, at.chunk(i), sums_of_pairs(of_keys, row0), 1.f);
    }
    load.next<Tiles<K, kGates>::kStages>();
    turn.next<kBuffers>();
  }
}

// acc[i, j] += x[i, j] factor[j], each in one rounding whatever else is computed beside it.
template <int N>
__device__ __forceinline__ void add_scaled_cols(Acc<N>& acc, const Acc<N>& x,
                                                const tile::Cols<N>& factor) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.x[j][i] = fmaf(x.x[j][i], factor.x[j][i % 2], acc.x[j][i]);
  }
}

// One warpgroup: the state, and the output of every chunk. What a chunk adds to the state is summed
// by itself (`carry`), a block of channels after the other.
template <int K, bool kDecays, bool kBackwards, Gates kGates>
__device__ void carry_state(const Tiles<K, kGates>& w, const Sizes& p, const Maps& maps,
                            const Work& at) {
  constexpr int kOutputBarrier = 1, kBlock = TransposedState<K>::kWidth;
  static_assert(K / kBlock <= 2);
  const int warp = tile::warp_index() % 4;
  const bool speaks = tile::lane_index() == 0, stores = threadIdx.x % 128 == 0;
  const int64_t first = at.head(p.H) * p.K * p.V + at.v0() + 16 * warp;
  const int columns = p.V - at.v0() - 16 * warp;  // of this warp that exist
  const ShareWriter<K, kGates> shares{p, at, warp};
  TransposedState<K> s;
  s.load(p.initial_state ? p.initial_state + first : nullptr, p.K, p.V, columns);
  Turn load, turn;
  for (int c = 0; c < at.chunks; ++c) {
    const int chunk = at.chunk(c);
    Frag<bf16, kBlock> state[K / kBlock];
#pragma unroll
    for (int i = 0; i < K / kBlock; ++i) state[i] = tile::to_frag<bf16>(s.s[i]);
    if constexpr (kGates == Gates::of_queries) shares.keep(chunk, state);
    w.loaded.wait(load);
    const auto q = w.q[load.stage], k = w.k[load.stage];
    const auto values = tile::load_frag_t<bf16, kTokens>(w.v[load.stage], 0, 16 * warp);
    auto late_values = values;  // times the decay between them and the next state
    const SharedDecay<kTokens> decay = w.decay(turn);
    float total = 1.f;
    if constexpr (kDecays) {
      w.decayed.wait(turn);
      total = decay.total();
      scale_inner(late_values, kBackwards ? decay.from_start() : decay.to_end());
    }
    Acc<kTokens> o, of_chunk;  // what comes through the state, and from this chunk
    Acc<kBlock> added;         // to a block of the state, one after the other
    tile::wgmma_begin();
    tile::wgmma_abt<kFirst>(o, state[0], q, 0, 0);
    if constexpr (K > kBlock) tile::wgmma_abt(o, state[1], q, 0, kBlock);
    tile::wgmma_commit();
    tile::wgmma_ab<kFirst>(added, late_values, k, 0, 0);
    tile::wgmma_commit();
    if constexpr (kGates == Gates::of_keys) shares.add_through(chunk, s, total * p.scale);
    tile::wgmma_wait<1>(o);
    w.scored.wait(turn);
    tile::wgmma_begin();
    tile::wgmma_abt<kFirst>(of_chunk, values, w.scores[turn.stage], 0, 0);
    tile::wgmma_commit();
    const float* const reach = kBackwards ? decay.to_end() : decay.from_start();
    if constexpr (kGates != Gates::unmoved) {
      const auto with = tile::load_frag_t<bf16, kTokens>(w.with[load.stage], 0, 16 * warp);
      const float2 by = tile::load_pair(reach + 2 * tile::lane_index());
      const float2 sums = token_sums(o, with);
      float* const to = kGates == Gates::of_queries ? p.shares.x : p.shares.y;
      shares.put(to, chunk, {sums.x * by.x, sums.y * by.y}, p.scale);
    }
    tile::wgmma_wait<1>(added);
    linear::carry(s.s[0], total, added);
    if constexpr (K > kBlock) {
      tile::wgmma_begin(added);
      tile::wgmma_ab<kFirst>(added, late_values, k, 0, kBlock);
      tile::wgmma_commit();
      tile::wgmma_wait<1>(of_chunk);
    } else {
      tile::wgmma_wait<0>(of_chunk);
    }
    if constexpr (kDecays) {
      add_scaled_cols(of_chunk, o, tile::load_cols<kTokens>(reach));
    } else {
      add_to(of_chunk, o);
    }
    scale(of_chunk, p.scale);
    const auto out = w.o[c % 2];
    acc_to_smem_t(of_chunk, out, 0, 16 * warp);
    tile::publish();
    if constexpr (K > kBlock) {
      tile::wgmma_wait<0>(added);
      linear::carry(s.s[1], total, added);
    }
    __syncwarp();
    if (speaks) {
      w.loaded.release(load);
      w.scored.release(turn);
      if constexpr (kDecays) w.decayed.release(turn);
    }
    if (stores) tile::tma_store_read<0>();  // the other tile is free for the next chunk
    tile::named_sync(kOutputBarrier, 128);
    if (stores) {
      tma_store(maps.o, out, at.b, chunk * kTokens, at.h, at.v0());
      tile::tma_store_commit();
    }
    load.next<Tiles<K, kGates>::kStages>();
    turn.next<kBuffers>();
  }
  if (p.final_state) s.store(p.final_state + first, p.K, p.V, columns);
  if (stores) tile::tma_store_read<0>();
}

template <int K, bool kDecays, bool kBackwards, Gates kGates>
__global__ void __launch_bounds__(kThreads, 1)
    scan(const __grid_constant__ Maps maps, const __grid_constant__ Sizes p) {
  if constexpr (tile::kHopper) {
    Arena arena(tile::dynamic_memory());
    const Tiles<K, kGates> w(arena);
    if (threadIdx.x == 0) {
      w.loaded.init(1, 8);  // the warps of both warpgroups that compute
      w.scored.init(4, 4);
      w.decayed.init(1, 8);
      tile::barriers_ready();
    }
    __syncthreads();
    const int slice = blockIdx.x % p.slices(), h = blockIdx.x / p.slices() % p.H;
    const Work at = {.b = static_cast<int>(blockIdx.x / p.slices() / p.H),
                     .h = h,
                     .key_head = h / p.share_key,
                     .value_head = h / p.share_value,
                     .slice = slice,
                     .chunks = p.chunks(),
                     .backwards = kBackwards};
    const int role = tile::warpgroup_index();
    if (role == 0) {
      tile::give_registers<40>();
      const int warp = tile::warp_index();
      if (warp == 0 && tile::lane_index() == 0) load_chunks(w, p, maps, at);
      if (kDecays && warp == 1) make_decays(w, p, at);
    } else if (role == 1) {
      tile::take_registers<232>();
      make_scores<K, kDecays, kBackwards>(w, p, at);
    } else {
      tile::take_registers<232>();
      carry_state<K, kDecays, kBackwards>(w, p, maps, at);
    }
  }
}

// Which tensors a scan reads and writes: [B, T, heads, width]. q and k have the same heads, v and
// `with` too, and each of those of o has one of theirs.
struct Roles {
  const Tensor &q, &k, &v, &o;
  const Tensor& with;  // absent unless the scan has shares in the gradients of gates
};

// TMA reads rows that begin at multiples of 16 bytes.
inline bool has_aligned_rows(const Tensor& t) {
  for (int i = 0; i < 3; ++i)
    if (t.size(i) > 1 && (t.stride(i) % 8 != 0 || t.stride(i) == 0)) return false;
  return t.stride(3) == 1 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}

// The sizes and gates of a scan with these tensors; no states, no shares.
inline Sizes sizes_of(const CudaProblem<bf16>& p, const Roles& x) {
  return {.T = p.documents.T,
          .H = p.H,
          .K = static_cast<int>(x.q.size(3)),
          .V = static_cast<int>(x.v.size(3)),
          .share_key = static_cast<int>(p.H / x.q.size(2)),
          .share_value = static_cast<int>(p.H / x.v.size(2)),
          .scale = p.scale,
          .gates = p.gates,
          .initial_state = nullptr,
          .final_state = nullptr,
          .shares = {}};
}

template <int K, bool kBackwards, Gates kGates>
void launch_scan(const Sizes& p, const Roles& x) {
  const auto map_of = [](auto smem, const Tensor& t) {
    return tile::tensor_map<decltype(smem)>(dptr<const bf16>(t),
                                            {t.size(0), t.size(1), t.size(2), t.size(3)},
                                            {t.stride(0), t.stride(1), t.stride(2)});
  };
  using Keys = Smem<bf16, kTokens, K>;
  using Values = Smem<bf16, kTokens, kSlice>;
  const Maps maps = {map_of(Keys{}, x.q), map_of(Keys{}, x.k), map_of(Values{}, x.v),
                     map_of(Values{}, x.o), x.with ? map_of(Values{}, x.with) : CUtensorMap{}};
  Arena size;
  Tiles<K, kGates>{size};
  const bool decays = p.gates.g || p.gates.log_gamma || kGates != Gates::unmoved;
  constexpr bool kAlways = kGates != Gates::unmoved;
  launch(decays ? scan<K, true, kBackwards, kGates> : scan<K, kAlways, kBackwards, kGates>,
         x.q.size(0) * p.H * p.slices(), kThreads, size.used(), maps, p);
}

// A scan, forwards or backwards, of any width up to 128.
template <bool kBackwards, Gates kGates>
void launch_scan(const Sizes& p, const Roles& x) {
  if (p.K <= 64) {
    launch_scan<64, kBackwards, kGates>(p, x);
  } else {
    launch_scan<128, kBackwards, kGates>(p, x);
  }
}

// forward_hopper.cu has the scans forwards, which dQ takes too.
void scan_forwards(const Sizes& p, const Roles& x);

}  // namespace weft::kernels::linear::hopper
