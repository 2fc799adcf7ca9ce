// Products of each expert's rows with its weight on the GPU. The host knows the number of rows and
// of experts, not who has how many: the grid covers the most tiles there can be, a block finds its
// expert and its rows by the offsets, and those that find none leave.
//   y  [r, o] = sum_i x [r, i] w[o, i]     dx [r, i] = sum_o dy[r, o] w[o, i]     of r's expert
//   dw [o, i] = sum_r dy[r, o] x[r, i]     over the rows of an expert, in order
// Tiles come to shared memory by asynchronous copies, three steps deep; bf16 products run on a
// warpgroup's tensor instructions where there are such, else on a warp's.
#include "kernels/experts/routing.h"
#include "kernels/rows/matrix.h"
#include "kernels/tile/hopper.cuh"

namespace weft::kernels {
namespace {

using namespace tile;

constexpr int kThreads = 256;

// Tiles of a block: kM x kN of the result, kK steps of the sum at a time, kStages of them in
// memory. Where products run by themselves (wgmma), one is under way while the next tiles are
// waited for.
template <class Real, bool kWide>
struct Sizes {
  static constexpr int kM = 128, kN = 128, kK = 64, kStages = 3, kBlocks = 2;
};
template <>
struct Sizes<bf16, true> {
  static constexpr int kM = 128, kN = 256, kK = 64, kStages = 4, kBlocks = 1;
};
template <>
struct Sizes<float, false> {
  static constexpr int kM = 128, kN = 64, kK = 32, kStages = 3, kBlocks = 2;
};

// Which operand has the index of the sum as its rows.
enum class Product { y, dx, dw };

template <class Real, class S, Product kProduct>
struct Tiles {
  using A = std::conditional_t<kProduct == Product::dw, Smem<Real, S::kK, S::kM>,
                               Smem<Real, S::kM, S::kK>>;
  using B = std::conditional_t<kProduct == Product::y, Smem<Real, S::kN, S::kK>,
                               Smem<Real, S::kK, S::kN>>;
  A first_a;
  B first_b;  // those of the other stages follow

