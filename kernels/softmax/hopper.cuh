// Softmax attention on sm_90a, for bf16 and heads up to 128 (FlashAttention-3, arXiv:2407.08608):
// one warp copies tiles by TMA into rings, two warpgroups of 64 rows each multiply by wgmma and do
// the softmax. Here are the parts that forward and backward share, and the forward loop.
// A block stays for many tiles: it takes the next one by a counter, and while the last one's
// results leave, the next one's operands arrive. Which block does a tile changes no bit of it. Who
// sees whom is a Mask, as in softmax.cuh. Scores are counted in units of q.k, so that scale is one
// factor of the exponent: scale > 0, and no soft cap.
#pragma once

#include "kernels/softmax/softmax.cuh"
#include "kernels/tile/hopper.cuh"

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

// The tiles of a call in the order in which blocks take them: long ones first, and heads in
// sections whose other side stays in L2.
struct Schedule {
  int tiles = 1, heads = 1, section = 1;  // heads are those of the batch
  int units = 0;
  bool last_first = true;
  int* taken = nullptr;   // zero at the start
  int* broken = nullptr;  // [1 + units], zero at the start: whether any unit is noted, and which

  // The tile and the head of unit i; tile -1 beyond the last.
  __device__ int2 unit(int i) const {
    if (i >= units) return {-1, 0};
    const int first = i / (section * tiles) * section, width = min(section, heads - first);
    const int rest = i % (section * tiles), place = rest / width;
    return {last_first ? tiles - 1 - place : place, first + rest % width};
  }
  // The units of a block; one thread asks. With care they are those that are noted, else all in
  // turn.
  template <bool kCare>
  __device__ int first() const {
    const int i = static_cast<int>(blockIdx.x);
    return kCare ? next<kCare>(i - static_cast<int>(gridDim.x)) : i;
  }
  template <bool kCare>
  __device__ int next(int i) const {
    const int blocks = static_cast<int>(gridDim.x);
    if constexpr (kCare) {
      do i += blocks;
      while (i < units && broken[1 + i] == 0);
      return i;
    } else {
      return blocks + atomicAdd(taken, 1);
    }
  }

  // Unit i has results that are not finite. What follows on the stream sees it.
  __device__ void note(int i) const { broken[0] = broken[1 + i] = 1; }
  __device__ bool is_whole() const { return broken[0] == 0; }
};

// Each kernel is launched twice. Each launch has code of its own, so that the registers of the
// second one do not slow down the first one. The first launch notes the units whose results are not
// finite. The second launch (kCare) computes these units again, with care (softmax.cuh). It ends at
// once if there are none.

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
  int* unit;        // [2] what the stages of q_ring hold
  uint32_t* marks;  // [kGroups, kMarks]
  __host__ __device__ static HopperForward carve(Arena& arena) {
    HopperForward s;
    s.q = arena.carve<Tiles<Rows, 2 * kGroups>>();
    s.k = arena.carve<Tiles<Keys, kStages>>();
    s.v = arena.carve<Tiles<Keys, kStages>>();
    s.q_ring = arena.carve<Ring<2>>();
    s.k_ring = arena.carve<Ring<kStages>>();
    s.v_ring = arena.carve<Ring<kStages>>();
    s.unit = arena.carve<int>(2);
    s.marks = arena.carve<uint32_t>(kGroups * kMarks);
    return s;
  }
};

struct ForwardMaps {
  CUtensorMap q, k, v, o;
};

