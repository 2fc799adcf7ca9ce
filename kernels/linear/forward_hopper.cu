// Linear attention forward on Hopper: that of scan.cuh in three roles, for bf16 and K up to 128.
// A block takes 64 columns of V of one head. One warpgroup loads (TMA) and turns gates into decays;
// one computes the scores P of a chunk, a chunk ahead; one keeps the state S', 64 x K, in its
// registers from the first chunk to the last and makes
//   O' = scale (e^G . S' Q' + V' P'),   S' = e^{G_C} S' + (e^{G_C - G} . V)' K
// with S', V' and V' P' as left operands from registers and q, k, P as they lie in shared memory.
#include "kernels/linear/problem.cuh"
#include "kernels/tile/hopper.cuh"

namespace weft::kernels {
namespace {

using linear::CudaProblem;
using linear::kTokens;
using tile::Acc;
using tile::Arena;
using tile::bf16;
using tile::Frag;
using tile::kFirst;
using tile::Ring;
using tile::Smem;
using tile::Stages;
using tile::Turn;

constexpr int kSlice = 64;                // columns of V of a block
constexpr int kStages = 4, kBuffers = 3;  // chunks of q, k, v; of scores and decays
constexpr int kThreads = 384;

template <int K>
struct Tiles {
  using Keys = Smem<bf16, kTokens, K>;
  using Values = Smem<bf16, kTokens, kSlice>;
  using Scores = Smem<bf16, kTokens, kTokens>;
  Stages<Keys, kStages> q, k;
  Stages<Values, kStages> v;
  Stages<Values, 2> o;
  Stages<Scores, kBuffers> scores;
  Ring<kStages> loaded;
  Ring<kBuffers> scored, decayed;
  float* decays;

  __host__ __device__ explicit Tiles(Arena& arena)
      : q(arena.carve<Stages<Keys, kStages>>()),
        k(arena.carve<Stages<Keys, kStages>>()),
        v(arena.carve<Stages<Values, kStages>>()),
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

struct Maps {
  CUtensorMap q, k, v, o;
};

struct Work {
  int b, h, hk, v0, chunks;
};

// One thread: every chunk of q, k and v, as stages become free.
template <int K>
__device__ void load_chunks(const Tiles<K>& w, const Maps& maps, const Work& at) {
  constexpr int kBytes = 2 * Tiles<K>::Keys::bytes + Tiles<K>::Values::bytes;
  Turn turn;
  for (int c = 0; c < at.chunks; ++c) {
    w.loaded.acquire(turn, kBytes);
    tile::Barrier* full = w.loaded.full(turn);
    tma_load(w.k[turn.stage], maps.k, full, at.b, c * kTokens, at.hk, 0);
    tma_load(w.q[turn.stage], maps.q, full, at.b, c * kTokens, at.hk, 0);
    tma_load(w.v[turn.stage], maps.v, full, at.b, c * kTokens, at.h, at.v0);
    turn.next<kStages>();
  }
}

// One warp: the decays of every chunk.
template <int K>
__device__ void make_decays(const Tiles<K>& w, const CudaProblem<bf16>& p, const Work& at) {
  const int T = p.documents.T;
  Turn turn;
  float2 gates = lane_gates(p.gates, at.b, 0, min(kTokens, T), at.h);
  for (int c = 0; c < at.chunks; ++c) {
    w.decayed.acquire(turn);
    w.decay(turn).set(gates.x, gates.y);
    __syncwarp();
    if (tile::lane_index() == 0) tile::barrier_arrive(w.decayed.full(turn));
    turn.next<kBuffers>();
    const int next = (c + 1) * kTokens;
    gates = lane_gates(p.gates, at.b, next, min(next + kTokens, T), at.h);
  }
}

// The logarithms of decays that a lane needs for its scores, in registers before the scores are
// there.
template <int C>
struct LaneDecays {
  tile::Rows row_high, row_low;
  tile::Cols<C> col_high, col_low;