  __host__ __device__ explicit Tiles(Arena& arena) {
    first_a = arena.carve<A>();
    for (int i = 1; i < S::kStages; ++i) arena.carve<A>();
    first_b = arena.carve<B>();
    for (int i = 1; i < S::kStages; ++i) arena.carve<B>();
  }
  __device__ __forceinline__ A a(int stage) const {
    return {first_a.data + stage * (A::rows * A::cols)};
  }
  __device__ __forceinline__ B b(int stage) const {
    return {first_b.data + stage * (B::rows * B::cols)};
  }
};

// c = a b, the experts' matrices one after the other. Of dw the experts' sums have their own
// lengths.
template <class Real>
struct Grouped {
  const Real *a, *b;
  Real* c;
  int64_t a_stride, b_stride, c_stride;  // of rows
  int64_t b_expert, c_expert;            // of experts
  const int64_t* offsets;                // [E + 1]
  int E, M, N, K;                        // M of dw alone, K of the others
};

// The rows of tile t, counted over experts: each has as many tiles as cover its rows. rows = 0:
// none.
struct TileOfRows {
  int expert = 0, rows = 0;
  int64_t first = 0;
};

__device__ __forceinline__ TileOfRows find_tile(const int64_t* offsets, int E, int64_t t, int kM) {
  int64_t before = 0;
  for (int base = 0; base < E; base += 32) {
    const int e = base + lane_index();
    const int64_t begin = e < E ? offsets[e] : 0, end = e < E ? offsets[e + 1] : 0;
    const auto tiles = static_cast<int>((end - begin + kM - 1) / kM);
    int sum = tiles;  // of this and the experts before
#pragma unroll
    for (int m = 1; m < 32; m *= 2) {
      const int other = __shfl_up_sync(~0u, sum, m);
      if (lane_index() >= m) sum += other;
    }
    const unsigned here = __ballot_sync(~0u, t < before + sum);
    if (here == 0) {
      before += __shfl_sync(~0u, sum, 31);
      continue;
    }
    const int lane = __ffs(static_cast<int>(here)) - 1;
    const int64_t within = t - before - __shfl_sync(~0u, sum - tiles, lane);
    TileOfRows found;
    found.expert = base + lane;
    found.first = __shfl_sync(~0u, begin, lane) + within * kM;
    found.rows =
        static_cast<int>(min(static_cast<int64_t>(kM), __shfl_sync(~0u, end, lane) - found.first));
    return found;
  }
  return {};
}

template <class Real, bool kWide, Product kProduct>
__global__ void __launch_bounds__(kThreads, Sizes<Real, kWide>::kBlocks)
    grouped(const Grouped<Real> p) {
  using S = Sizes<Real, kWide>;
  const int n_tiles = (p.N + S::kN - 1) / S::kN;
  const int n0 = static_cast<int>(blockIdx.x) % n_tiles * S::kN;
  const int64_t index = blockIdx.x / n_tiles;

  // Where this block's operands begin, and how much of them there is.
  const Real *a, *b;
  Real* c;
  int rows, K;
  if constexpr (kProduct == Product::dw) {
    const int m_tiles = (p.M + S::kM - 1) / S::kM;
    const auto expert = static_cast<int>(index / m_tiles);
    const int m0 = static_cast<int>(index % m_tiles) * S::kM;
    const int64_t first = p.offsets[expert];
    a = p.a + first * p.a_stride + m0;
    b = p.b + first * p.b_stride + n0;
    c = p.c + expert * p.c_expert + m0 * p.c_stride + n0;
    rows = min(S::kM, p.M - m0);
    K = static_cast<int>(p.offsets[expert + 1] - first);
  } else {
    const TileOfRows t = find_tile(p.offsets, p.E, index, S::kM);
    if (t.rows == 0) return;
    a = p.a + t.first * p.a_stride;
    b = p.b + t.expert * p.b_expert + (kProduct == Product::y ? n0 * p.b_stride : n0);
    c = p.c + t.first * p.c_stride + n0;
    rows = t.rows;
    K = p.K;
  }
  const int columns = min(S::kN, p.N - n0);

  Arena arena(dynamic_memory());
  const Tiles<Real, S, kProduct> tiles(arena);
  const int steps = (K + S::kK - 1) / S::kK;
  const auto fetch = [&](int step) {
    if (step < steps) {
      const int k0 = step * S::kK, left = K - k0, stage = step % S::kStages;
      if constexpr (kProduct == Product::dw)
        load_tile_async(tiles.a(stage), a + k0 * p.a_stride, p.a_stride, left, rows);
      else
        load_tile_async(tiles.a(stage), a + k0, p.a_stride, rows, left);
      if constexpr (kProduct == Product::y)
        load_tile_async(tiles.b(stage), b + k0, p.b_stride, columns, left);
      else
        load_tile_async(tiles.b(stage), b + k0 * p.b_stride, p.b_stride, left, columns);
    }
    async_commit();
  };

  // The tiles of a step that may still be read are not fetched into: one more with wgmma.
  constexpr int kAhead = S::kStages - (kWide ? 2 : 1);
  const int row0 = warp_index() * 16;
  Acc<S::kN> acc;
  const auto write = [&] {
    store_acc(acc, c + row0 * p.c_stride, p.c_stride, rows - row0, columns);
  };
  if (steps == 0 || !kWide) fill(acc, 0.f);
  if (steps == 0) return write();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(i);
  const auto advance = [&](int step, auto first) {
    async_wait<kAhead - 1>();
    if constexpr (kWide && kHopper) publish();
    __syncthreads();  // this step's tiles are there, those of kAhead steps on are free
    const auto ta = tiles.a(step % S::kStages);
    const auto tb = tiles.b(step % S::kStages);
    if constexpr (!kWide) {
      fetch(step + kAhead);
      if constexpr (kProduct == Product::y)
        mma_abt<S::kK>(acc, ta, row0, 0, tb, 0, 0);
      else if constexpr (kProduct == Product::dx)
        mma_ab<S::kK>(acc, ta, row0, 0, tb, 0, 0);
      else
        mma_atb<S::kK>(acc, ta, 0, row0, tb, 0, 0);
    } else if constexpr (kHopper) {
      const int i0 = warpgroup_index() * 64;
      wgmma_begin();
      if constexpr (kProduct == Product::y)
        wgmma_abt<S::kK, first()>(acc, ta, i0, 0, tb, 0, 0);
      else if constexpr (kProduct == Product::dx)
        wgmma_ab<S::kK, first()>(acc, ta, i0, 0, tb, 0, 0);
      else
        wgmma_atb<S::kK, first()>(acc, ta, 0, i0, tb, 0, 0);
      wgmma_commit();
      fetch(step + kAhead);
      wgmma_wait<1>();
    }
  };
  advance(0, std::true_type());
#pragma unroll 1
  for (int step = 1; step < steps; ++step) advance(step, std::false_type());
  if constexpr (kWide && kHopper) wgmma_wait<0>(acc);
  write();
}

template <class Real, bool kWide, Product kProduct>
void launch_sizes(const Grouped<Real>& p, int64_t tiles, Device device) {
  using S = Sizes<Real, kWide>;
  const int64_t blocks = tiles * ceil_div(p.N, S::kN);
  if (blocks == 0) return;
  Arena count;
  const Tiles<Real, S, kProduct> measured(count);
  void (*const kernel)(Grouped<Real>) = grouped<Real, kWide, kProduct>;
  allow_shared_memory(kernel, count.used());
  kernel<<<static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(count.used()),
           cuda_stream(device)>>>(p);
  check_launch("grouped_matmul");
}

template <class Real, Product kProduct>
void launch(const Grouped<Real>& p, int64_t tiles, Device device) {
  if constexpr (std::is_same_v<Real, bf16>)
    if (cuda_arch(device) == 90) return launch_sizes<Real, true, kProduct>(p, tiles, device);
  launch_sizes<Real, false, kProduct>(p, tiles, device);
}

constexpr int kM = 128;  // of all Sizes

// The most tiles that R rows of E experts may need.
int64_t most_tiles(int64_t R, int64_t E) { return R / kM + std::min(R, E); }

}  // namespace

void GroupedMatmul::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                 Saved*) {
  const Device device = x.x.device();
  const Tensor in = with_rows(x.x), w = x.w.contiguous();
  const Tensor offsets = o.offsets.to(device).contiguous();
  if (device.is_meta()) return;
  const int64_t R = in.size(0), E = w.size(0), O = w.size(1), I = w.size(2);
  for_cuda_dtype(in.dtype(), [&]<class Real>() {
    const Grouped<Real> p{.a = dptr<Real>(in),
                          .b = dptr<Real>(w),
                          .c = dptr<Real>(y.y),
                          .a_stride = in.stride(0),
                          .b_stride = I,
                          .c_stride = O,
                          .b_expert = O * I,
                          .c_expert = 0,
                          .offsets = dptr<int64_t>(offsets),
                          .E = static_cast<int>(E),
                          .M = 0,
                          .N = static_cast<int>(O),
                          .K = static_cast<int>(I)};
    launch<Real, Product::y>(p, most_tiles(R, E), device);
  });
}

