// Tiles in shared memory, and their ways to and from global memory.
// A tile is R rows of C numbers, cut into panels of 128 bytes a row (64 or 32 where C is narrow).
// Within a panel, units of 16 bytes are exchanged by XOR with the row: eight rows of one column of
// units then lie in eight different bank groups, so ldmatrix reads them without conflict. For bf16
// this is the 128-byte swizzle of TMA and wgmma; for float the XOR is turned by one bit, because
// lanes there read two units of a row at once.
#pragma once

#include "kernels/tile/warp.cuh"

namespace weft::kernels::tile {

// --- Shared memory -----------------------------------------------------------------------------

// A tile's handle: copy it freely, it holds a pointer alone. R a multiple of 8, C of 32 bytes.
template <class Real, int R, int C>
struct Smem {
  using type = Real;
  static constexpr int rows = R, cols = C;
  static constexpr int row_bytes = C * static_cast<int>(sizeof(Real));
  static constexpr int panel_bytes = row_bytes % 128 == 0 ? 128 : row_bytes % 64 == 0 ? 64 : 32;
  static constexpr int panel_cols = panel_bytes / static_cast<int>(sizeof(Real));
  static constexpr int unit_cols = 16 / static_cast<int>(sizeof(Real));  // numbers in 16 bytes
  static constexpr int bytes = R * row_bytes;
  static constexpr int alignment = 8 * panel_bytes;
  static_assert(R % 8 == 0 && row_bytes % 32 == 0);

  Real* data = nullptr;

  // Bytes from the tile's start to element (r, c).
  __host__ __device__ static constexpr int offset(int r, int c) {
    constexpr int kUnits = panel_bytes / 16;
    int turn = r / (128 / panel_bytes) % kUnits;
    if constexpr (sizeof(Real) == 4) turn = (turn * 2 | turn / (kUnits / 2)) % kUnits;
    const int unit = c % panel_cols / unit_cols, within = c % unit_cols;
    return c / panel_cols * (R * panel_bytes) + ((r * panel_bytes + turn * 16) ^ (unit * 16)) +
           within * static_cast<int>(sizeof(Real));
  }
  __device__ __forceinline__ Real* ptr(int r, int c) const {
    return reinterpret_cast<Real*>(reinterpret_cast<char*>(data) + offset(r, c));
  }
  __device__ __forceinline__ Real& at(int r, int c) const { return *ptr(r, c); }
  // The address that ldmatrix and cp.async take.
  __device__ __forceinline__ uint32_t address(int r, int c) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(data)) + offset(r, c);
  }
};

// N tiles one behind the other, for stages of a pipeline: unlike an array of handles, an index that
// is known at run time costs a multiplication.
template <class Tile, int N>
struct Stages {
  using type = typename Tile::type;
  static constexpr int bytes = N * Tile::bytes, alignment = Tile::alignment;

  type* data = nullptr;

  __device__ __forceinline__ Tile operator[](int i) const {
    return {data + i * (Tile::rows * Tile::cols)};
  }
};

// Hands out dynamic shared memory. On the host, or made from nullptr, it only counts:
//   Arena arena(dynamic_memory());  const auto q = arena.carve<Smem<T, 64, 128>>();
//   float* decay = arena.carve<float>(64);
// Put a kernel's carving into a __host__ __device__ function of Arena& and the launch can ask it
// for the size: Arena count; carve_all(count); launch<<<grid, threads, count.used()>>>.
class Arena {
 public:
  __host__ __device__ explicit Arena(unsigned char* base = nullptr) : base_(base) {}
  template <class Tile>
  requires requires { Tile::alignment; }
  __host__ __device__ Tile carve() {
    return Tile{reinterpret_cast<typename Tile::type*>(take(Tile::bytes, Tile::alignment))};
  }
  template <class Real>
  __host__ __device__ Real* carve(int count) {
    return reinterpret_cast<Real*>(take(count * static_cast<int>(sizeof(Real)), 16));
  }
  __host__ __device__ int used() const { return used_; }

 private:
  __host__ __device__ unsigned char* take(int bytes, int alignment) {
    const int start = (used_ + alignment - 1) / alignment * alignment;
    used_ = start + bytes;
#if defined(__CUDA_ARCH__)
    return base_ + start;  // without a question: the compiler then knows that it is shared memory
#else
    return base_ == nullptr ? nullptr : base_ + start;
#endif
  }
  unsigned char* base_;
  int used_ = 0;
};

// The start of the block's dynamic shared memory.
__device__ __forceinline__ unsigned char* dynamic_memory() {
  extern __shared__ __align__(1024) unsigned char weft_dynamic_memory[];
  return weft_dynamic_memory;
}

// --- Which threads share a copy ------------------------------------------------------------------

struct Threads {
  int rank, count;
};
__device__ __forceinline__ Threads block_threads() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}
__device__ __forceinline__ Threads warp_threads() { return {lane_index(), 32}; }

// --- Global to shared --------------------------------------------------------------------------

// True where 16-byte vectors reach every row: the same answer in all threads.
template <class G>
__device__ __forceinline__ bool rows_are_aligned(const G* global, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(global) % 16 == 0 && row_stride * sizeof(G) % 16 == 0;
}