// One thread.
template <bool kCare, int D, int N, class Mask>
__device__ __forceinline__ void load_forward(const HopperForward<D, N>& s, const Call<bf16>& x,
                                             const Mask& mask, const Schedule& schedule,
                                             const ForwardMaps& maps) {
  using Shape = HopperForward<D, N>;
  Turn q_turn, turn;
  for (int i = schedule.first<kCare>();; i = schedule.next<kCare>(i)) {
    const int2 unit = schedule.unit(i);
    s.q_ring.acquire(q_turn);
    s.unit[q_turn.stage] = i;
    if (unit.x < 0) return tile::barrier_arrive(s.q_ring.full(q_turn));
    const int own = unit.x, h = unit.y % x.H, b = unit.y / x.H;
    tile::barrier_arrive_expecting(s.q_ring.full(q_turn), kGroups * Shape::Rows::bytes);
    for (int g = 0; g < kGroups; ++g)
      tile::tma_load(s.q[q_turn.stage * kGroups + g], maps.q, s.q_ring.full(q_turn), b,
                     own * kOwn + 64 * g, h, 0);
    q_turn.next<2>();
    auto walk = mask.template key_tiles<kOwn, N>(b, h, own);
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

// While the softmax of a tile is done, P V of the tile before runs; S of this one was issued with
// it.
template <bool kCare, int D, int N, class Mask>
__device__ __forceinline__ void attend(const HopperForward<D, N>& s, const Call<bf16>& x,
                                       const Mask& mask, const Schedule& schedule,
                                       const ForwardMaps& maps, float* lse) {
  using Shape = HopperForward<D, N>;
  const int group = tile::warpgroup_index() - 1, row0 = 16 * (tile::warp_index() % 4);
  const bool one_lane = tile::lane_index() == 0;
  Turn q_turn, k_turn, v_turn;
  for (;; q_turn.next<2>()) {
    s.q_ring.wait(q_turn);
    const int2 unit = schedule.unit(uniform(s.unit[q_turn.stage]));
    if (unit.x < 0) return;
    const int h = unit.y % x.H, b = unit.y / x.H, t0 = unit.x * kOwn + 64 * group;
    const int t[2] = {t0 + row0 + tile::acc_row(0), t0 + row0 + tile::acc_row(2)};
    const Range range[2] = {mask.keys(t[0]), mask.keys(t[1])};
    const Bounds bounds = mask.bounds_of_rows(t0, 64);
    const auto sink = [&](int row) {
      return x.sink != nullptr && row < x.T ? x.sink[mask.sink(h, row)] / x.scale : -INFINITY;
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
           [&](int half, int j) { return mask.sees(b, h, t[half], j); });
      return stream.add(p);
    };
    // Before the product of a tile's values, which both groups mend if either meets pairs that do
    // not see each other.
    const auto mend = [&](Acc<N>& p, Visit n) {
      const int key0 = n.tile * N;
      if (!mask.bounds_of_rows(unit.x * kOwn, kOwn).cuts(key0, N) && !n.fine) return;
      s.v_ring.wait(v_turn);
      uint32_t* const marks = s.marks + group * kMarks;
      mend_in_group(group, marks, false, s.v[v_turn.stage], x.v.at(b, key0, h / x.group), x.v.token,
                    x.S - key0, x.v.width);
      mend_weights(p, n.fine >> group & 1, range, key0, marks,
                   [&](int half, int j) { return mask.sees(b, h, t[half], j); });
    };
    auto walk = mask.template key_tiles<kOwn, N>(b, h, unit.x);
    for (Visit n = walk.next(); n;) {
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
      if constexpr (kCare) mend(p, n);
      auto weights = tile::to_frag<bf16>(p);
      // With care one tile comes after the other: the same products in the same order.
      for (n = walk.next(); !kCare && n && meets(n); n = walk.next()) {
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
    const bool broken = tile::named_any(1 + group, 128, !kCare && is_broken(out));
    tile::acc_to_smem(out, q, row0, 0);
    tile::publish();
    tile::named_sync(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
      if (broken) schedule.note(s.unit[q_turn.stage]);
      tile::tma_store(maps.o, q, b, t0, h, 0);
      tile::tma_store_commit();
      tile::tma_store_read<0>();
      s.q_ring.release(q_turn);
    }
  }
}

template <bool kCare, int D, int N, class Mask>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_forward(const Call<bf16> x, const Mask mask, const Schedule schedule,
                   const __grid_constant__ ForwardMaps maps, float* lse) {
  if constexpr (kHopper) {
    if (kCare && schedule.is_whole()) return;
    Arena arena(tile::dynamic_memory());
    const auto s = HopperForward<D, N>::carve(arena);
    if (threadIdx.x == 0) {
      s.q_ring.init(1, kGroups);
      s.k_ring.init(1, 4 * kGroups);
      s.v_ring.init(1, 4 * kGroups);
      tile::barriers_ready();
    }
    __syncthreads();
    if (tile::warpgroup_index() == 0) {
      tile::give_registers<kProducerRegisters>();
      if (threadIdx.x == 0) load_forward<kCare>(s, x, mask, schedule, maps);
    } else {
      tile::take_registers<kConsumerRegisters>();
      attend<kCare>(s, x, mask, schedule, maps, lse);
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
                            int* notes) {
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
          .taken = notes,
          .broken = notes + 1};
}
inline int64_t blocks_of(const Schedule& s) { return std::min(s.units, cuda_sms()); }

template <int D, int N, class Mask>
void run_hopper_forward(const Call<bf16>& x, const Mask& mask, const Heads<bf16>& o, float* lse,
                        int* notes) {
  using Shape = HopperForward<D, N>;
  Arena count;
  Shape::carve(count);
  const int64_t key_heads = x.H / x.group;
  const ForwardMaps maps{map_of<typename Shape::Rows>(x.q, x.B, x.T, x.H),
                         map_of<typename Shape::Keys>(x.k, x.B, x.S, key_heads),
                         map_of<typename Shape::Keys>(x.v, x.B, x.S, key_heads),
                         map_of<typename Shape::Rows>(o, x.B, x.T, x.H)};
  const Schedule schedule = schedule_of(x.T, int64_t{x.B} * x.H, int64_t{x.S} * D * 4 / x.group,
                                        /*last_first=*/true, notes);
  const auto run = [&](auto* kernel) {
    launch(kernel, blocks_of(schedule), kHopperThreads, count.used(), x, mask, schedule, maps, lse);
  };
  run(hopper_forward<false, D, N, Mask>);
  run(hopper_forward<true, D, N, Mask>);
}

}  // namespace weft::kernels::softmax
