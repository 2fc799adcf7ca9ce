// Verbs of sm_90a (Hopper): products of a whole warpgroup that read shared memory by themselves
// (wgmma), copies of whole tiles by one thread (TMA), barriers that count bytes, and registers that
// move between warpgroups. Tiles are the Smem<bf16, R, C> of the tile layer, accumulators its
// Acc<N>: a warpgroup's 64 rows are the stripes of its four warps, so every elementwise line is
// shared. A kernel puts what uses these into `if constexpr (kHopper)`; the host asks on_hopper().
//
// Two rules keep it correct:
//   * What threads wrote into a tile is seen by wgmma and TMA only after publish() by every writing
//     thread and then a barrier.
//   * A product runs on after it is issued. Until wgmma_wait, nobody touches its accumulator, its
//     fragment or its tiles.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <array>

#include "core/error.h"
#include "kernels/tile/tile.cuh"
#include "kernels/tile/wgmma.cuh"

namespace weft::kernels::tile {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHopper = true;
#else
inline constexpr bool kHopper = false;
#endif

// Host: whether kernels that need it run on this device. They must also have been built for it.
inline bool on_hopper(Device device) {
#if defined(WEFT_HAS_SM90A)
  return cuda_arch(device) == 90;
#else
  static_cast<void>(device);
  return false;
#endif
}

// --- Warpgroups ----------------------------------------------------------------------------------

// Threads 128 i .. 128 i + 127. Known to be the same in all lanes, as descriptors must be.
__device__ __forceinline__ int warpgroup_index() {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
}
__device__ __forceinline__ Threads warpgroup_threads() {
  return {static_cast<int>(threadIdx.x) % 128, 128};
}

// Registers a thread of this warpgroup may hold from here on, a multiple of 8; all its warps call.
// The sum over the warpgroups may not pass 504: 24 + 240 + 240, say. The kernel needs
// __launch_bounds__(threads, 1), or the compiler ignores both.
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// A barrier of `threads` threads of the block; id 1 to 15, since __syncthreads has 0. Those who
// arrive go on, those who sync wait for all.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// The same, and whether any of them says so.
__device__ __forceinline__ bool named_any(int id, int threads, bool says) {
  int any;
  asm volatile(
      "{.reg .pred p, q; setp.ne.s32 p, %3, 0; bar.red.or.pred q, %1, %2, p; selp.s32 %0, 1, 0, q;}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(static_cast<int>(says))
      : "memory");
  return any != 0;
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// What this thread wrote to shared memory may be read by wgmma and TMA; a barrier must follow.
__device__ __forceinline__ void publish() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Products of a warpgroup ---------------------------------------------------------------------

// Between writing registers or tiles and the first product that uses them; closes a group of
// products; waits until at most kPending of the latest groups are under way. An accumulator that
// was written and will be added to is named at the begin, one that will be read at the wait: the
// compiler then moves neither across.
template <int N>
__device__ __forceinline__ void pin(Acc<N>& acc) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(acc.x[j][i])::"memory");
  }
}
template <int K>
__device__ __forceinline__ void pin(Frag<bf16, K>& frag) {
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(frag.x[k][i])::"memory");
  }
}
template <class... Accs>
__device__ __forceinline__ void wgmma_begin(Accs&... accs) {
  (pin(accs), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending, class... Accs>
__device__ __forceinline__ void wgmma_wait(Accs&... accs) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (pin(accs), ...);
}

// Where a tile's operand for one step of 16 begins, as wgmma wants it said. kAcross: the tile's
// rows are the index of the sum, its columns the operand's rows or columns; otherwise the reverse.
template <bool kAcross, int R, int C>
__device__ __forceinline__ uint64_t wgmma_operand(Smem<bf16, R, C> tile, int outer, int sum) {
  using Tile = Smem<bf16, R, C>;
  constexpr int kPanel = R * Tile::panel_bytes;
  constexpr uint64_t kSwizzle = Tile::panel_bytes == 128 ? 1 : Tile::panel_bytes == 64 ? 2 : 3;
  constexpr uint64_t kFixed = kSwizzle << 62 |
                              static_cast<uint64_t>(8 * Tile::panel_bytes / 16) << 32 |
                              static_cast<uint64_t>(kAcross ? kPanel / 16 : 1) << 16;
  const int row = kAcross ? sum : outer, col = kAcross ? outer : sum;
  const int offset =
      col / Tile::panel_cols * kPanel + row * Tile::panel_bytes + col % Tile::panel_cols * 2;
  const auto start = static_cast<uint32_t>(__cvta_generic_to_shared(tile.data));
  return kFixed | static_cast<uint64_t>((start + offset) >> 4);
}

constexpr int widest_wgmma(int columns) {
  return columns >= 256 ? 256 : columns >= 128 ? 128 : columns >= 64 ? 64 : columns >= 32 ? 32 : 16;
}
// acc[64, N] (+)= A[64, K] B[K, N] by as few instructions as cover N, each of a width that exists:
// issue(width, d, k, B's operand) for the steps k of the sum, one band of columns after the other.
template <int K, bool kAcrossB, int kDone = 0, int N, int R, int C, class Issue>
__device__ __forceinline__ void wgmma_bands(Acc<N>& acc, Smem<bf16, R, C> b, int bk0, int n0,
                                            Issue issue) {
  static_assert(N % 16 == 0 && K % 16 == 0);
  constexpr int kWidth = widest_wgmma(N - kDone);
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    issue(Columns<kWidth>{}, &acc.x[kDone / 8][0], k,
          wgmma_operand<kAcrossB>(b, n0 + kDone, bk0 + k));
  }
  if constexpr (kDone + kWidth < N) {
    wgmma_bands<K, kAcrossB, kDone + kWidth>(acc, b, bk0, n0, issue);
  }
}

