// Every verb of kernels/tile/hopper.cuh against plain loops on the CPU. Needs sm_90a.
#include "kernels/tile/hopper.cuh"

#include <cmath>

#include "tests/kernels/cuda_memory.cuh"

namespace weft::kernels::tile {
namespace {

using tests::normal;
using tests::number;
using tests::OnGpu;
using tests::require_success;

bool has_hopper() {
  int major = 0;
  return tests::has_gpu() &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
         major == 9;
}

double relative_error(const std::vector<double>& want, const std::vector<float>& got) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(error / norm);  // NaN is never below a tolerance
}

// --- Products ------------------------------------------------------------------------------------

enum class Form { rs_ab, rs_abt, ss_ab, ss_abt, ss_atb };

constexpr int kWarpgroups = 2, kRows = 64 * kWarpgroups;

// kShift: how many steps of 16 the sum starts into its tile, and of 64 or 8 the columns of B.
template <Form kForm, int N, int K, int kShift, int kRound>
struct Product {
  static constexpr bool kTurnedA = kForm == Form::ss_atb;
  static constexpr bool kTurnedB = kForm == Form::rs_abt || kForm == Form::ss_abt;
  static constexpr int k0 = 16 * kShift, n0 = (kTurnedB ? 8 : 64) * kShift;
  static constexpr int round(int n) { return (n + kRound - 1) / kRound * kRound; }
  using A =
      std::conditional_t<kTurnedA, Smem<bf16, k0 + K, kRows>, Smem<bf16, kRows, round(k0 + K)>>;
  using B = std::conditional_t<kTurnedB, Smem<bf16, n0 + N, round(k0 + K)>,
                               Smem<bf16, k0 + K, round(n0 + N)>>;
};

template <class P, Form kForm, int N, int K, bool kOverwrite>
__global__ void __launch_bounds__(128 * kWarpgroups, 1)
    product_kernel(const bf16* a_global, const bf16* b_global, float* out) {
  if constexpr (kHopper) {
    Arena arena(dynamic_memory());
    const auto a = arena.carve<typename P::A>();
    const auto b = arena.carve<typename P::B>();
    load_tile(a, a_global, P::A::cols, P::A::rows, P::A::cols);
    load_tile(b, b_global, P::B::cols, P::B::rows, P::B::cols);
    publish();
    __syncthreads();
    const int row0 = 64 * warpgroup_index(), warp_row0 = 16 * warp_index();
    Acc<N> acc;
    fill(acc, 1.f);
    if constexpr (kForm == Form::rs_ab || kForm == Form::rs_abt) {
      const auto frag = load_frag<bf16, K>(a, warp_row0, P::k0);
      wgmma_begin(acc);
      if constexpr (kForm == Form::rs_ab) {
        wgmma_ab<kOverwrite>(acc, frag, b, P::k0, P::n0);
      } else {
        wgmma_abt<kOverwrite>(acc, frag, b, P::n0, P::k0);
      }
    } else {
      wgmma_begin(acc);
      if constexpr (kForm == Form::ss_ab) {
        wgmma_ab<K, kOverwrite>(acc, a, row0, P::k0, b, P::k0, P::n0);
      } else if constexpr (kForm == Form::ss_abt) {
        wgmma_abt<K, kOverwrite>(acc, a, row0, P::k0, b, P::n0, P::k0);
      } else {
        wgmma_atb<K, kOverwrite>(acc, a, P::k0, row0, b, P::k0, P::n0);
      }
    }
    wgmma_commit();
    wgmma_wait<0>(acc);
    store_acc(acc, out + warp_row0 * N, N, 16, N);
  }
}

template <Form kForm, int N, int K, int kShift, int kRound, bool kOverwrite>
void check_one() {
  using P = Product<kForm, N, K, kShift, kRound>;
  INFO("form " << static_cast<int>(kForm) << " N " << N << " K " << K << " shift " << kShift
               << " panels " << P::A::panel_bytes << " and " << P::B::panel_bytes);
  const auto a = normal<bf16>(P::A::rows * P::A::cols, 5);
  const auto b = normal<bf16>(P::B::rows * P::B::cols, 6);
  const OnGpu<bf16> ga(a), gb(b);
  const OnGpu<float> out(std::vector<float>(kRows * N, NAN));
  constexpr int kBytes = P::A::bytes + P::B::bytes + 1024;
  const auto kernel = product_kernel<P, kForm, N, K, kOverwrite>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  kernel<<<1, 128 * kWarpgroups, kBytes>>>(ga.data(), gb.data(), out.data());
  require_success("product");
  std::vector<double> want(kRows * N, kOverwrite ? 0. : 1.);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < N; ++j) {
      for (int s = 0; s < K; ++s) {
        const int k = P::k0 + s, n = P::n0 + j;
        want[i * N + j] +=
            double(number(P::kTurnedA ? a[k * P::A::cols + i] : a[i * P::A::cols + k])) *
            number(P::kTurnedB ? b[n * P::B::cols + k] : b[k * P::B::cols + n]);
      }
    }
  }
  CHECK(relative_error(want, out.host()) < 1e-6);
}
template <Form kForm, int N, int K, int kShift, int kRound>
void check_product() {
  check_one<kForm, N, K, kShift, kRound, kFirst>();
  check_one<kForm, N, K, kShift, kRound, !kFirst>();
}

