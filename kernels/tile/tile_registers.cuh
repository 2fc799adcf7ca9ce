// A warp's tile in registers: its layout, its sums, and its ways to and from memory.
// A warp owns 16 rows. Element i of column block j of an Acc lies at
//   row lane/4 + 8 * (i / 2),  column 8 * j + 2 * (lane % 4) + i % 2,
// so four neighbouring lanes (a quad) hold a row: the layout in which mma.sync leaves its result. A
// warpgroup's wgmma accumulator is four of these, one below the other.
#pragma once

#include "kernels/tile/tile_memory.cuh"

namespace weft::kernels::tile {

// --- Tiles in registers --------------------------------------------------------------------------

// A warp's 16 x N floats.
template <int N>
struct Acc {
  static_assert(N % 8 == 0);
  static constexpr int cols = N;
  float x[N / 8][4];
};

// Two numbers a lane, one for each of its rows lane/4 and lane/4 + 8; equal within a quad.
struct Rows {
  float x[2];
};
// One number for each of a lane's columns: 8 * j + 2 * (lane % 4) + i.
template <int N>
struct Cols {
  float x[N / 8][2];
};

// The row within the warp's 16, and the column, of element i of block j.
__device__ __forceinline__ int acc_row(int i) { return lane_index() / 4 + 8 * (i / 2); }
__device__ __forceinline__ int acc_col(int j, int i) {
  return 8 * j + 2 * (lane_index() % 4) + i % 2;
}

// f(row, col, float& value) for each of this lane's numbers, unrolled; row counts from 0 to 15.
template <int N, class F>
__device__ __forceinline__ void each(Acc<N>& acc, F&& f) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(acc_row(i), acc_col(j, i), acc.x[j][i]);
  }
}

template <int N>
__device__ __forceinline__ void fill(Acc<N>& acc, float value) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.x[j][i] = value;
  }
}
template <int N>
__device__ __forceinline__ void scale(Acc<N>& acc, float factor) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.x[j][i] *= factor;
  }
}
template <int N>
__device__ __forceinline__ void scale_rows(Acc<N>& acc, const Rows& factor) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.x[j][i] *= factor.x[i / 2];
  }
}
template <int N>
__device__ __forceinline__ void scale_cols(Acc<N>& acc, const Cols<N>& factor) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.x[j][i] *= factor.x[j][i % 2];
  }
}

// A vector in memory as factors of rows (from this warp's first on) or of columns, where p is
// aligned to two floats.
__device__ __forceinline__ Rows load_rows(const float* p) {
  return {p[lane_index() / 4], p[lane_index() / 4 + 8]};
}
template <int N>
__device__ __forceinline__ Cols<N> load_cols(const float* p) {
  Cols<N> cols;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    const float2 pair = load_pair(p + acc_col(j, 0));
    cols.x[j][0] = pair.x;
    cols.x[j][1] = pair.y;
  }
  return cols;
}

// Sums and maxima along the rows, in every lane of the quad; sums down the 16 rows, in every lane
// with these columns. The order is fixed.
template <int N>
__device__ __forceinline__ Rows row_sum(const Acc<N>& acc) {
  Rows sum = {0.f, 0.f};
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x[i / 2] += acc.x[j][i];
  }
  return {quad_sum(sum.x[0]), quad_sum(sum.x[1])};
}
template <int N>
__device__ __forceinline__ Rows row_max(const Acc<N>& acc) {
  Rows top = {acc.x[0][0], acc.x[0][2]};
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) top.x[i / 2] = fmaxf(top.x[i / 2], acc.x[j][i]);
  }
  return {quad_max(top.x[0]), quad_max(top.x[1])};
}
template <int N>
__device__ __forceinline__ Cols<N> col_sum(const Acc<N>& acc) {
  Cols<N> sum;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float s = acc.x[j][i] + acc.x[j][i + 2];
#pragma unroll
      for (int m = 4; m < 32; m <<= 1) s += __shfl_xor_sync(~0u, s, m);
      sum.x[j][i] = s;
    }
  }
  return sum;
}

// --- Registers and shared memory -----------------------------------------------------------------

// Offsets into tiles are multiples of 8.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
inline constexpr bool kHasStmatrix = true;
#else
inline constexpr bool kHasStmatrix = false;
#endif

// Columns 8 j .. 8 j + 15 as four 8 x 8 blocks of bf16 to the rows that the lanes name, lane l row
// l % 8 of block l / 8. kTranspose turns each.
template <bool kTranspose, int N>
__device__ __forceinline__ void store_matrices(const Acc<N>& acc, int j, uint32_t address) {
  uint32_t x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* pair = &acc.x[j + i / 2][2 * (i % 2)];
    x[i] = pack_bf16(pair[0], pair[1]);
  }
  if constexpr (kTranspose) {
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
        "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
        : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
                 "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
  }
}

