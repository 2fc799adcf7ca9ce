// Softmax attention on sm_90a, for bf16 and heads up to 128 (FlashAttention-3, arXiv:2407.08608): one
// warp copies tiles by TMA into rings, two warpgroups of 64 rows each multiply by wgmma and do the
// softmax. Here are the parts that forward and backward share, and the forward loop.
// A block stays for many tiles: it takes the next one by a counter, and while the last one's results
// leave, the next one's operands arrive. Which block does a tile changes no bit of it.
// Who sees whom is a Sight, as in softmax.cuh. Scores are counted in units of q.k, so that scale is one
// factor of the exponent: scale > 0, and no soft cap.
#pragma once

#include "kernels/common/hopper.cuh"
#include "kernels/common/softmax.cuh"

namespace weft::kernels::softmax {

using tile::kHopper;
using tile::Ring;
using tile::Turn;

inline constexpr int kHopperThreads = 128 * (kGroups + 1);
inline constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

// kCount tiles, one after the other.
template <class Tile, int kCount>
struct Tiles {
  using type = bf16;
  static constexpr int bytes = kCount * Tile::bytes, alignment = Tile::alignment;
  static_assert(Tile::bytes % Tile::alignment == 0);
  bf16* data = nullptr;
  __device__ Tile operator[](int i) const { return {data + i * (Tile::bytes / 2)}; }
};

// The tiles of a call in the order in which blocks take them: long ones first, and heads in sections
// whose other side stays in L2.
struct Schedule {
  int tiles = 1, heads = 1, section = 1;  // heads are those of the batch
  int units = 0;
  bool last_first = true;
  int* taken = nullptr;  // zero at the start

  // The tile and the head of unit i; tile -1 beyond the last.
  __device__ int2 unit(int i) const {
    if (i >= units) return {-1, 0};
    const int first = i / (section * tiles) * section, width = min(section, heads - first);
    const int rest = i % (section * tiles), place = rest / width;
    return {last_first ? tiles - 1 - place : place, first + rest % width};
  }
  // The unit after the one that the block has; one thread asks.
  __device__ int next() const { return static_cast<int>(gridDim.x) + atomicAdd(taken, 1); }
};

// What a block does, unit by unit, in the two stages of the ring that brings a unit's operands. A unit of
// which the results are not finite comes once more, with care (softmax.cuh), when its stage is free.
struct Units {
  static constexpr int kWithCare = 1 << 30, kNothing = -1, kOver = -2;
  int* unit;    // [2] what the stages hold: a unit, kWithCare added, or one of the others
  int* broken;  // [2] said by the groups before they release a stage

  static constexpr int kInts = 4;
  __host__ __device__ explicit Units(int* memory = nullptr) : unit(memory), broken(memory + 2) {}