template <Form kForm>
void check_products() {
  check_product<kForm, 64, 64, 0, 64>();
  check_product<kForm, 128, 128, 1, 64>();
  check_product<kForm, 16, 16, 1, 64>();
  check_product<kForm, 96, 64, 1, 64>();  // 64 and 32 columns
  check_product<kForm, 32, 32, 0, 32>();  // panels of 64 bytes
  check_product<kForm, 16, 48, 0, 16>();  // and of 32
}

TEST_CASE("hopper: products of a warpgroup are sums of products", "[cuda]") {
  if (!has_hopper()) SKIP("no GPU of sm_90");
  check_products<Form::rs_ab>();
  check_products<Form::rs_abt>();
  check_products<Form::ss_ab>();
  check_products<Form::ss_abt>();
  check_products<Form::ss_atb>();
  check_product<Form::ss_ab, 256, 64, 0, 64>();
  check_product<Form::ss_abt, 256, 64, 0, 64>();
  check_product<Form::rs_ab, 192, 64, 0, 64>();
}

// --- Copies and pipelines ------------------------------------------------------------------------

struct Place {
  int b, t, h, k;
};

template <class Tile>
__global__ void copy_kernel(const __grid_constant__ CUtensorMap from,
                            const __grid_constant__ CUtensorMap to, Place at, float* seen) {
  if constexpr (kHopper) {
    Arena arena(dynamic_memory());
    const auto tile = arena.carve<Tile>();
    Barrier* full = arena.carve<Barrier>(1);
    if (threadIdx.x == 0) {
      barrier_init(full, 1);
      barriers_ready();
      barrier_arrive_expecting(full, Tile::bytes);
      tma_load(tile, from, full, at.b, at.t, at.h, at.k);
    }
    __syncthreads();
    barrier_wait(full, 0);
    for (int i = threadIdx.x; i < Tile::rows * Tile::cols; i += blockDim.x) {
      float& x = seen[i];
      x = to_float(tile.at(i / Tile::cols, i % Tile::cols));
      tile.at(i / Tile::cols, i % Tile::cols) = from_float<bf16>(2 * x);
    }
    publish();
    __syncthreads();
    if (threadIdx.x == 0) {
      tma_store(to, tile, at.b, at.t, at.h, at.k);
      tma_store_commit();
      tma_store_read<0>();
    }
  }
}

template <class Tile>
void check_copy(const Place& at) {
  INFO("R " << Tile::rows << " C " << Tile::cols << " at t " << at.t << " k " << at.k);
  constexpr int B = 2, T = 50, H = 3, K = 72, kStride = 80;  // K of kStride are the tensor's
  const size_t size = size_t{B} * T * H * kStride;
  const auto x = normal<bf16>(size, 1);
  const OnGpu<bf16> from(x), to(std::vector<bf16>(size, bf16(7.f)));
  const OnGpu<float> seen(std::vector<float>(Tile::rows * Tile::cols, NAN));
  const auto map_of = [&](const bf16* p) {
    return tensor_map<Tile>(p, {B, T, H, K}, {T * H * kStride, H * kStride, kStride});
  };
  copy_kernel<Tile>
      <<<1, 64, Tile::bytes + 64>>>(map_of(from.data()), map_of(to.data()), at, seen.data());
  require_success("copy");
  const auto tile = seen.host();
  const auto y = to.host();
  int wrong = 0;
  for (int r = 0; r < Tile::rows; ++r) {
    for (int c = 0; c < Tile::cols; ++c) {
      const int t = at.t + r, k = at.k + c;
      const bool valid = t < T && k < K;
      const size_t i = ((size_t{1} * at.b * T + t) * H + at.h) * kStride + k;
      wrong += tile[r * Tile::cols + c] != (valid ? number(x[i]) : 0.f);
      if (valid) wrong += number(y[i]) != 2 * number(x[i]);
    }
  }
  CHECK(wrong == 0);
  int touched = 0, inside = 0;
  for (size_t i = 0; i < size; ++i) touched += number(y[i]) != 7.f;
  for (int r = 0; r < Tile::rows; ++r) {
    for (int c = 0; c < Tile::cols; ++c) inside += at.t + r < T && at.k + c < K;
  }
  CHECK(touched <= inside);
}

TEST_CASE("hopper: TMA moves tiles both ways and keeps within the edges", "[cuda]") {
  if (!has_hopper()) SKIP("no GPU of sm_90");
  check_copy<Smem<bf16, 32, 64>>({0, 0, 0, 0});
  check_copy<Smem<bf16, 32, 64>>({1, 40, 2, 16});
  check_copy<Smem<bf16, 64, 128>>({1, 8, 1, 0});
  check_copy<Smem<bf16, 16, 32>>({0, 7, 2, 48});
  check_copy<Smem<bf16, 16, 16>>({0, 36, 1, 64});
}

