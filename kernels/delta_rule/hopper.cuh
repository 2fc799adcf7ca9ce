// The scans of scan.cuh on Hopper, for bf16 and K up to 128: a warpgroup's products
// (wgmma) in place of a warp's, and tiles that come by TMA. Four warps hold 64 rows of S' in their
// accumulators; a fifth one loads pieces ahead. Every product has its left operand in registers:
// the state, or what was made of it.
//
// A tile has 64 rows of the tensor, whosever they are: the rows after a short piece belong to the
// next document, and are made zeros, since that may hold NaN. Those after a tensor's last row come
// as zeros.
#pragma once

#include "kernels/delta_rule/scan.cuh"

namespace weft::kernels::delta_rule {

struct ScanMaps {
  CUtensorMap q, k, k_end, value, inverse, scores, states;
};

template <int KP, bool kVector>
struct HopperTiles {
  static constexpr int kTileBytes = ((kVector ? 3 : 2) * KP + 4 * kChunk) * kChunk * 2;
  static constexpr int kStageBytes = kTileBytes + 2048;
  static constexpr int kOutBytes = kChunk * (kChunk + KP) * 2;
  static constexpr int kStages = std::min(4, (225 * 1024 - kOutBytes) / kStageBytes);
  static constexpr int kBytes = kStages * kStageBytes + kOutBytes + 1024;
  static_assert(kStages >= 2);

  Smem<bf16, kChunk, KP> q, k, k_end;
  Smem<bf16, kChunk, kChunk> value, inverse, inverse_rest, scores;
  Gate* gates;   // [64]
  float* total;  // [KP]

  __device__ explicit HopperTiles(int stage) {
    unsigned char* at = dynamic_memory() + stage * kStageBytes;
    const auto take = [&](auto& tile) {
      tile.data = reinterpret_cast<bf16*>(at);
      at += std::remove_reference_t<decltype(tile)>::bytes;
    };
    take(k);
    take(q);
    k_end = k;
    if constexpr (kVector) take(k_end);
    take(value);
    take(inverse);
    take(inverse_rest);
    take(scores);
    gates = reinterpret_cast<Gate*>(at);
    total = reinterpret_cast<float*>(at + kChunk * sizeof(Gate));
  }
  // Where U, O, R or dV go out, and states.
  __device__ static Smem<bf16, kChunk, kChunk> out() {
    return {reinterpret_cast<bf16*>(dynamic_memory() + kStages * kStageBytes)};
  }
  __device__ static Smem<bf16, kChunk, KP> kept() { return {out().data + kChunk * kChunk}; }
  __device__ static Ring<kStages> ring() {
    return {reinterpret_cast<Barrier*>(dynamic_memory() + kBytes - 1024)};
  }
};

// Bytes of global memory to shared memory by one thread; both ends and the count multiples of 16.
__device__ __forceinline__ void bulk_load(void* to, const void* from, int bytes, Barrier* full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(full))
      : "memory");
}

// The block's barriers; `total` beyond the channels that are loaded, which must not be NaN.
template <int KP, bool kVector>
__device__ __forceinline__ void start_ring() {
  using Tiles = HopperTiles<KP, kVector>;
  if (threadIdx.x == 0) {
    Tiles::ring().init(32, 4);
    barriers_ready();
  }
  for (int d = static_cast<int>(threadIdx.x); d < KP && kVector; d += 160) {
    for (int stage = 0; stage < Tiles::kStages; ++stage) Tiles(stage).total[d] = 0;
  }
  publish();
  __syncthreads();
}