// The products mirror mma_ab and its sisters, for the 64 rows of a warpgroup and N a multiple of
// 16. kFirst: acc is overwritten instead of added to. Row offsets are multiples of 8; column
// offsets of 16, and of 64 where that index is the operand's rows or columns (i0, n0) and not of
// the sum.
inline constexpr bool kFirst = true;

// acc (+)= A B with A from registers, B[k, n] = b(k0 + k, n0 + n).
template <bool kOverwrite = false, int N, int K, int R, int C>
__device__ __forceinline__ void wgmma_ab(Acc<N>& acc, const Frag<bf16, K>& a, Smem<bf16, R, C> b,
                                         int k0, int n0) {
  wgmma_bands<K, true>(acc, b, k0, n0, [&](auto width, float* d, int k, uint64_t right) {
    wgmma_rs<true>(width, d, a.x[k / 16], right, !kOverwrite || k > 0);
  });
}
// acc (+)= A B with A from registers, B[k, n] = b(n0 + n, k0 + k).
template <bool kOverwrite = false, int N, int K, int R, int C>
__device__ __forceinline__ void wgmma_abt(Acc<N>& acc, const Frag<bf16, K>& a, Smem<bf16, R, C> b,
                                          int n0, int k0) {
  wgmma_bands<K, false>(acc, b, k0, n0, [&](auto width, float* d, int k, uint64_t right) {
    wgmma_rs<false>(width, d, a.x[k / 16], right, !kOverwrite || k > 0);
  });
}