  __device__ LaneDecays(const SharedDecay<C>& decay, int row0)
      : row_high(tile::load_rows(decay.high() + row0)),
        row_low(tile::load_rows(decay.low() + row0)),
        col_high(tile::load_cols<C>(decay.high())),
        col_low(tile::load_cols<C>(decay.low())) {}
  // e^{G_row - G_col} for element i of column block j.
  __device__ float at(int j, int i) const {
    return tile::ex2(row_high.x[i / 2] - col_high.x[j][i % 2] +
                     (row_low.x[i / 2] - col_low.x[j][i % 2]));
  }
};

// Zero above the diagonal; `factor` (j, i) elsewhere. It may be infinite where it is not used.
template <class F>
__device__ __forceinline__ void mask_and_scale(Acc<kTokens>& p, int row0, F&& factor) {
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool sees = row0 + tile::acc_row(i) >= tile::acc_col(j, i);
      p.x[j][i] = sees ? p.x[j][i] * factor(j, i) : 0.f;
    }
  }
}

// One warpgroup: P = tril(Q K' . decays) of every chunk.
template <int K, bool kDecays>
__device__ void make_scores(const Tiles<K>& w, const Work& at) {
  const int row0 = tile::warp_index() % 4 * 16;
  const bool speaks = tile::lane_index() == 0;
  Turn load, turn;
  for (int c = 0; c < at.chunks; ++c) {
    w.loaded.wait(load);
    Acc<kTokens> p;
    tile::wgmma_begin();
    tile::wgmma_abt<K, kFirst>(p, w.q[load.stage], 0, 0, w.k[load.stage], 0, 0);
    tile::wgmma_commit();
    w.scored.acquire(turn);
    if constexpr (kDecays) {
      w.decayed.wait(turn);
      const LaneDecays<kTokens> decays(w.decay(turn), row0);
      tile::wgmma_wait<0>(p);
      mask_and_scale(p, row0, [&](int j, int i) { return decays.at(j, i); });
    } else {
      tile::wgmma_wait<0>(p);
      mask_and_scale(p, row0, [](int, int) { return 1.f; });
    }
    __syncwarp();
    if (speaks) w.loaded.release(load);
    acc_to_smem(p, w.scores[turn.stage], row0, 0);
    tile::publish();
    __syncwarp();
    if (speaks) {
      tile::barrier_arrive(w.scored.full(turn));
      if constexpr (kDecays) w.decayed.release(turn);
    }
    load.next<kStages>();
    turn.next<kBuffers>();
  }
}

// One warpgroup: the state, and the output of every chunk. What a chunk adds to the state is summed
// by itself (`carry`), a block of channels after the other.
template <int K, bool kDecays>
__device__ void carry_state(const Tiles<K>& w, const CudaProblem<bf16>& p, const Maps& maps,
                            float* final_state, const Work& at) {
  constexpr int kOutputBarrier = 1, kBlock = TransposedState<K>::kWidth;
  static_assert(K / kBlock <= 2);
  const int warp = tile::warp_index() % 4;
  const bool speaks = tile::lane_index() == 0, stores = threadIdx.x % 128 == 0;
  const int64_t first = (int64_t{at.b} * p.H + at.h) * p.K * p.V + at.v0 + 16 * warp;
  const int columns = p.V - at.v0 - 16 * warp;  // of this warp that exist
  TransposedState<K> s;
  s.load(p.initial_state ? p.initial_state + first : nullptr, p.K, p.V, columns);
  Turn load, turn;
  for (int c = 0; c < at.chunks; ++c) {
    Frag<bf16, kBlock> state[K / kBlock];
#pragma unroll
    for (int i = 0; i < K / kBlock; ++i) state[i] = tile::to_frag<bf16>(s.s[i]);
    w.loaded.wait(load);
    const auto q = w.q[load.stage], k = w.k[load.stage];
    const auto values = tile::load_frag_t<bf16, kTokens>(w.v[load.stage], 0, 16 * warp);
    auto late_values = values;  // times e^{G_C - G}
    const SharedDecay<kTokens> decay = w.decay(turn);
    float total = 1.f;
    if constexpr (kDecays) {
      w.decayed.wait(turn);
      total = decay.total();
      scale_inner(late_values, decay.to_end());
    }
    Acc<kTokens> o;
    Acc<kBlock> added;  // to a block of the state, one after the other
    tile::wgmma_begin();
    tile::wgmma_abt<kFirst>(o, state[0], q, 0, 0);
    if constexpr (K > kBlock) tile::wgmma_abt(o, state[1], q, 0, kBlock);
    tile::wgmma_commit();
    tile::wgmma_ab<kFirst>(added, late_values, k, 0, 0);
    tile::wgmma_commit();
    tile::wgmma_wait<1>(o);
    if constexpr (kDecays) scale_cols(o, tile::load_cols<kTokens>(decay.from_start()));
    w.scored.wait(turn);
    tile::wgmma_begin(o);
    tile::wgmma_abt(o, values, w.scores[turn.stage], 0, 0);
    tile::wgmma_commit();
    tile::wgmma_wait<1>(added);
    linear::carry(s.s[0], total, added);
    if constexpr (K > kBlock) {
      tile::wgmma_begin(added);
      tile::wgmma_ab<kFirst>(added, late_values, k, 0, kBlock);
      tile::wgmma_commit();
      tile::wgmma_wait<1>(o);
    } else {
      tile::wgmma_wait<0>(o);
    }
    scale(o, p.scale);
    const auto out = w.o[c % 2];
    acc_to_smem_t(o, out, 0, 16 * warp);
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
      tma_store(maps.o, out, at.b, c * kTokens, at.h, at.v0);
      tile::tma_store_commit();
    }
    load.next<kStages>();
    turn.next<kBuffers>();
  }
  if (final_state) s.store(final_state + first, p.K, p.V, columns);
  if (stores) tile::tma_store_read<0>();
}