// The loading warp.
template <int KP, bool kVector, bool kBackward>
__device__ __forceinline__ void load_pieces(const Scan<bf16>& a, const ScanMaps& maps,
                                            const Part& part) {
  using Tiles = HopperTiles<KP, kVector>;
  const auto ring = Tiles::ring();
  const int b = part.b, h = part.h, hk = h / a.group, lane = lane_index();
  Turn turn;
  for (int i = 0; i < part.pieces; ++i) {
    const Span s = part.span<kBackward>(a.grid, i);
    const Tiles x(turn.stage);
    ring.acquire(turn);
    int bytes = Tiles::kTileBytes + s.n * static_cast<int>(sizeof(Gate));
    const int64_t end = s.begin + s.n;
    const bool stored = kVector && (end % kChunk == 0 || end == a.grid.T);
    if (stored) bytes += a.state_pitch * 4;
    if (s.n < kChunk || (kVector && !stored)) {
      for (int r = s.n + lane; r < kChunk; r += 32) x.gates[r] = Gate{0.f, 0.f, 0.f, 0.f};
      if constexpr (kVector) {
        for (int d = lane; d < KP && !stored; d += 32) {
          double sum = 0;
          for (int r = 0; r < s.n && d < a.K; ++r) sum += a.g.at(b, s.begin + r, h)[d];
          x.total[d] = ex2(static_cast<float>(sum * 1.4426950408889634));
        }
      }
      publish();
    }
    Barrier* const full = ring.full(turn);
    if (lane > 0) {
      barrier_arrive(full);
    } else {
      barrier_arrive_expecting(full, bytes);
      const int t = static_cast<int>(s.begin);
      tma_load(x.k, maps.k, full, b, t, hk, 0);
      tma_load(x.q, maps.q, full, b, t, hk, 0);
      tma_load(x.value, maps.value, full, b, t, h, part.v0);
      tma_load(x.inverse, maps.inverse, full, b, t, h, 0);
      tma_load(x.inverse_rest, maps.inverse, full, b, t, h, kChunk);
      tma_load(x.scores, maps.scores, full, b, t, h, 0);
      if constexpr (kVector) tma_load(x.k_end, maps.k_end, full, b, t, hk, 0);
      bulk_load(x.gates, a.gates + a.grid.token(b, h, s.begin),
                s.n * static_cast<int>(sizeof(Gate)), full);
      if (stored) {
        const int64_t place = (int64_t{b} * a.grid.H + h) * a.grid.chunks + s.chunk;
        bulk_load(x.total, a.total + place * a.state_pitch, a.state_pitch * 4, full);
      }
    }
    turn.template next<Tiles::kStages>();
  }
}

// The state to [.., H, V, K], by one thread once all have written; the four warps call.
template <int KP, bool kVector>
__device__ __forceinline__ void keep_state(Acc<KP>& state, const CUtensorMap& map, int place, int h,
                                           int v0) {
  const auto kept = HopperTiles<KP, kVector>::kept();
  if (threadIdx.x == 0) tma_store_read<0>();
  named_sync(1, 128);
  acc_to_smem(state, kept, 16 * warp_index(), 0);
  publish();
  named_sync(1, 128);
  if (threadIdx.x == 0) {
    tma_store(map, kept, place, v0, h, 0);
    tma_store_commit();
  }
}

// The rows of the document after a piece that ends within its tiles become zeros; the four warps
// call.
template <int KP, bool kVector>
__device__ __forceinline__ void clear_next(const Scan<bf16>& a, const HopperTiles<KP, kVector>& x,
                                           const Span& s) {
  if (s.n == kChunk || s.begin + s.n == a.grid.T) return;
  const auto clear = [&](auto tile) {
    using Tile = decltype(tile);
    constexpr int kUnits = Tile::cols / Tile::unit_cols;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < (kChunk - s.n) * kUnits; i += 128) {
      unsigned char* const unit = reinterpret_cast<unsigned char*>(
          tile.ptr(s.n + i / kUnits, i % kUnits * Tile::unit_cols));
      *reinterpret_cast<uint4*>(unit) = make_uint4(0, 0, 0, 0);
    }
  };
  clear(x.q);
  clear(x.k);
  if constexpr (kVector) clear(x.k_end);
  clear(x.value);
  clear(x.inverse);
  clear(x.inverse_rest);
  clear(x.scores);
  publish();
  named_sync(1, 128);
}