template <int K, Stored kA, Stored kB, bool kOverwrite, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void wgmma_tiles(Acc<N>& acc, Smem<bf16, Ra, Ca> a, int i0, int ak0,
                                            Smem<bf16, Rb, Cb> b, int bk0, int n0) {
  constexpr bool kAcrossA = kA == Stored::transposed, kAcrossB = kB == Stored::plain;
  wgmma_bands<K, kAcrossB>(acc, b, bk0, n0, [&](auto width, float* d, int k, uint64_t right) {
    const uint64_t left = wgmma_operand<kAcrossA>(a, i0, ak0 + k);
    wgmma_ss<kAcrossA, kAcrossB>(width, d, left, right, !kOverwrite || k > 0);
  });
}
// acc (+)= A B with A[i, k] = a(i0 + i, ak0 + k), B[k, n] = b(bk0 + k, n0 + n).
template <int K, bool kOverwrite = false, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void wgmma_ab(Acc<N>& acc, Smem<bf16, Ra, Ca> a, int i0, int ak0,
                                         Smem<bf16, Rb, Cb> b, int bk0, int n0) {
  wgmma_tiles<K, Stored::plain, Stored::plain, kOverwrite>(acc, a, i0, ak0, b, bk0, n0);
}
// acc (+)= A B with A[i, k] = a(i0 + i, ak0 + k), B[k, n] = b(n0 + n, bk0 + k).
template <int K, bool kOverwrite = false, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void wgmma_abt(Acc<N>& acc, Smem<bf16, Ra, Ca> a, int i0, int ak0,
                                          Smem<bf16, Rb, Cb> b, int n0, int bk0) {
  wgmma_tiles<K, Stored::plain, Stored::transposed, kOverwrite>(acc, a, i0, ak0, b, bk0, n0);
}
// acc (+)= A B with A[i, k] = a(ak0 + k, i0 + i), B[k, n] = b(bk0 + k, n0 + n).
template <int K, bool kOverwrite = false, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void wgmma_atb(Acc<N>& acc, Smem<bf16, Ra, Ca> a, int ak0, int i0,
                                          Smem<bf16, Rb, Cb> b, int bk0, int n0) {
  wgmma_tiles<K, Stored::transposed, Stored::plain, kOverwrite>(acc, a, i0, ak0, b, bk0, n0);
}

// --- Barriers that count arrivals and bytes ------------------------------------------------------

using Barrier = uint64_t;  // in shared memory

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// One thread initialises, then barriers_ready(), then __syncthreads() for all.
__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Arrives, and demands that so many bytes arrive by TMA as well.
__device__ __forceinline__ void barrier_arrive_expecting(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Until the phase of this parity (0 for the first) is over.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred p;\n"
      "again_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1, 0x989680;\n"
      "@!p bra again_%=;}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// A ring of kStages buffers between a thread that fills them by TMA and warps that use them. Each
// side walks it with a Turn of its own:
//   producer: ring.acquire(turn, bytes);  tma_load(..., ring.full(turn));  turn.next<kStages>();
//   consumer: ring.wait(turn);  ...use...;  ring.release(turn) by one lane a warp;  turn.next...
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  template <int kStages>
  __device__ __forceinline__ void next() {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (stage == 0) parity ^= 1;
  }
};
template <int kStages>
struct Ring {
  using type = Barrier;
  static constexpr int bytes = 2 * kStages * 8, alignment = 8;
  Barrier* data = nullptr;  // kStages full, then kStages empty; Arena::carve<Ring<kStages>>()

  __device__ __forceinline__ Barrier* full(Turn turn) const { return data + turn.stage; }
  __device__ __forceinline__ Barrier* empty(Turn turn) const { return data + kStages + turn.stage; }
  // By one thread, then barriers_ready() and __syncthreads(). Arrivals a stage on either side.
  __device__ __forceinline__ void init(int producers, int consumers) const {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(data + i, producers);
      barrier_init(data + kStages + i, consumers);
    }
  }
  // The producer's: waits until the stage is free; the second form then expects TMA's bytes.
  __device__ __forceinline__ void acquire(Turn turn) const {
    barrier_wait(empty(turn), turn.parity ^ 1);
  }
  __device__ __forceinline__ void acquire(Turn turn, int expected_bytes) const {
    acquire(turn);
    barrier_arrive_expecting(full(turn), expected_bytes);
  }
  // The consumers': until the stage is full; it may be filled again.
  __device__ __forceinline__ void wait(Turn turn) const { barrier_wait(full(turn), turn.parity); }
  __device__ __forceinline__ void release(Turn turn) const { barrier_arrive(empty(turn)); }
};

