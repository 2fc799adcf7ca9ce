// The backward loops of softmax attention on sm_90a: those of backward.cuh with the means
// of hopper.cuh. One kernel owns 128 keys and walks tiles of rows, the other owns 128 rows
// and walks tiles of keys.
#pragma once

#include "kernels/softmax/backward.cuh"
#include "kernels/softmax/hopper.cuh"

namespace weft::kernels::softmax {

// Operands a and b: k and v owned and q and dout met, or the reverse.
template <int D>
struct HopperBackward {
  static constexpr int N = backward_tile(D), kStages = 2;
  using Own = Smem<bf16, 64, D>;
  using Met = Smem<bf16, N, D>;
  Tiles<Own, 2 * kGroups> own_a, own_b;  // of this unit and of the next; results leave through them
  Tiles<Met, kStages> met_a, met_b;
  float *lse, *delta;  // [kStages, N] of the rows met; lse in powers of two
  Ring<2> own_ring;
  Ring<kStages> met_ring;
  int* unit;        // [2] what the stages of own_ring hold
  uint32_t* marks;  // [kGroups, kMarks]
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
    s.unit = arena.carve<int>(2);
    s.marks = arena.carve<uint32_t>(kGroups * kMarks);
    return s;
  }
  static int bytes() {
    Arena count;
    carve(count);
    return count.used();
  }
};

static __global__ void __launch_bounds__(256)
    pad_rows(const float* lse, const float* delta, const PaddedRows to, int64_t count, int T) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= count) return;
  const int t = static_cast<int>(i % to.stride);
  const int64_t from = i / to.stride * T + t;
  to.lse[i] = t < T ? live_lse(lse[from]) * tile::kLog2e : INFINITY;
  to.delta[i] = t < T ? delta[from] : 0.f;
}

struct BackwardMaps {
  CUtensorMap own_a, own_b, met_a, met_b, da, db;  // da, db: the results, dk and dv or dq
};

// One thread: the operands of unit i, or word that there is none.
template <int D>
__device__ __forceinline__ void load_own(const HopperBackward<D>& s, Turn& turn, int i,
                                         const BackwardMaps& maps, int own, int h, int b) {
  using Own = typename HopperBackward<D>::Own;
  s.own_ring.acquire(turn);
  s.unit[turn.stage] = i;
  if (own < 0) return tile::barrier_arrive(s.own_ring.full(turn));
  tile::barrier_arrive_expecting(s.own_ring.full(turn), 2 * kGroups * Own::bytes);
  for (int g = 0; g < kGroups; ++g) {
    const int first = own * kOwn + 64 * g, at = turn.stage * kGroups + g;
    tile::tma_load(s.own_a[at], maps.own_a, s.own_ring.full(turn), b, first, h, 0);
    tile::tma_load(s.own_b[at], maps.own_b, s.own_ring.full(turn), b, first, h, 0);
  }
  turn.next<2>();
}
template <int D>
__device__ __forceinline__ void load_met(const HopperBackward<D>& s, Turn turn,
                                         const BackwardMaps& maps, int first, int h, int b,
                                         int more_bytes = 0) {
  tile::barrier_arrive_expecting(s.met_ring.full(turn),
                                 2 * HopperBackward<D>::Met::bytes + more_bytes);
  tile::tma_load(s.met_a[turn.stage], maps.met_a, s.met_ring.full(turn), b, first, h, 0);
  tile::tma_load(s.met_b[turn.stage], maps.met_b, s.met_ring.full(turn), b, first, h, 0);
}

// A warpgroup's results leave through its part of the tiles that it owned; `broken` ones are noted.
template <int D, class Out, class... More>
__device__ __forceinline__ void send(const HopperBackward<D>& s, const Schedule& schedule,
                                     Turn turn, int group, bool broken, Out&& write,
                                     const More&... store) {
  broken = tile::named_any(1 + group, 128, broken);  // no warp reads the tiles any more
  write();
  tile::publish();
  tile::named_sync(1 + group, 128);
  if (threadIdx.x % 128 == 0) {
    if (broken) schedule.note(s.unit[turn.stage]);
    (store(), ...);
    tile::tma_store_commit();
    tile::tma_store_read<0>();
    s.own_ring.release(turn);
  }
}

