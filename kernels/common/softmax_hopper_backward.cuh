// The backward loops of softmax attention on sm_90a, as softmax_backward.cuh and with the means of
// softmax_hopper.cuh: a producer warp, rings, two warpgroups. One kernel owns 128 keys and walks tiles of
// 64 rows, the other owns 128 rows and walks tiles of 64 keys.
#pragma once

#include "kernels/common/softmax_backward.cuh"
#include "kernels/common/softmax_hopper.cuh"

namespace weft::kernels::softmax {

// Operands a and b: k and v owned and q and dout met, or the reverse.
template <int D>
struct HopperBackward {
  static constexpr int N = 64, kStages = 2;
  using Own = Smem<bf16, 64, D>;
  using Met = Smem<bf16, N, D>;
  Tiles<Own, 2 * kGroups> own_a, own_b;  // of this unit and of the next
  Tiles<Met, kStages> met_a, met_b;
  float *lse, *delta;  // [kStages, N] of the rows met; lse in powers of two
  Ring<2> own_ring;
  Ring<kStages> met_ring;
  __host__ __device__ static HopperBackward carve(Arena& arena) {
    HopperBackward s;
    s.own_a = arena.carve<Tiles<Own, 2 * kGroups>>();
    s.own_b = arena.carve<Tiles<Own, 2 * kGroups>>();
    s.met_a = arena.carve<Tiles<Met, kStages>>();
    s.met_b = arena.carve<Tiles<Met, kStages>>();
    s.lse = arena.carve<float>(kStages * N);
    s.delta = arena.carve<float>(kStages * N);
    s.own_ring = arena.carve<Ring<2>>();
    s.met_ring = arena.carve<Ring<kStages>>();
    return s;
  }
  static int bytes() {
    Arena count;
    carve(count);
    return count.used();
  }
};

struct BackwardMaps {
  CUtensorMap q, dout, k, v, da, db;  // da, db: the results, dk and dv or dq
};

template <int D>
__device__ __forceinline__ void load_own(const HopperBackward<D>& s, Turn& turn,
                                         const CUtensorMap& a, const CUtensorMap& b_map, int b,
                                         int own, int h) {
  using Own = typename HopperBackward<D>::Own;
  s.own_ring.acquire(turn, 2 * kGroups * Own::bytes);
  for (int g = 0; g < kGroups; ++g) {
    const int first = own * kOwn + 64 * g;
    tile::tma_load(s.own_a[turn.stage * kGroups + g], a, s.own_ring.full(turn), b, first, h, 0);
    tile::tma_load(s.own_b[turn.stage * kGroups + g], b_map, s.own_ring.full(turn), b, first, h, 0);
  }
  turn.next<2>();
}

// A warpgroup's result leaves through its part of the tile that it owned.
template <int D>
__device__ __forceinline__ void send(Acc<D>& acc, float factor, Smem<bf16, 64, D> through,
                                     int row0) {
  tile::scale(acc, factor);
  tile::acc_to_smem(acc, through, row0, 0);
}

// --- dk and dv -----------------------------------------------------------------------------------

// One warp: its first lane copies tiles, all bring lse and delta.
template <int D, class Sight>
__device__ __forceinline__ void load_rows_met(const HopperBackward<D>& s, const Call<bf16>& x,
                                              const Sight& sight, const Schedule& schedule,
                                              const BackwardMaps& maps, const Incoming<bf16>& in) {
  using Shape = HopperBackward<D>;
  constexpr int N = Shape::N;
  const int lane = tile::lane_index();
  Turn own_turn, turn;
  for_units(schedule, x.H / x.group, [&](int own, int hk, int b) {
    if (lane == 0) load_own(s, own_turn, maps.k, maps.v, b, own, hk);
    for (int h = hk * x.group; h < (hk + 1) * x.group; ++h) {
      auto walk = sight.template query_tiles<kOwn, N>(h, own);
      for (Visit n = walk.next(); n; n = walk.next()) {
        const int t0 = n.tile * N, rows = x.T - t0;
        const int64_t at = (int64_t{b} * x.H + h) * x.T + t0;
        float lse[N / 32], delta[N / 32];
#pragma unroll
        for (int i = 0; i < N / 32; ++i) {
          const int r = lane + 32 * i;
          lse[i] = r < rows ? live_lse(in.lse[at + r]) * tile::kLog2e : INFINITY;
          delta[i] = r < rows ? in.delta[at + r] : 0.f;
        }
        s.met_ring.acquire(turn);
#pragma unroll
        for (int i = 0; i < N / 32; ++i) {
          s.lse[turn.stage * N + lane + 32 * i] = lse[i];
          s.delta[turn.stage * N + lane + 32 * i] = delta[i];
        }
        __syncwarp();
        if (lane == 0) {
          tile::barrier_arrive_expecting(s.met_ring.full(turn), 2 * Shape::Met::bytes);
          tile::tma_load(s.met_a[turn.stage], maps.q, s.met_ring.full(turn), b, t0, h, 0);
          tile::tma_load(s.met_b[turn.stage], maps.dout, s.met_ring.full(turn), b, t0, h, 0);
        }
        turn.next<Shape::kStages>();
      }
    }
  });
}

// Scores and their gradients are held transposed, [keys, rows]. The gradient of the scores is made while
// their P runs in the product of dv.
template <int D, class Sight>
__device__ __forceinline__ void gather_keys(const HopperBackward<D>& s, const Call<bf16>& x,
                                            const Sight& sight, const Schedule& schedule,
                                            const BackwardMaps& maps) {
  using Shape = HopperBackward<D>;
  constexpr int N = Shape::N;
  const int group = tile::warpgroup_index() - 1, row0 = 16 * (tile::warp_index() % 4);
  const float unit = x.scale * tile::kLog2e;
  Turn own_turn, turn;
  for_units(schedule, x.H / x.group, [&](int own, int hk, int b) {
    const int j0 = own * kOwn + 64 * group;
    const int j[2] = {j0 + row0 + tile::acc_row(0), j0 + row0 + tile::acc_row(2)};
    const Range range[2] = {sight.queries(j[0]), sight.queries(j[1])};
    const auto k = s.own_a[own_turn.stage * kGroups + group];
    const auto v = s.own_b[own_turn.stage * kGroups + group];
    Acc<D> dk, dv;
    tile::fill(dk, 0.f);
    tile::fill(dv, 0.f);
    s.own_ring.wait(own_turn);
    for (int h = hk * x.group; h < (hk + 1) * x.group; ++h) {
      auto walk = sight.template query_tiles<kOwn, N>(h, own);
      for (Visit n = walk.next(); n; n = walk.next()) {
        const auto q = s.met_a[turn.stage], dout = s.met_b[turn.stage];
        const float *const lse = s.lse + turn.stage * N, *const delta = s.delta + turn.stage * N;
        Acc<N> p, d;
        s.met_ring.wait(turn);
        tile::wgmma_begin();
        tile::wgmma_abt<D, tile::kFirst>(p, k, 0, 0, q, 0, 0);
        tile::wgmma_commit();
        tile::wgmma_abt<D, tile::kFirst>(d, v, 0, 0, dout, 0, 0);
        tile::wgmma_commit();
        tile::wgmma_wait<1>(p);
        hide(p, n, range, n.tile * N, [&](int half, int t) { return sight.sees(h, t, j[half]); });
        each_half(p, [&](int, int c, float& e) { e = tile::ex2(fmaf(e, unit, -lse[c])); });
        const auto p_frag = tile::to_frag<bf16>(p);
        tile::wgmma_begin(dv);
        tile::wgmma_ab(dv, p_frag, dout, 0, 0);
        tile::wgmma_commit();
        tile::wgmma_wait<1>(d);
#pragma unroll
        for (int col = 0; col < N / 8; ++col) {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            d.x[col][i] = p.x[col][i] * (d.x[col][i] - delta[tile::acc_col(col, i)]);
        }
        const auto d_frag = tile::to_frag<bf16>(d);
        tile::wgmma_begin(dk);
        tile::wgmma_ab(dk, d_frag, q, 0, 0);
        tile::wgmma_commit();
        tile::wgmma_wait<0>(dk, dv);
        if (tile::lane_index() == 0) s.met_ring.release(turn);
        turn.next<Shape::kStages>();
      }
    }
    tile::named_sync(1 + group, 128);  // no warp reads k or v any more
    send(dk, x.scale, k, row0);
    send(dv, 1.f, v, row0);
    tile::publish();
    tile::named_sync(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
      tile::tma_store(maps.da, k, b, j0, hk, 0);
      tile::tma_store(maps.db, v, b, j0, hk, 0);
      tile::tma_store_commit();
      tile::tma_store_read<0>();
      s.own_ring.release(own_turn);
    }
    own_turn.next<2>();
  });
}

template <int D>
__device__ __forceinline__ void init_rings(const HopperBackward<D>& s) {
  if (threadIdx.x == 0) {
    s.own_ring.init(1, kGroups);
    s.met_ring.init(1, 4 * kGroups);
    tile::barriers_ready();
  }
  __syncthreads();
}

template <int D, class Sight>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_key_gradients(const Call<bf16> x, const Sight sight, const Schedule schedule,
                         const __grid_constant__ BackwardMaps maps, const Incoming<bf16> in) {
  if constexpr (kHopper) {
    Arena arena(tile::dynamic_memory());
    const auto s = HopperBackward<D>::carve(arena);
    init_rings(s);
    if (tile::warpgroup_index() == 0) {
      tile::give_registers<D == 128 ? kProducerRegisters : kProducerRegisters + 16>();
      if (threadIdx.x < 32) load_rows_met(s, x, sight, schedule, maps, in);
    } else {
      tile::take_registers<D == 128 ? kConsumerRegisters : kConsumerRegisters - 8>();
      gather_keys(s, x, sight, schedule, maps);
    }
  }
}

// --- dq ------------------------------------------------------------------------------------------

template <int D, class Sight>
__device__ __forceinline__ void load_keys_met(const HopperBackward<D>& s, const Call<bf16>& x,
                                              const Sight& sight, const Schedule& schedule,
                                              const BackwardMaps& maps) {
  using Shape = HopperBackward<D>;
  Turn own_turn, turn;
  for_units(schedule, x.H, [&](int own, int h, int b) {
    load_own(s, own_turn, maps.q, maps.dout, b, own, h);
    auto walk = sight.template key_tiles<kOwn, Shape::N>(h, own);
    for (Visit n = walk.next(); n; n = walk.next()) {
      const int j0 = n.tile * Shape::N, hk = h / x.group;
      s.met_ring.acquire(turn, 2 * Shape::Met::bytes);
      tile::tma_load(s.met_a[turn.stage], maps.k, s.met_ring.full(turn), b, j0, hk, 0);
      tile::tma_load(s.met_b[turn.stage], maps.v, s.met_ring.full(turn), b, j0, hk, 0);
      turn.next<Shape::kStages>();
    }
  });
}

template <int D, class Sight>
__device__ __forceinline__ void gather_queries(const HopperBackward<D>& s, const Call<bf16>& x,
                                               const Sight& sight, const Schedule& schedule,
                                               const BackwardMaps& maps, const Incoming<bf16>& in) {
  using Shape = HopperBackward<D>;
  constexpr int N = Shape::N;
  const int group = tile::warpgroup_index() - 1, row0 = 16 * (tile::warp_index() % 4);
  const bool one_lane = tile::lane_index() == 0;
  const float unit = x.scale * tile::kLog2e;
  Turn own_turn, turn;
  for_units(schedule, x.H, [&](int own, int h, int b) {
    const int t0 = own * kOwn + 64 * group;
    const int t[2] = {t0 + row0 + tile::acc_row(0), t0 + row0 + tile::acc_row(2)};
    const Range range[2] = {sight.keys(t[0]), sight.keys(t[1])};
    float lse[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = (int64_t{b} * x.H + h) * x.T + t[half];
      lse[half] = t[half] < x.T ? live_lse(in.lse[at]) * tile::kLog2e : INFINITY;
      delta[half] = t[half] < x.T ? in.delta[at] : 0.f;
    }
    const auto q = s.own_a[own_turn.stage * kGroups + group],
               dout = s.own_b[own_turn.stage * kGroups + group];
    Acc<D> dq;
    tile::fill(dq, 0.f);
    tile::Frag<bf16, N> d_frag;
    Turn before = turn;
    bool under_way = false;
    s.own_ring.wait(own_turn);
    auto walk = sight.template key_tiles<kOwn, N>(h, own);
    for (Visit n = walk.next(); n; n = walk.next()) {
      Acc<N> p, d;
      s.met_ring.wait(turn);
      tile::wgmma_begin();
      tile::wgmma_abt<D, tile::kFirst>(p, q, 0, 0, s.met_a[turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_abt<D, tile::kFirst>(d, dout, 0, 0, s.met_b[turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_wait<1>(p, dq);
      if (under_way && one_lane) s.met_ring.release(before);
      hide(p, n, range, n.tile * N, [&](int half, int j) { return sight.sees(h, t[half], j); });
      each_half(p, [&](int half, int, float& e) { e = tile::ex2(fmaf(e, unit, -lse[half])); });
      tile::wgmma_wait<0>(d);
#pragma unroll
      for (int col = 0; col < N / 8; ++col) {
#pragma unroll
        for (int i = 0; i < 4; ++i) d.x[col][i] = p.x[col][i] * (d.x[col][i] - delta[i / 2]);
      }
      d_frag = tile::to_frag<bf16>(d);
      tile::wgmma_begin(dq);
      tile::wgmma_ab(dq, d_frag, s.met_a[turn.stage], 0, 0);
      tile::wgmma_commit();
      under_way = true;
      before = turn;
      turn.next<Shape::kStages>();
    }
    tile::wgmma_wait<0>(dq);
    if (under_way && one_lane) s.met_ring.release(before);
    tile::named_sync(1 + group, 128);  // no warp reads q any more
    send(dq, x.scale, q, row0);
    tile::publish();
    tile::named_sync(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
      tile::tma_store(maps.da, q, b, t0, h, 0);
      tile::tma_store_commit();
      tile::tma_store_read<0>();
      s.own_ring.release(own_turn);
    }
    own_turn.next<2>();
  });
}

template <int D, class Sight>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_query_gradients(const Call<bf16> x, const Sight sight, const Schedule schedule,
                           const __grid_constant__ BackwardMaps maps, const Incoming<bf16> in) {
  if constexpr (kHopper) {
    Arena arena(tile::dynamic_memory());
    const auto s = HopperBackward<D>::carve(arena);
    init_rings(s);
    if (tile::warpgroup_index() == 0) {
      tile::give_registers<kProducerRegisters>();
      if (threadIdx.x == 0) load_keys_met(s, x, sight, schedule, maps);
    } else {
      tile::take_registers<kConsumerRegisters>();
      gather_queries(s, x, sight, schedule, maps, in);
    }
  }
}

// --- The host's side -----------------------------------------------------------------------------

// Tiles of 64 rows serve on either side of both kernels.
template <int D>
BackwardMaps backward_maps(const Call<bf16>& x, const Incoming<bf16>& in, const Heads<bf16>& da,
                           const Heads<bf16>& db, int64_t tokens, int64_t heads) {
  using Tile = Smem<bf16, 64, D>;
  const int64_t key_heads = x.H / x.group;
  BackwardMaps maps{map_of<Tile>(x.q, x.B, x.T, x.H),       map_of<Tile>(in.dout, x.B, x.T, x.H),
                    map_of<Tile>(x.k, x.B, x.S, key_heads), map_of<Tile>(x.v, x.B, x.S, key_heads),
                    map_of<Tile>(da, x.B, tokens, heads),   {}};
  maps.db = db.data ? map_of<Tile>(db, x.B, tokens, heads) : maps.da;
  return maps;
}

template <int D, class Sight>
void run_hopper_key_gradients(const Call<bf16>& x, const Sight& sight, const Incoming<bf16>& in,
                              const Heads<bf16>& dk, const Heads<bf16>& dv) {
  const int64_t heads = x.H / x.group;
  const Schedule schedule = schedule_of(x.S, x.B * heads, int64_t{x.T} * D * 4 * x.group, false);
  launch(hopper_key_gradients<D, Sight>, blocks_of(schedule), kHopperThreads,
         HopperBackward<D>::bytes(), x, sight, schedule,
         backward_maps<D>(x, in, dk, dv, x.S, heads), in);
}
template <int D, class Sight>
void run_hopper_query_gradients(const Call<bf16>& x, const Sight& sight, const Incoming<bf16>& in,
                                const Heads<bf16>& dq) {
  const Schedule schedule =
      schedule_of(x.T, int64_t{x.B} * x.H, int64_t{x.S} * D * 4 / x.group, true);
  launch(hopper_query_gradients<D, Sight>, blocks_of(schedule), kHopperThreads,
         HopperBackward<D>::bytes(), x, sight, schedule, backward_maps<D>(x, in, dq, {}, x.T, x.H),
         in);
}

}  // namespace weft::kernels::softmax