// acc[., j] *= factor of token j, which get(gate) picks.
template <class F>
__device__ __forceinline__ void scale_tokens(Acc<kChunk>& acc, const Gate* gates, F&& get) {
#pragma unroll
  for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float by = get(gates[acc_col(j, i)]);
      acc.x[j][i] *= by;
      acc.x[j][i + 2] *= by;
    }
  }
}

template <int KP, bool kVector>
__global__ void __launch_bounds__(160, 1)
    hopper_forward(const __grid_constant__ Scan<bf16> a, const __grid_constant__ ScanMaps maps) {
  if constexpr (kHopper) {
    using Tiles = HopperTiles<KP, kVector>;
    const Part part(a);
    start_ring<KP, kVector>();
    if (warp_index() == 4) return load_pieces<KP, kVector, false>(a, maps, part);
    const int b = part.b, h = part.h, v0 = part.v0, v = part.v, column = part.column;
    const auto ring = Tiles::ring();
    Acc<KP> S;
    load_state(S, a.initial_state ? a.initial_state + part.state : nullptr, a.K, a.V, v);
    Turn turn;
    for (int i = 0; i < part.pieces; ++i) {
      const Span s = part.span<false>(a.grid, i);
      const Tiles x(turn.stage);
      if (a.states && !s.first) {
        keep_state<KP, kVector>(S, maps.states, b * (a.grid.chunks - 1) + s.chunk - 1, h, v0);
      }
      const auto left = to_frag<bf16>(S);
      ring.wait(turn);
      clear_next(a, x, s);
      Acc<kChunk> missed, O, U;
      wgmma_begin();
      wgmma_abt<kFirst>(missed, left, x.k, 0, 0);
      wgmma_commit();
      wgmma_abt<kFirst>(O, left, x.q, 0, 0);
      wgmma_commit();
      const auto values = load_frag_t<bf16, kChunk>(x.value, 0, column);
      wgmma_wait<1>(missed);
      const Acc<kChunk> V = from_frag(values);
#pragma unroll
      for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Gate& gate = x.gates[acc_col(j, i)];
          const float up = kVector ? 1.f : gate.up;
#pragma unroll
          for (int r = i; r < 4; r += 2) {
            missed.x[j][r] = gate.beta * fmaf(-up, missed.x[j][r], V.x[j][r]);
          }
        }
      }
      const auto erasing = to_frag<bf16>(missed);
      wgmma_begin();
      wgmma_abt<kFirst>(U, erasing, x.inverse, 0, 0);
      wgmma_abt(U, erasing, x.inverse_rest, 0, 0);
      wgmma_commit();
      const auto rest = rest_of(missed, erasing);
      wgmma_begin();
      wgmma_abt(U, rest, x.inverse, 0, 0);
      wgmma_commit();
      wgmma_wait<2>(O);
      if constexpr (!kVector) {
        scale_tokens(O, x.gates, [&](const Gate& gate) { return gate.up * a.scale; });
      }
      decay_state(S, kVector ? x.total : nullptr, x.gates[s.n - 1].up);
      wgmma_wait<0>(U);
      const auto written = to_frag<bf16>(U);
      Acc<kChunk> faded = U;
      if (!kVector || s.n < kChunk) {
        scale_tokens(faded, x.gates, [](const Gate& gate) { return gate.down; });
      }
      const auto ending = to_frag<bf16>(faded);
      wgmma_begin(S, O);
      wgmma_ab(S, ending, x.k_end, 0, 0);
      wgmma_commit();
      wgmma_abt(O, written, x.scores, 0, 0);
      wgmma_commit();
      const int64_t place = a.place(b, s.begin, h, a.V) + v0, stride = int64_t{a.grid.H} * a.V;
      if (a.written) {
        store_columns(U, Tiles::out(), column, a.written + a.place(b, s.begin, h, a.row_pitch) + v0,
                      int64_t{a.grid.H} * a.row_pitch, s.n, a.V - v0);
      }
      wgmma_wait<0>(S, O);
      __syncwarp();  // all lanes have read the stage
      if (lane_index() == 0) ring.release(turn);
      store_columns(O, Tiles::out(), column, a.o + place, stride, s.n, a.V - v0);
      turn.template next<Tiles::kStages>();
    }
    if (a.final_state) store_state(S, a.final_state + part.state, a.K, a.V, v);
    if (threadIdx.x == 0) tma_store_read<0>();
  }
}