// --- dk and dv -----------------------------------------------------------------------------------

// One thread.
template <bool kCare, int D, class Mask>
__device__ __forceinline__ void load_rows_met(const HopperBackward<D>& s, const Call<bf16>& x,
                                              const Mask& mask, const Schedule& schedule,
                                              const BackwardMaps& maps, const PaddedRows& rows) {
  using Shape = HopperBackward<D>;
  constexpr int N = Shape::N;
  const int key_heads = x.H / x.group;
  Turn own_turn, turn;
  for (int i = schedule.first<kCare>();; i = schedule.next<kCare>(i)) {
    const int2 unit = schedule.unit(i);
    const int hk = unit.y % key_heads, b = unit.y / key_heads;
    load_own(s, own_turn, i, maps, unit.x, hk, b);
    if (unit.x < 0) return;
    for (int h = hk * x.group; h < (hk + 1) * x.group; ++h) {
      auto walk = mask.template query_tiles<kOwn, N>(b, h, unit.x);
      for (Visit n = walk.next(); n; n = walk.next()) {
        const int64_t at = (int64_t{b} * x.H + h) * rows.stride + n.tile * N;
        s.met_ring.acquire(turn);
        load_met(s, turn, maps, n.tile * N, h, b, 2 * N * 4);
        tile::bulk_load(s.lse + turn.stage * N, rows.lse + at, N, s.met_ring.full(turn));
        tile::bulk_load(s.delta + turn.stage * N, rows.delta + at, N, s.met_ring.full(turn));
        turn.next<Shape::kStages>();
      }
    }
  }
}

// Scores and their gradients are held transposed, [keys, rows]. Where registers allow no more than
// 64 rows at a time, the gradient of the scores is made while their P runs in the product of dv.
template <bool kCare, int D, class Mask>
__device__ __forceinline__ void gather_keys(const HopperBackward<D>& s, const Call<bf16>& x,
                                            const Mask& mask, const Schedule& schedule,
                                            const BackwardMaps& maps,
                                            const Heads<const bf16>& dout_rows) {
  using Shape = HopperBackward<D>;
  constexpr int N = Shape::N;
  const int group = tile::warpgroup_index() - 1, row0 = 16 * (tile::warp_index() % 4);
  const int key_heads = x.H / x.group;
  const float unit_of_score = x.scale * tile::kLog2e;
  Turn own_turn, turn;
  for (;; own_turn.next<2>()) {
    s.own_ring.wait(own_turn);
    const int2 unit = schedule.unit(uniform(s.unit[own_turn.stage]));
    if (unit.x < 0) return;
    const int hk = unit.y % key_heads, b = unit.y / key_heads, j0 = unit.x * kOwn + 64 * group;
    const int j[2] = {j0 + row0 + tile::acc_row(0), j0 + row0 + tile::acc_row(2)};
    const Range range[2] = {mask.queries(j[0]), mask.queries(j[1])};
    const Bounds bounds = mask.bounds_of_keys(j0, 64);
    const auto k = s.own_a[own_turn.stage * kGroups + group];
    const auto v = s.own_b[own_turn.stage * kGroups + group];
    Acc<D> dk, dv;
    tile::fill(dk, 0.f);
    tile::fill(dv, 0.f);
    for (int h = hk * x.group; h < (hk + 1) * x.group; ++h) {
      auto walk = mask.template query_tiles<kOwn, N>(b, h, unit.x);
      for (Visit n = walk.next(); n; n = walk.next()) {
        const int t0 = n.tile * N;
        if (!(n.uses >> group & 1) || !bounds.meets(t0, N)) {
          pass(s.met_ring, turn);
          continue;
        }
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
        if constexpr (kCare) tile::wgmma_wait<0>(d);
        hide(p, bounds.cuts(t0, N), n.fine >> group & 1, range, t0,
             [&](int half, int t) { return mask.sees(b, h, t, j[half]); });
        each_half(p, [&](int, int c, float& e) { e = tile::ex2(fmaf(e, unit_of_score, -lse[c])); });
        const bool mends = n.fine || mask.bounds_of_keys(unit.x * kOwn, kOwn).cuts(t0, N);
        const auto mend = [&](Acc<N>& weights) {
          mend_weights(weights, n.fine >> group & 1, range, t0, s.marks + group * kMarks,
                       [&](int half, int t) { return mask.sees(b, h, t, j[half]); });
        };
        if (kCare && mends) {
          uint32_t* const marks = s.marks + group * kMarks;
          mend_in_group(group, marks, false, q, x.q.at(b, t0, h), x.q.token, x.T - t0, x.q.width);
          mend_in_group(group, marks, true, dout, dout_rows.at(b, t0, h), dout_rows.token, x.T - t0,
                        dout_rows.width);
          mend(p);
        }
        const auto gradient = [&] {
#pragma unroll
          for (int col = 0; col < N / 8; ++col) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
              d.x[col][i] = p.x[col][i] * (d.x[col][i] - delta[tile::acc_col(col, i)]);
          }
          if (kCare && mends) mend(d);
          return tile::to_frag<bf16>(d);
        };
        if constexpr (N == 64) {
          auto weights = tile::to_frag<bf16>(p);
          tile::wgmma_begin(dv, weights);
          tile::wgmma_ab(dv, weights, dout, 0, 0);
          tile::wgmma_commit();
          tile::wgmma_wait<1>(d);
          auto slopes = gradient();
          tile::wgmma_begin(dk, slopes);
          tile::wgmma_ab(dk, slopes, q, 0, 0);
          tile::wgmma_commit();
          tile::wgmma_wait<0>(dk, dv);
        } else {
          tile::wgmma_wait<0>(d);
          auto slopes = gradient();
          auto weights = tile::to_frag<bf16>(p);
          tile::wgmma_begin(dk, dv, slopes, weights);
          tile::wgmma_ab(dv, weights, dout, 0, 0);
          tile::wgmma_ab(dk, slopes, q, 0, 0);
          tile::wgmma_commit();
          tile::wgmma_wait<0>(dk, dv);
        }
        if (tile::lane_index() == 0) s.met_ring.release(turn);
        turn.next<Shape::kStages>();
      }
    }
    tile::scale(dk, x.scale);
    send(
        s, schedule, own_turn, group, !kCare && (is_broken(dk) || is_broken(dv)),
        [&] {
          tile::acc_to_smem(dk, k, row0, 0);
          tile::acc_to_smem(dv, v, row0, 0);
        },
        [&] { tile::tma_store(maps.da, k, b, j0, hk, 0); },
        [&] { tile::tma_store(maps.db, v, b, j0, hk, 0); });
  }
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