  // One thread: what comes into a stage that has become free. `coming`: the block's next unit; `idle`:
  // stages since there was none.
  __device__ int put(int stage, const Schedule& schedule, int& coming, int& idle) const {
    int i = kNothing;
    if (broken[stage]) {
      i = unit[stage] | kWithCare;
      idle = 0;
    } else if (coming < schedule.units) {
      i = coming;
      coming = schedule.next();
    } else if (++idle == 2) {
      i = kOver;  // the units of both stages are done
    }
    broken[stage] = 0;
    return unit[stage] = i;
  }
};

// A warpgroup's marks of mend_rows().
inline constexpr int kMarks = 4;

// mend_rows() by a warpgroup, for products of its own that follow.
template <int N, int D>
__device__ __forceinline__ void mend_in_group(int group, uint32_t* marks, bool more,
                                              Smem<bf16, N, D> to, const bf16* from, int64_t stride,
                                              int rows, int width) {
  tile::named_sync(1 + group, 128);
  mend_rows(to, from, stride, rows, width, static_cast<int>(threadIdx.x % 128), more, marks);
  tile::publish();
  tile::named_sync(1 + group, 128);
}

// The same number in all lanes, and known to be so.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

// The consumers' side of a tile that this warpgroup does not meet.
template <int kStages>
__device__ __forceinline__ void pass(const Ring<kStages>& ring, Turn& turn) {
  ring.wait(turn);
  if (tile::lane_index() == 0) ring.release(turn);
  turn.next<kStages>();
}

// --- Forward -------------------------------------------------------------------------------------

template <int D, int N>
struct HopperForward {
  static constexpr int kStages = D * N <= 64 * 128 ? 4 : 2;
  using Rows = Smem<bf16, 64, D>;
  using Keys = Smem<bf16, N, D>;
  Tiles<Rows, 2 * kGroups> q;  // of this unit and of the next; the results leave through it
  Tiles<Keys, kStages> k, v;
  Ring<2> q_ring;
  Ring<kStages> k_ring, v_ring;
  Units units;      // in the stages of q_ring
  uint32_t* marks;  // [kGroups, kMarks]
  __host__ __device__ static HopperForward carve(Arena& arena) {
    HopperForward s;
    s.q = arena.carve<Tiles<Rows, 2 * kGroups>>();
    s.k = arena.carve<Tiles<Keys, kStages>>();
    s.v = arena.carve<Tiles<Keys, kStages>>();
    s.q_ring = arena.carve<Ring<2>>();
    s.k_ring = arena.carve<Ring<kStages>>();
    s.v_ring = arena.carve<Ring<kStages>>();
    s.units = Units(arena.carve<int>(Units::kInts));
    s.marks = arena.carve<uint32_t>(kGroups * kMarks);
    return s;
  }
};

struct ForwardMaps {
  CUtensorMap q, k, v, o;
};

// One thread.
template <int D, int N, class Sight>
__device__ __forceinline__ void load_forward(const HopperForward<D, N>& s, const Call<bf16>& x,
                                             const Sight& sight, const Schedule& schedule,
                                             const ForwardMaps& maps) {
  using Shape = HopperForward<D, N>;
  Turn q_turn, turn;
  int coming = static_cast<int>(blockIdx.x), idle = 0;
  for (;;) {
    s.q_ring.acquire(q_turn);
    const int i = s.units.put(q_turn.stage, schedule, coming, idle);
    if (i < 0) {
      tile::barrier_arrive(s.q_ring.full(q_turn));
      if (i == Units::kOver) return;
      q_turn.next<2>();
      continue;
    }
    const int2 unit = schedule.unit(i & ~Units::kWithCare);
    const int own = unit.x, h = unit.y % x.H, b = unit.y / x.H;
    tile::barrier_arrive_expecting(s.q_ring.full(q_turn), kGroups * Shape::Rows::bytes);
    for (int g = 0; g < kGroups; ++g)
      tile::tma_load(s.q[q_turn.stage * kGroups + g], maps.q, s.q_ring.full(q_turn), b,
                     own * kOwn + 64 * g, h, 0);
    q_turn.next<2>();
    auto walk = sight.template key_tiles<kOwn, N>(h, own);
    for (Visit n = walk.next(); n; n = walk.next()) {
      s.k_ring.acquire(turn, Shape::Keys::bytes);
      tile::tma_load(s.k[turn.stage], maps.k, s.k_ring.full(turn), b, n.tile * N, h / x.group, 0);
      s.v_ring.acquire(turn, Shape::Keys::bytes);
      tile::tma_load(s.v[turn.stage], maps.v, s.v_ring.full(turn), b, n.tile * N, h / x.group, 0);
      turn.next<Shape::kStages>();
    }
  }
}

// ptxas would move the wait that follows above the exponentials, since nothing says that they shall
// run meanwhile. A sum of them is never negative, but it does not know.
__device__ __forceinline__ void after(const Stream& stream) {
  asm volatile(
      "{.reg .pred never; setp.lt.f32 never, %0, 0f00000000; @never nanosleep.u32 1;}" ::"f"(
          fminf(stream.sum[0], stream.sum[1])));
}

// While the softmax of a tile is done, P V of the tile before runs; S of this one was issued with it.
template <int D, int N, class Sight>
__device__ __forceinline__ void attend(const HopperForward<D, N>& s, const Call<bf16>& x,
                                       const Sight& sight, const Schedule& schedule,
                                       const ForwardMaps& maps, float* lse) {
  using Shape = HopperForward<D, N>;
  const int group = tile::warpgroup_index() - 1, row0 = 16 * (tile::warp_index() % 4);
  const bool one_lane = tile::lane_index() == 0;
  Turn q_turn, k_turn, v_turn;
  for (;; q_turn.next<2>()) {
    s.q_ring.wait(q_turn);
    const int i = uniform(s.units.unit[q_turn.stage]);
    if (i == Units::kOver) return;
    if (i == Units::kNothing) {
      tile::named_sync(1 + group, 128);  // all have read it
      if (threadIdx.x % 128 == 0) s.q_ring.release(q_turn);
      continue;
    }
    const bool care = i & Units::kWithCare;
    const int2 unit = schedule.unit(i & ~Units::kWithCare);
    const int h = unit.y % x.H, b = unit.y / x.H, t0 = unit.x * kOwn + 64 * group;
    const int t[2] = {t0 + row0 + tile::acc_row(0), t0 + row0 + tile::acc_row(2)};
    const Range range[2] = {sight.keys(t[0]), sight.keys(t[1])};
    const Bounds bounds = sight.bounds_of_rows(t0, 64);
    const auto sink = [&](int row) {
      return x.sink != nullptr && row < x.T ? x.sink[sight.sink(h, row)] / x.scale : -INFINITY;
    };
    Stream stream(x.scale, sink(t[0]), sink(t[1]));
    const auto q = s.q[q_turn.stage * kGroups + group];
    Acc<D> out;
    tile::fill(out, 0.f);

    const auto meets = [&](Visit n) {
      return (n.uses >> group & 1) && bounds.meets(n.tile * N, N);
    };
    const auto soften = [&](Acc<N>& p, Visit n) {
      hide(p, bounds.cuts(n.tile * N, N), n.fine >> group & 1, range, n.tile * N,
           [&](int half, int j) { return sight.sees(h, t[half], j); });
      return stream.add(p);
    };
    // Before the product of a tile's values, which both groups mend if either meets pairs that do not
    // see each other.
    const auto mend = [&](Acc<N>& p, Visit n) {
      const int key0 = n.tile * N;
      if (!sight.bounds_of_rows(unit.x * kOwn, kOwn).cuts(key0, N) && !n.fine) return;
      s.v_ring.wait(v_turn);
      uint32_t* const marks = s.marks + group * kMarks;
      mend_in_group(group, marks, false, s.v[v_turn.stage], x.v.at(b, key0, h / x.group), x.v.token,
                    x.S - key0, x.v.width);
      mend_weights(p, n.fine >> group & 1, range, key0, marks,
                   [&](int half, int j) { return sight.sees(h, t[half], j); });
    };
    auto walk = sight.template key_tiles<kOwn, N>(h, unit.x);
    // The same products in the same order, one tile after the other.
    const auto attend_with_care = [&](Visit n) {
      Acc<N> p;
      s.k_ring.wait(k_turn);
      tile::wgmma_begin(p);
      tile::wgmma_abt<D, tile::kFirst>(p, q, 0, 0, s.k[k_turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_wait<0>(p);
      if (one_lane) s.k_ring.release(k_turn);
      k_turn.next<Shape::kStages>();
      tile::scale_rows(out, soften(p, n));
      mend(p, n);
      auto weights = tile::to_frag<bf16>(p);
      s.v_ring.wait(v_turn);
      tile::wgmma_begin(out, weights);
      tile::wgmma_ab(out, weights, s.v[v_turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_wait<0>(out);
      if (one_lane) s.v_ring.release(v_turn);
      v_turn.next<Shape::kStages>();
    };
    Visit n = walk.next();
    for (; care && n; n = walk.next()) {
      if (meets(n)) {
        attend_with_care(n);
      } else {
        pass(s.k_ring, k_turn);
        pass(s.v_ring, v_turn);
      }
    }
    while (n) {
      if (!meets(n)) {
        pass(s.k_ring, k_turn);
        pass(s.v_ring, v_turn);
        n = walk.next();
        continue;
      }
      Acc<N> p;
      s.k_ring.wait(k_turn);
      tile::wgmma_begin(p, out);
      tile::wgmma_abt<D, tile::kFirst>(p, q, 0, 0, s.k[k_turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_wait<0>(p);
      if (one_lane) s.k_ring.release(k_turn);
      k_turn.next<Shape::kStages>();
      tile::scale_rows(out, soften(p, n));
      auto weights = tile::to_frag<bf16>(p);
      for (n = walk.next(); n && meets(n); n = walk.next()) {
        s.k_ring.wait(k_turn);
        tile::wgmma_begin(p, out, weights);
        tile::wgmma_abt<D, tile::kFirst>(p, q, 0, 0, s.k[k_turn.stage], 0, 0);
        tile::wgmma_commit();
        s.v_ring.wait(v_turn);
        tile::wgmma_ab(out, weights, s.v[v_turn.stage], 0, 0);
        tile::wgmma_commit();
        tile::wgmma_wait<1>(p);
        if (one_lane) s.k_ring.release(k_turn);
        k_turn.next<Shape::kStages>();
        const tile::Rows shrink = soften(p, n);
        after(stream);
        tile::wgmma_wait<0>(out);
        if (one_lane) s.v_ring.release(v_turn);
        v_turn.next<Shape::kStages>();
        tile::scale_rows(out, shrink);
        weights = tile::to_frag<bf16>(p);
      }
      s.v_ring.wait(v_turn);
      tile::wgmma_begin(out, weights);
      tile::wgmma_ab(out, weights, s.v[v_turn.stage], 0, 0);
      tile::wgmma_commit();
      tile::wgmma_wait<0>(out);
      if (one_lane) s.v_ring.release(v_turn);
      v_turn.next<Shape::kStages>();
    }
    stream.finish(out);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (t[half] < x.T && tile::lane_index() % 4 == 0)
        lse[(int64_t{b} * x.H + h) * x.T + t[half]] = stream.most[half];
    }
    // No warp reads q any more.
    if (tile::named_any(1 + group, 128, !care && is_broken(out))) {
      if (threadIdx.x % 128 == 0) {
        s.units.broken[q_turn.stage] = 1;
        s.q_ring.release(q_turn);
      }
      continue;
    }
    tile::acc_to_smem(out, q, row0, 0);
    tile::publish();
    tile::named_sync(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
      tile::tma_store(maps.o, q, b, t0, h, 0);
      tile::tma_store_commit();
      tile::tma_store_read<0>();
      s.q_ring.release(q_turn);
    }
  }
}

template <int D, int N, class Sight>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_forward(const Call<bf16> x, const Sight sight, const Schedule schedule,
                   const __grid_constant__ ForwardMaps maps, float* lse) {
  if constexpr (kHopper) {
    Arena arena(tile::dynamic_memory());
    const auto s = HopperForward<D, N>::carve(arena);
    if (threadIdx.x == 0) {
      s.units.broken[0] = s.units.broken[1] = 0;
      s.q_ring.init(1, kGroups);
      s.k_ring.init(1, 4 * kGroups);
      s.v_ring.init(1, 4 * kGroups);
      tile::barriers_ready();
    }
    __syncthreads();
    if (tile::warpgroup_index() == 0) {
      tile::give_registers<kProducerRegisters>();
      if (threadIdx.x == 0) load_forward(s, x, sight, schedule, maps);
    } else {
      tile::take_registers<kConsumerRegisters>();
      attend(s, x, sight, schedule, maps, lse);
    }
  }
}

// --- The host's side -----------------------------------------------------------------------------

// A tensor as TMA takes it; the strides of dimensions of one entry do not matter.
template <class Tile, class E>
CUtensorMap map_of(const Heads<E>& x, int64_t B, int64_t T, int64_t H) {
  const int64_t any = 8 * ((x.width + 7) / 8);
  return tile::tensor_map<Tile>(
      x.data, {B, T, H, x.width},
      {B == 1 ? any : x.batch, T == 1 ? any : x.token, H == 1 ? any : x.head});
}

// `bytes`: of the other side's tokens of one head, which should stay in L2 for a section of heads.
// Sections are alike, so that the last one fills the GPU too.
inline Schedule schedule_of(int64_t tokens, int64_t heads, int64_t bytes, bool last_first,
                            int* taken) {
  constexpr int64_t kInCache = int64_t{24} << 20;
  const int64_t tiles = ceil_div_int(tokens, kOwn);
  const int64_t most = std::clamp<int64_t>(kInCache / std::max<int64_t>(1, bytes), 1, heads);
  const int64_t sections = ceil_div_int(heads, most);
  require(tiles * heads < (int64_t{1} << 30), "softmax attention: ", tiles * heads, " tiles");
  return {.tiles = static_cast<int>(tiles),
          .heads = static_cast<int>(heads),
          .section = ceil_div_int(heads, sections),
          .units = static_cast<int>(tiles * heads),
          .last_first = last_first,
          .taken = taken};
}
inline int64_t blocks_of(const Schedule& s) { return std::min(s.units, cuda_sms()); }

template <int D, int N, class Sight>
void run_hopper_forward(const Call<bf16>& x, const Sight& sight, const Heads<bf16>& o, float* lse,
                        int* taken) {
  using Shape = HopperForward<D, N>;
  Arena count;
  Shape::carve(count);
  const int64_t key_heads = x.H / x.group;
  const ForwardMaps maps{map_of<typename Shape::Rows>(x.q, x.B, x.T, x.H),
                         map_of<typename Shape::Keys>(x.k, x.B, x.S, key_heads),
                         map_of<typename Shape::Keys>(x.v, x.B, x.S, key_heads),
                         map_of<typename Shape::Rows>(o, x.B, x.T, x.H)};
  const Schedule schedule = schedule_of(x.T, int64_t{x.B} * x.H, int64_t{x.S} * D * 4 / x.group,
                                        /*last_first=*/true, taken);
  launch(hopper_forward<D, N, Sight>, blocks_of(schedule), kHopperThreads, count.used(), x, sight,
         schedule, maps, lse);
}

}  // namespace weft::kernels::softmax