template <int KP, bool kVector>
__global__ void __launch_bounds__(160, 1)
    hopper_backward(const __grid_constant__ Scan<bf16> a, const __grid_constant__ ScanMaps maps) {
  if constexpr (kHopper) {
    using Tiles = HopperTiles<KP, kVector>;
    const Part part(a);
    start_ring<KP, kVector>();
    if (warp_index() == 4) return load_pieces<KP, kVector, true>(a, maps, part);
    const int b = part.b, h = part.h, v0 = part.v0, v = part.v, column = part.column;
    const auto ring = Tiles::ring();
    Acc<KP> dS;
    load_state(dS, a.dfinal_state ? a.dfinal_state + part.state : nullptr, a.K, a.V, v);
    Turn turn;
    for (int i = 0; i < part.pieces; ++i) {
      const Span s = part.span<true>(a.grid, i);
      const Tiles x(turn.stage);
      if (!s.last) {
        keep_state<KP, kVector>(dS, maps.states, b * (a.grid.chunks - 1) + s.chunk, h, v0);
      }
      const auto left = to_frag<bf16>(dS);
      ring.wait(turn);
      clear_next(a, x, s);
      const auto dO = load_frag_t<bf16, kChunk>(x.value, 0, column);
      Acc<kChunk> dU, through, R;
      wgmma_begin();
      wgmma_abt<kFirst>(through, left, x.k_end, 0, 0);
      wgmma_commit();
      wgmma_ab<kFirst>(dU, dO, x.scores, 0, 0);
      wgmma_commit();
      Acc<kChunk> faded = from_frag(dO);
      if constexpr (!kVector) {
        scale_tokens(faded, x.gates, [&](const Gate& gate) { return gate.up * a.scale; });
      }
      const auto reading = to_frag<bf16>(faded);
      wgmma_wait<0>(through, dU);
#pragma unroll
      for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float down = x.gates[acc_col(j, i)].down;
          dU.x[j][i] = fmaf(down, through.x[j][i], dU.x[j][i]);
          dU.x[j][i + 2] = fmaf(down, through.x[j][i + 2], dU.x[j][i + 2]);
        }
      }
      const auto writing = to_frag<bf16>(dU);
      wgmma_begin();
      wgmma_ab<kFirst>(R, writing, x.inverse, 0, 0);
      wgmma_ab(R, writing, x.inverse_rest, 0, 0);
      wgmma_commit();
      const auto rest = rest_of(dU, writing);
      wgmma_begin();
      wgmma_ab(R, rest, x.inverse, 0, 0);
      wgmma_commit();
      decay_state(dS, kVector ? x.total : nullptr, x.gates[s.n - 1].up);
      wgmma_wait<0>(R);
      Acc<kChunk> erased = R;
      scale_tokens(erased, x.gates, [](const Gate& gate) { return gate.beta; });
      faded = erased;
      scale_tokens(faded, x.gates, [](const Gate& gate) { return kVector ? -1.f : -gate.up; });
      const auto erasing = to_frag<bf16>(faded);
      wgmma_begin(dS);
      wgmma_ab(dS, reading, x.q, 0, 0);
      wgmma_ab(dS, erasing, x.k, 0, 0);
      wgmma_commit();
      const int64_t place = a.place(b, s.begin, h, a.V) + v0, stride = int64_t{a.grid.H} * a.V;
      store_columns(R, Tiles::out(), column, a.erased + a.place(b, s.begin, h, a.row_pitch) + v0,
                    int64_t{a.grid.H} * a.row_pitch, s.n, a.V - v0);
      if (a.dv) store_columns(erased, Tiles::out(), column, a.dv + place, stride, s.n, a.V - v0);
      wgmma_wait<0>(dS);
      __syncwarp();  // all lanes have read the stage
      if (lane_index() == 0) ring.release(turn);
      turn.template next<Tiles::kStages>();
    }
    if (a.dinitial_state) store_state(dS, a.dinitial_state + part.state, a.K, a.V, v);
    if (threadIdx.x == 0) tma_store_read<0>();
  }
}