template <bool kCare, int D, class Mask>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_key_gradients(const Call<bf16> x, const Mask mask, const Schedule schedule,
                         const __grid_constant__ BackwardMaps maps, const PaddedRows rows,
                         const Heads<const bf16> dout) {
  if constexpr (kHopper) {
    if (kCare && schedule.is_whole()) return;
    Arena arena(tile::dynamic_memory());
    const auto s = HopperBackward<D>::carve(arena);
    init_rings(s);
    if (tile::warpgroup_index() == 0) {
      tile::give_registers<kProducerRegisters>();
      if (threadIdx.x == 0) load_rows_met<kCare>(s, x, mask, schedule, maps, rows);
    } else {
      tile::take_registers<kConsumerRegisters>();
      gather_keys<kCare>(s, x, mask, schedule, maps, dout);
    }
  }
}

// --- dq ------------------------------------------------------------------------------------------

// One thread.
template <bool kCare, int D, class Mask>
__device__ __forceinline__ void load_keys_met(const HopperBackward<D>& s, const Call<bf16>& x,
                                              const Mask& mask, const Schedule& schedule,
                                              const BackwardMaps& maps) {
  using Shape = HopperBackward<D>;
  Turn own_turn, turn;
  for (int i = schedule.first<kCare>();; i = schedule.next<kCare>(i)) {
    const int2 unit = schedule.unit(i);
    const int h = unit.y % x.H, b = unit.y / x.H;
    load_own(s, own_turn, i, maps, unit.x, h, b);
    if (unit.x < 0) return;
    auto walk = mask.template key_tiles<kOwn, Shape::N>(b, h, unit.x);
    for (Visit n = walk.next(); n; n = walk.next()) {
      s.met_ring.acquire(turn);
      load_met(s, turn, maps, n.tile * Shape::N, h / x.group, b);
      turn.next<Shape::kStages>();
    }
  }
}