// o[T, 64] = a[64 rows of a chunk, 64] b[64, 64]' chunk by chunk: one warpgroup loads, two take
// turns with chunks, at a pace that changes so that either side has to wait.
constexpr int kStages = 3;
using Chunk = Smem<bf16, 64, 64>;

__global__ void __launch_bounds__(384, 1)
    pipeline_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                    const __grid_constant__ CUtensorMap o, int chunks, int pace) {
  if constexpr (kHopper) {
    Arena arena(dynamic_memory());
    Chunk stage[kStages], out[2];
    for (Chunk& s : stage) s = arena.carve<Chunk>();
    for (Chunk& s : out) s = arena.carve<Chunk>();
    const auto right = arena.carve<Chunk>();
    const auto ring = arena.carve<Ring<kStages>>();
    Barrier* loaded = arena.carve<Barrier>(1);
    if (threadIdx.x == 0) {
      ring.init(1, 4);
      barrier_init(loaded, 1);
      barriers_ready();
    }
    __syncthreads();
    Turn turn;
    if (warpgroup_index() == 0) {
      give_registers<24>();
      if (threadIdx.x == 0) {
        barrier_arrive_expecting(loaded, Chunk::bytes);
        tma_load(right, b, loaded, 0, 0, 0, 0);
        for (int c = 0; c < chunks; ++c) {
          if (pace == 1) __nanosleep(200 * (c % 7));
          ring.acquire(turn, Chunk::bytes);
          tma_load(Chunk{stage[0].data + turn.stage * 64 * 64}, a, ring.full(turn), 0, 64 * c, 0,
                   0);
          turn.next<kStages>();
        }
      }
    } else {
      take_registers<240>();
      const int who = warpgroup_index() - 1, warp_row0 = 16 * (warp_index() % 4);
      const Chunk mine{out[0].data + who * 64 * 64};
      barrier_wait(loaded, 0);
      for (int c = 0; c < chunks; ++c) {
        if (c % 2 == who) {
          if (pace == 2) __nanosleep(300 * (c % 5));
          ring.wait(turn);
          Acc<64> acc;
          wgmma_begin();
          wgmma_abt<64, kFirst>(acc, Chunk{stage[0].data + turn.stage * 64 * 64}, 0, 0, right, 0,
                                0);
          wgmma_commit();
          wgmma_wait<0>(acc);
          if (lane_index() == 0) ring.release(turn);
          if (threadIdx.x % 128 == 0) tma_store_read<0>();  // the tile is free again
          named_sync(1 + who, 128);
          acc_to_smem(acc, mine, warp_row0, 0);
          publish();
          named_sync(1 + who, 128);
          if (threadIdx.x % 128 == 0) {
            tma_store(o, mine, 0, 64 * c, 0, 0);
            tma_store_commit();
          }
        }
        turn.next<kStages>();
      }
      if (threadIdx.x % 128 == 0) tma_store_read<0>();
    }
  }
}

TEST_CASE("hopper: a ring keeps loads, products and stores in step at any pace", "[cuda]") {
  if (!has_hopper()) SKIP("no GPU of sm_90");
  constexpr int kChunks = 41, kTokens = 64 * kChunks - 5;
  const auto a = normal<bf16>(kTokens * 64, 3), b = normal<bf16>(64 * 64, 4);
  const OnGpu<bf16> ga(a), gb(b);
  const auto map_of = [](const bf16* p, int rows) {
    return tensor_map<Chunk>(p, {1, rows, 1, 64}, {rows * 64, 64, 64});
  };
  std::vector<double> want(kTokens * 64);
  for (int i = 0; i < kTokens; ++i) {
    for (int j = 0; j < 64; ++j) {
      for (int k = 0; k < 64; ++k)
        want[i * 64 + j] += double(number(a[i * 64 + k])) * number(b[j * 64 + k]);
    }
  }
  for (const int pace : {0, 1, 2}) {
    INFO("pace " << pace);
    const OnGpu<bf16> o(std::vector<bf16>(a.size(), bf16(NAN)));
    constexpr int kBytes = 6 * Chunk::bytes + 256;
    cudaFuncSetAttribute(pipeline_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    pipeline_kernel<<<1, 384, kBytes>>>(map_of(ga.data(), kTokens), map_of(gb.data(), 64),
                                        map_of(o.data(), kTokens), kChunks, pace);
    require_success("pipeline");
    const auto y = o.host();
    std::vector<float> got(y.size());
    for (size_t i = 0; i < y.size(); ++i) got[i] = number(y[i]);
    CHECK(relative_error(want, got) < 3e-3);  // the rounding to bf16
  }
}

}  // namespace
}  // namespace weft::kernels::tile