void GroupedMatmul::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                  const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Device device = x.x.device();
  const Tensor in = with_rows(x.x), w = x.w.contiguous(), d = with_rows(dy.y);
  const Tensor offsets = o.offsets.to(device).contiguous();
  if (device.is_meta()) return;
  const int64_t R = in.size(0), E = w.size(0), O = w.size(1), I = w.size(2);
  for_cuda_dtype(in.dtype(), [&]<class Real>() {
    Grouped<Real> p{.a = dptr<Real>(d),
                    .b = dptr<Real>(w),
                    .c = dptr<Real>(dx.x),
                    .a_stride = d.stride(0),
                    .b_stride = I,
                    .c_stride = I,
                    .b_expert = O * I,
                    .c_expert = 0,
                    .offsets = dptr<int64_t>(offsets),
                    .E = static_cast<int>(E),
                    .M = static_cast<int>(O),
                    .N = static_cast<int>(I),
                    .K = static_cast<int>(O)};
    if (dx.x) launch<Real, Product::dx>(p, most_tiles(R, E), device);
    if (!dx.w) return;
    p.b = dptr<Real>(in);
    p.b_stride = in.stride(0);
    p.c = dptr<Real>(dx.w);
    p.c_expert = O * I;
    launch<Real, Product::dw>(p, E * ceil_div(O, kM), device);
  });
}

}  // namespace weft::kernels