// --- Host ----------------------------------------------------------------------------------------

// Runs one direction; `value` is v or dout.
template <class Real, int KP, bool kVector, bool kBackward>
void run_scan(const Scan<Real>& a) {
  const Heads<const Real>& value = kBackward ? a.dout : a.v;
  const int64_t blocks = int64_t{a.grid.count} * a.grid.H * ceil_div(a.V, kColumns);
  if constexpr (std::is_same_v<Real, tile::bf16> && KP <= 128) {
    if (cuda_arch() >= 90) {
      const auto& grid = a.grid;
      const int64_t key_heads = grid.H / a.group;
      using Keys = Smem<bf16, kChunk, KP>;
      using Square = Smem<bf16, kChunk, kChunk>;
      const auto of_heads = [&]<class Tile>(Tile, const Heads<const Real>& x, int64_t heads,
                                            int64_t width) {
        const auto stride = [](int64_t n) { return n ? n : 8; };  // of a size of 1: any legal one
        return tensor_map<Tile>(x.data, {grid.B, grid.T, heads, width},
                                {stride(x.row), stride(x.token), stride(x.head)});
      };
      const auto of_tokens = [&](const Real* x, int64_t width) {
        return tensor_map<Square>(x, {grid.B, grid.T, grid.H, width},
                                  {grid.H * grid.T * width, width, grid.T * width});
      };
      Real* const states = kBackward ? a.dstates : a.states;
      ScanMaps maps{of_heads(Keys{}, a.q, key_heads, a.K),
                    of_heads(Keys{}, a.k, key_heads, a.K),
                    kVector ? of_heads(Keys{}, a.k_end, key_heads, a.K) : CUtensorMap{},
                    of_heads(Square{}, value, grid.H, a.V),
                    of_tokens(a.inverse, kInverseWidth<Real>),
                    of_tokens(a.scores, kChunk),
                    CUtensorMap{}};
      if (states) {
        const int64_t width = a.state_pitch, size = width * a.V;
        maps.states =
            tensor_map<Keys>(states, {int64_t{grid.B} * (grid.chunks - 1), a.V, grid.H, a.K},
                             {grid.H * size, width, size});
      }
      constexpr int kBytes = HopperTiles<KP, kVector>::kBytes;
      if constexpr (kBackward) {
        launch(hopper_backward<KP, kVector>, blocks, 160, kBytes, a, maps);
      } else {
        launch(hopper_forward<KP, kVector>, blocks, 160, kBytes, a, maps);
      }
      return;
    }
  }
  using Tiles = ScanTiles<Real, KP, kVector>;
  constexpr int kBytes = Tiles::kStages * Tiles::kBytes;
  if constexpr (kBackward) {
    launch(scan_backward<Real, KP, kVector>, blocks, 128, kBytes, a);
  } else {
    launch(scan_forward<Real, KP, kVector>, blocks, 128, kBytes, a);
  }
}

}  // namespace weft::kernels::delta_rule