// tile(row0 + i, col0 + j) = acc[i, j], rounded to T. Synchronise before others read it.
template <class Real, int N, int R, int C>
__device__ __forceinline__ void acc_to_smem(const Acc<N>& acc, Smem<Real, R, C> tile, int row0,
                                            int col0) {
  constexpr int kPaired = kHasStmatrix && sizeof(Real) == 2 ? N / 16 * 2 : 0;
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < kPaired; j += 2) {
    store_matrices<false>(acc, j, tile.address(row0 + lane % 16, col0 + 8 * j + lane / 16 * 8));
  }
#pragma unroll
  for (int j = kPaired; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      store_pair(tile.ptr(row0 + acc_row(i), col0 + acc_col(j, i)), acc.x[j][i], acc.x[j][i + 1]);
    }
  }
}

// tile(row0 + j, col0 + i) = acc[i, j]: the transpose.
template <class Real, int N, int R, int C>
__device__ __forceinline__ void acc_to_smem_t(const Acc<N>& acc, Smem<Real, R, C> tile, int row0,
                                              int col0) {
  constexpr int kPaired = kHasStmatrix && sizeof(Real) == 2 ? N / 16 * 2 : 0;
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < kPaired; j += 2) {
    store_matrices<true>(
        acc, j, tile.address(row0 + 8 * j + lane % 8 + lane / 16 * 8, col0 + lane / 8 % 2 * 8));
  }
#pragma unroll
  for (int j = kPaired; j < N / 8; ++j) {
    if constexpr (std::is_same_v<Real, float>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        tile.at(row0 + acc_col(j, i), col0 + acc_row(i)) = acc.x[j][i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {  // an 8 x 8 block turned within the warp
        uint32_t pair = pack_bf16(acc.x[j][i], acc.x[j][i + 1]);
        asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pair));
        const int r = row0 + 8 * j + lane / 4, c = col0 + 8 * (i / 2) + 2 * (lane % 4);
        *reinterpret_cast<uint32_t*>(tile.ptr(r, c)) = pair;
      }
    }
  }
}

// acc[i, j] = tile(row0 + i, col0 + j).
template <class Real, int N, int R, int C>
__device__ __forceinline__ void acc_from_smem(Acc<N>& acc, Smem<Real, R, C> tile, int row0,
                                              int col0) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float2 pair = load_pair(tile.ptr(row0 + acc_row(i), col0 + acc_col(j, i)));
      acc.x[j][i] = pair.x;
      acc.x[j][i + 1] = pair.y;
    }
  }
}

// --- Registers and global memory -----------------------------------------------------------------

// True where a lane's two neighbours make one aligned access in every row.
template <class G>
__device__ __forceinline__ bool pairs_are_aligned(const G* global, int64_t row_stride) {
  return reinterpret_cast<uintptr_t>(global) % (2 * sizeof(G)) == 0 && row_stride % 2 == 0;
}

// global[i * row_stride + j] = acc[i, j] for i < rows_valid and j < cols_valid, rounded to G.
// global is where this warp's row 0 goes; rows_valid counts from there and may be below 0.
template <int N, class G>
__device__ __forceinline__ void store_acc(const Acc<N>& acc, G* global, int64_t row_stride,
                                          int rows_valid, int cols_valid) {
  const bool pairs = pairs_are_aligned(global, row_stride);
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    if (acc_row(i) >= rows_valid) continue;
    G* row = global + acc_row(i) * row_stride;
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const int c = acc_col(j, 0);
      if (pairs && c + 1 < cols_valid) {
        store_pair(row + c, acc.x[j][i], acc.x[j][i + 1]);
      } else {
        if (c < cols_valid) row[c] = from_float<G>(acc.x[j][i]);
        if (c + 1 < cols_valid) row[c + 1] = from_float<G>(acc.x[j][i + 1]);
      }
    }
  }
}

// acc[i, j] = global[i * row_stride + j] where valid, zero elsewhere.
template <int N, class G>
__device__ __forceinline__ void load_acc(Acc<N>& acc, const G* global, int64_t row_stride,
                                         int rows_valid, int cols_valid) {
  const bool pairs = pairs_are_aligned(global, row_stride);
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const bool inside = acc_row(i) < rows_valid;
    const G* row = global + (inside ? acc_row(i) * row_stride : 0);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const int c = acc_col(j, 0);
      float2 pair = make_float2(0.f, 0.f);
      if (inside && pairs && c + 1 < cols_valid) {
        pair = load_pair(row + c);
      } else if (inside) {
        if (c < cols_valid) pair.x = to_float(row[c]);
        if (c + 1 < cols_valid) pair.y = to_float(row[c + 1]);
      }
      acc.x[j][i] = pair.x;
      acc.x[j][i + 1] = pair.y;
    }
  }
}

}  // namespace weft::kernels::tile