template <int K, bool kDecays>
__global__ void __launch_bounds__(kThreads, 1)
    scan(const __grid_constant__ Maps maps, const CudaProblem<bf16> p, float* final_state,
         const int slices) {
  if constexpr (tile::kHopper) {
    Arena arena(tile::dynamic_memory());
    const Tiles<K> w(arena);
    if (threadIdx.x == 0) {
      w.loaded.init(1, 8);  // the warps of both warpgroups that compute
      w.scored.init(4, 4);
      w.decayed.init(1, 8);
      tile::barriers_ready();
    }
    __syncthreads();
    const int slice = blockIdx.x % slices, h = blockIdx.x / slices % p.H;
    const Work at = {static_cast<int>(blockIdx.x / slices / p.H), h, h / p.group, slice * kSlice,
                     (p.documents.T + kTokens - 1) / kTokens};
    const int role = tile::warpgroup_index();
    if (role == 0) {
      tile::give_registers<40>();
      const int warp = tile::warp_index();
      if (warp == 0 && tile::lane_index() == 0) load_chunks(w, maps, at);
      if (kDecays && warp == 1) make_decays(w, p, at);
    } else if (role == 1) {
      tile::take_registers<232>();
      make_scores<K, kDecays>(w, at);
    } else {
      tile::take_registers<232>();
      carry_state<K, kDecays>(w, p, maps, final_state, at);
    }
  }
}

template <int K>
void launch_scan(const CudaProblem<bf16>& p, const Inputs<Linear>& x, const Outputs<Linear>& y) {
  const auto map_of = [](auto smem, const Tensor& t) {
    return tile::tensor_map<decltype(smem)>(dptr<const bf16>(t),
                                            {t.size(0), t.size(1), t.size(2), t.size(3)},
                                            {t.stride(0), t.stride(1), t.stride(2)});
  };
  using Keys = Smem<bf16, kTokens, K>;
  using Values = Smem<bf16, kTokens, kSlice>;
  const Maps maps = {map_of(Keys{}, x.q), map_of(Keys{}, x.k), map_of(Values{}, x.v),
                     map_of(Values{}, y.o)};
  Arena size;
  Tiles<K>{size};
  const int slices = static_cast<int>(ceil_div(p.V, kSlice));
  const bool decays = x.g || x.log_gamma;
  launch(decays ? scan<K, true> : scan<K, false>, int64_t{p.B} * p.H * slices, kThreads,
         size.used(), maps, p, dptr<float>(y.final_state), slices);
}

// TMA reads rows that begin at multiples of 16 bytes.
bool has_aligned_rows(const Tensor& t) {
  for (int i = 0; i < 3; ++i)
    if (t.size(i) > 1 && (t.stride(i) % 8 != 0 || t.stride(i) == 0)) return false;
  return t.stride(3) == 1 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}

}  // namespace

// In problem.cuh.
bool linear::hopper_forward(const Inputs<Linear>& x, const Options<Linear>& o,
                            const Outputs<Linear>& y) {
  if (x.q.dtype() != Dtype::bf16 || x.q.size(3) > 128 || o.normalize || o.cu_seqlens ||
      !tile::on_hopper(x.q.device())) {
    return false;
  }
  for (const Tensor& t : {x.q, x.k, x.v, y.o})
    if (t.numel() == 0 || !has_aligned_rows(t)) return false;
  const CudaProblem<bf16> p(x, o, Tensor());
  if (p.K <= 64) {
    launch_scan<64>(p, x, y);
  } else {
    launch_scan<128>(p, x, y);
  }
  return true;
}

}  // namespace weft::kernels