// kCount neighbours as floats or raw, the first `valid` of them read, zeros after.
template <class Real, int kCount, class G>
__device__ __forceinline__ void read_unit(Real (&out)[kCount], const G* p, int valid,
                                          bool vectors) {
  static_assert(kCount * sizeof(Real) == 16);
  if (vectors && valid >= kCount) {
    if constexpr (std::is_same_v<Real, G>) {
      *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(p);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 2) {
        const float2 pair = load_pair(p + i);
        out[i] = from_float<Real>(pair.x);
        out[i + 1] = from_float<Real>(pair.y);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      out[i] = i < valid ? from_float<Real>(to_float(p[i])) : from_float<Real>(0.f);
    }
  }
}

// tile(r, c) = global[r * row_stride + c] for r < rows_valid and c < cols_valid, zero elsewhere;
// converts where the types differ. Synchronise before reading the tile.
template <class Real, int R, int C, class G>
__device__ __forceinline__ void load_tile(Smem<Real, R, C> tile, const G* global,
                                          int64_t row_stride, int rows_valid, int cols_valid,
                                          Threads who = block_threads()) {
  constexpr int kUnit = Smem<Real, R, C>::unit_cols, kUnits = C / kUnit, kBatch = 4;
  const bool vectors = rows_are_aligned(global, row_stride);
  for (int first = who.rank; first < R * kUnits; first += kBatch * who.count) {
    alignas(16) Real unit[kBatch][kUnit];  // several loads under way at a time
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = first + i * who.count, r = at / kUnits, c = at % kUnits * kUnit;
      const int valid = r < rows_valid && at < R * kUnits ? cols_valid - c : 0;
      read_unit<Real>(unit[i], global + (valid > 0 ? r * row_stride + c : 0), valid, vectors);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = first + i * who.count, r = at / kUnits, c = at % kUnits * kUnit;
      if (at < R * kUnits) {
        *reinterpret_cast<uint4*>(tile.ptr(r, c)) = *reinterpret_cast<const uint4*>(unit[i]);
      }
    }
  }
}

// As load_tile without waiting: async_commit() closes a group, async_wait<N>() lets the N latest
// groups be under way; synchronise the block after it. Rows that vectors cannot reach, and other
// types, are loaded at once.
template <class Real, int R, int C, class G>
__device__ __forceinline__ void load_tile_async(Smem<Real, R, C> tile, const G* global,
                                                int64_t row_stride, int rows_valid, int cols_valid,
                                                Threads who = block_threads()) {
  if constexpr (std::is_same_v<Real, G>) {
    if (rows_are_aligned(global, row_stride)) {
      constexpr int kUnit = Smem<Real, R, C>::unit_cols, kUnits = C / kUnit;
#pragma unroll 4
      for (int at = who.rank; at < R * kUnits; at += who.count) {
        const int r = at / kUnits, c = at % kUnits * kUnit;
        const int valid = r < rows_valid ? max(0, min(kUnit, cols_valid - c)) : 0;
        const G* from = global + (valid > 0 ? r * row_stride + c : 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(tile.address(r, c)),
                     "l"(from), "r"(valid * static_cast<int>(sizeof(Real)))
                     : "memory");
      }
      return;
    }
  }
  load_tile(tile, global, row_stride, rows_valid, cols_valid, who);
}
__device__ __forceinline__ void async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

template <class Real, int R, int C>
__device__ __forceinline__ void zero_tile(Smem<Real, R, C> tile, Threads who = block_threads()) {
  for (int at = who.rank; at < Smem<Real, R, C>::bytes / 16; at += who.count) {
    reinterpret_cast<uint4*>(tile.data)[at] = make_uint4(0, 0, 0, 0);
  }
}

// --- Shared to global --------------------------------------------------------------------------

// global[r * row_stride + c] = tile(r, c) for r < rows_valid and c < cols_valid. Synchronise first.
template <class Real, int R, int C, class G>
__device__ __forceinline__ void store_tile(Smem<Real, R, C> tile, G* global, int64_t row_stride,
                                           int rows_valid, int cols_valid,
                                           Threads who = block_threads()) {
  constexpr int kUnit = Smem<Real, R, C>::unit_cols, kUnits = C / kUnit;
  const bool vectors = rows_are_aligned(global, row_stride);
  for (int at = who.rank; at < R * kUnits; at += who.count) {
    const int r = at / kUnits, c = at % kUnits * kUnit;
    if (r >= rows_valid || c >= cols_valid) continue;
    const Real* from = tile.ptr(r, c);
    G* to = global + r * row_stride + c;
    if (vectors && c + kUnit <= cols_valid) {
      if constexpr (std::is_same_v<Real, G>) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
#pragma unroll
        for (int i = 0; i < kUnit; i += 2) {
          store_pair(to + i, to_float(from[i]), to_float(from[i + 1]));
        }
      }
    } else {
      for (int i = 0; i < kUnit && c + i < cols_valid; ++i) {
        to[i] = from_float<G>(to_float(from[i]));
      }
    }
  }
}

}  // namespace weft::kernels::tile