// --- Copies of whole tiles -----------------------------------------------------------------------

// How TMA finds a tile of rows t .. t + R - 1 and columns k .. k + C - 1 in x [B, T, H, K]: the
// sizes in that order, strides of B, T and H in elements (multiples of 8, K's is 1), x aligned to
// 16 bytes. Hand it to the kernel as `const __grid_constant__ CUtensorMap`.
template <class Tile>
CUtensorMap tensor_map(const bf16* x, const std::array<int64_t, 4>& sizes,
                       const std::array<int64_t, 3>& strides) {
  static_assert(std::is_same_v<typename Tile::type, bf16> && Tile::rows <= 256);
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                                12000, cudaEnableDefault, &found);
    require(
        status == cudaSuccess && found == cudaDriverEntryPointSuccess,
        "the CUDA driver has no cuTensorMapEncodeTiled: a driver of CUDA 12 or newer is needed");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  const auto unsigned_of = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  // Nobody steps along a dimension of one; its stride need not be legal.
  const auto stride_of = [&](int i) { return unsigned_of(sizes[i] == 1 ? 16 : strides[i] * 2); };
  const cuuint64_t dims[4] = {unsigned_of(sizes[3]), unsigned_of(sizes[2]), unsigned_of(sizes[1]),
                              unsigned_of(sizes[0])};
  const cuuint64_t bytes[3] = {stride_of(2), stride_of(1), stride_of(0)};
  const cuuint32_t box[4] = {Tile::panel_cols, 1, Tile::rows, 1}, steps[4] = {1, 1, 1, 1};
  constexpr auto kSwizzle = Tile::panel_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                            : Tile::panel_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                      : CU_TENSOR_MAP_SWIZZLE_32B;
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<bf16*>(x), dims, bytes, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled refuses sizes ", sizes[0], ", ", sizes[1],
          ", ", sizes[2], ", ", sizes[3], " with strides ", strides[0], ", ", strides[1], ", ",
          strides[2], " (code ", static_cast<int>(result), ")");
  return map;
}

// One thread loads the tile from row t and column k of head h in batch b, zeros beyond the edges;
// `full` counts Tile::bytes when it is there.
template <int R, int C>
__device__ __forceinline__ void tma_load(Smem<bf16, R, C> tile, const CUtensorMap& map,
                                         Barrier* full, int b, int t, int h, int k) {
  using Tile = Smem<bf16, R, C>;
#pragma unroll
  for (int c = 0; c < C; c += Tile::panel_cols) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3,%4,%5,%6}], [%2];" ::"r"(shared_address(tile.data) + c * R * 2),
        "l"(&map), "r"(shared_address(full)), "r"(k + c), "r"(h), "r"(t), "r"(b)
        : "memory");
  }
}
// One thread brings memory to the L2 cache: a multiple of 16 bytes, from a multiple of 16.
__device__ __forceinline__ void prefetch(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
// One thread loads numbers that lie together: a multiple of 4, from and to multiples of 16 bytes.
__device__ __forceinline__ void bulk_load(float* to, const float* from, int count, Barrier* full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(count * 4), "r"(shared_address(full))
      : "memory");
}
// One thread stores the tile, nothing beyond the edges. It was published. tma_store_commit() closes
// a group; tma_store_read<N>() waits until all but the N latest are read and their tiles may be
// written again; before the kernel ends nothing need be waited for but tma_store_read<0>().
template <int R, int C>
__device__ __forceinline__ void tma_store(const CUtensorMap& map, Smem<bf16, R, C> tile, int b,
                                          int t, int h, int k) {
  using Tile = Smem<bf16, R, C>;
#pragma unroll
  for (int c = 0; c < C; c += Tile::panel_cols) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2,%3,%4,%5}], [%1];" ::
            "l"(&map),
        "r"(shared_address(tile.data) + c * R * 2), "r"(k + c), "r"(h), "r"(t), "r"(b)
        : "memory");
  }
}
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void tma_store_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace weft::kernels::tile