// While the scores of a tile are made, the product of the tile before runs.
template <bool kCare, int D, class Mask>
__device__ __forceinline__ void gather_queries(const HopperBackward<D>& s, const Call<bf16>& x,
                                               const Mask& mask, const Schedule& schedule,
                                               const BackwardMaps& maps, const PaddedRows& rows) {
  using Shape = HopperBackward<D>;
  constexpr int N = Shape::N;
  const int group = tile::warpgroup_index() - 1, row0 = 16 * (tile::warp_index() % 4);
  const bool one_lane = tile::lane_index() == 0;
  const float unit_of_score = x.scale * tile::kLog2e;
  Turn own_turn, turn;
  for (;; own_turn.next<2>()) {
    s.own_ring.wait(own_turn);
    const int2 unit = schedule.unit(uniform(s.unit[own_turn.stage]));
    if (unit.x < 0) return;
    const int h = unit.y % x.H, b = unit.y / x.H, t0 = unit.x * kOwn + 64 * group;
    const int t[2] = {t0 + row0 + tile::acc_row(0), t0 + row0 + tile::acc_row(2)};
    const Range range[2] = {mask.keys(t[0]), mask.keys(t[1])};
    const Bounds bounds = mask.bounds_of_rows(t0, 64);
    const int64_t first = (int64_t{b} * x.H + h) * rows.stride;
    const float lse[2] = {rows.lse[first + t[0]], rows.lse[first + t[1]]};
    const float delta[2] = {rows.delta[first + t[0]], rows.delta[first + t[1]]};
    const auto q = s.own_a[own_turn.stage * kGroups + group];
    const auto dout = s.own_b[own_turn.stage * kGroups + group];
    Acc<D> dq;
    tile::fill(dq, 0.f);
    tile::Frag<bf16, N> slopes;
    Turn before = turn;
    bool under_way = false;
    auto walk = mask.template key_tiles<kOwn, N>(b, h, unit.x);
    for (Visit n = walk.next(); n; n = walk.next()) {
      const int j0 = n.tile * N;
      if (!(n.uses >> group & 1) || !bounds.meets(j0, N)) {
        tile::wgmma_wait<0>(dq);
        if (under_way && one_lane) s.met_ring.release(before);
        under_way = false;
        pass(s.met_ring, turn);
        continue;
      }
      Acc<N> p, d;
      s.met_ring.wait(turn);
      tile::wgmma_begin();
      tile::wgmma_abt<D, tile::kFirst>(p, q, 0, 0, s.met_a[turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_abt<D, tile::kFirst>(d, dout, 0, 0, s.met_b[turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_wait<1>(p, dq);
      if (under_way && one_lane) s.met_ring.release(before);
      hide(p, bounds.cuts(j0, N), n.fine >> group & 1, range, j0,
           [&](int half, int j) { return mask.sees(b, h, t[half], j); });
      each_half(
          p, [&](int half, int, float& e) { e = tile::ex2(fmaf(e, unit_of_score, -lse[half])); });
      tile::wgmma_wait<0>(d);
#pragma unroll
      for (int col = 0; col < N / 8; ++col) {
#pragma unroll
        for (int i = 0; i < 4; ++i) d.x[col][i] = p.x[col][i] * (d.x[col][i] - delta[i / 2]);
      }
      if (kCare && (n.fine || mask.bounds_of_rows(unit.x * kOwn, kOwn).cuts(j0, N))) {
        uint32_t* const marks = s.marks + group * kMarks;
        mend_in_group(group, marks, false, s.met_a[turn.stage], x.k.at(b, j0, h / x.group),
                      x.k.token, x.S - j0, x.k.width);
        mend_weights(d, n.fine >> group & 1, range, j0, marks,
                     [&](int half, int j) { return mask.sees(b, h, t[half], j); });
      }
      slopes = tile::to_frag<bf16>(d);
      tile::wgmma_begin(dq, slopes);
      tile::wgmma_ab(dq, slopes, s.met_a[turn.stage], 0, 0);
      tile::wgmma_commit();
      under_way = true;
      before = turn;
      turn.next<Shape::kStages>();
    }
    tile::wgmma_wait<0>(dq);
    if (under_way && one_lane) s.met_ring.release(before);
    tile::scale(dq, x.scale);
    send(
        s, schedule, own_turn, group, !kCare && is_broken(dq),
        [&] { tile::acc_to_smem(dq, q, row0, 0); },
        [&] { tile::tma_store(maps.da, q, b, t0, h, 0); });
  }
}

template <bool kCare, int D, class Mask>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_query_gradients(const Call<bf16> x, const Mask mask, const Schedule schedule,
                           const __grid_constant__ BackwardMaps maps, const PaddedRows rows) {
  if constexpr (kHopper) {
    if (kCare && schedule.is_whole()) return;
    Arena arena(tile::dynamic_memory());
    const auto s = HopperBackward<D>::carve(arena);
    init_rings(s);
    if (tile::warpgroup_index() == 0) {
      tile::give_registers<kProducerRegisters>();
      if (threadIdx.x == 0) load_keys_met<kCare>(s, x, mask, schedule, maps);
    } else {
      tile::take_registers<kConsumerRegisters>();
      gather_queries<kCare>(s, x, mask, schedule, maps, rows);
    }
  }
}

// --- The host's side -----------------------------------------------------------------------------

inline void run_pad_rows(const Call<bf16>& x, const Incoming<bf16>& in, const PaddedRows& rows) {
  const int64_t count = int64_t{x.B} * x.H * rows.stride;
  launch(pad_rows, (count + 255) / 256, 256, 0, in.lse, in.delta, rows, count, x.T);
}

// After run_pad_rows(); `notes`: note_count() of what each owns, at zero.
template <int D, class Mask>
void run_hopper_key_gradients(const Call<bf16>& x, const Mask& mask, const Incoming<bf16>& in,
                              const PaddedRows& rows, const Heads<bf16>& dk, const Heads<bf16>& dv,
                              int* notes) {
  using Own = typename HopperBackward<D>::Own;
  using Met = typename HopperBackward<D>::Met;
  const int64_t heads = x.H / x.group;
  const BackwardMaps maps{map_of<Own>(x.k, x.B, x.S, heads), map_of<Own>(x.v, x.B, x.S, heads),
                          map_of<Met>(x.q, x.B, x.T, x.H),   map_of<Met>(in.dout, x.B, x.T, x.H),
                          map_of<Own>(dk, x.B, x.S, heads),  map_of<Own>(dv, x.B, x.S, heads)};
  const Schedule schedule =
      schedule_of(x.S, x.B * heads, int64_t{x.T} * D * 4 * x.group, /*last_first=*/false, notes);
  const auto run = [&](auto* kernel) {
    launch(kernel, blocks_of(schedule), kHopperThreads, HopperBackward<D>::bytes(), x, mask,
           schedule, maps, rows, in.dout);
  };
  run(hopper_key_gradients<false, D, Mask>);
  run(hopper_key_gradients<true, D, Mask>);
}
template <int D, class Mask>
void run_hopper_query_gradients(const Call<bf16>& x, const Mask& mask, const Incoming<bf16>& in,
                                const PaddedRows& rows, const Heads<bf16>& dq, int* notes) {
  using Own = typename HopperBackward<D>::Own;
  using Met = typename HopperBackward<D>::Met;
  const int64_t heads = x.H / x.group;
  const BackwardMaps maps{map_of<Own>(x.q, x.B, x.T, x.H),   map_of<Own>(in.dout, x.B, x.T, x.H),
                          map_of<Met>(x.k, x.B, x.S, heads), map_of<Met>(x.v, x.B, x.S, heads),
                          map_of<Own>(dq, x.B, x.T, x.H),    map_of<Own>(dq, x.B, x.T, x.H)};
  const Schedule schedule = schedule_of(x.T, int64_t{x.B} * x.H, int64_t{x.S} * D * 4 / x.group,
                                        /*last_first=*/true, notes);
  const auto run = [&](auto* kernel) {
    launch(kernel, blocks_of(schedule), kHopperThreads, HopperBackward<D>::bytes(), x, mask,
           schedule, maps, rows);
  };
  run(hopper_query_gradients<false, D, Mask>);
  run(hopper_query_gradients<true, D, Mask>);
}

}  // namespace weft::kernels::softmax
