// The tile layer: products of small matrices, a warp's left operand in registers times a tile in
// shared memory. Written for float and bf16 alike: bf16 products run on the tensor cores
// (mma.sync), float ones are plain FFMA in the very same register layout; both accumulate in float.
// A block of W warps gives warp w the rows 16 w .. 16 w + 15 of its tile. The parts:
//   warp.cuh            numbers, exponentials, reductions
//   tile_memory.cuh     Smem, Arena, load_tile, store_tile, load_tile_async
//   tile_registers.cuh  Acc, each, row_sum, acc_to_smem, store_acc, load_acc
//   this file           Frag, to_frag, load_frag, mma_ab, mma_abt, mma_atb
#pragma once

#include "kernels/tile/tile_registers.cuh"

namespace weft::kernels::tile {

// --- Left operands -------------------------------------------------------------------------------

// A warp's 16 x K left operand of a product. float: the layout of Acc; bf16: pairs, as mma takes
// it.
template <class Real, int K>
struct Frag;
template <int K>
struct Frag<float, K> {
  static_assert(K % 8 == 0);
  float x[K / 8][4];
};
template <int K>
struct Frag<bf16, K> {
  static_assert(K % 16 == 0);
  uint32_t x[K / 16][4];
};

// A product's result as the next product's left operand: nothing moves, bf16 only rounds and packs.
template <class Real, int N>
__device__ __forceinline__ Frag<Real, N> to_frag(const Acc<N>& acc) {
  Frag<Real, N> frag;
  if constexpr (std::is_same_v<Real, float>) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) frag.x[j][i] = acc.x[j][i];
    }
  } else {
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &acc.x[2 * k + i / 2][2 * (i % 2)];
        frag.x[k][i] = pack_bf16(pair[0], pair[1]);
      }
    }
  }
  return frag;
}

// Four 8 x 8 matrices of bf16; lane l names row l % 8 of matrix l / 8. kTranspose turns each.
template <bool kTranspose>
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t address) {
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
  }
}

// A[i, k] = tile(row0 + i, col0 + k) for 16 rows and K columns.
template <class Real, int K, int R, int C>
__device__ __forceinline__ Frag<Real, K> load_frag(Smem<Real, R, C> tile, int row0, int col0) {
  Frag<Real, K> frag;
  const int lane = lane_index();
  if constexpr (std::is_same_v<Real, float>) {
#pragma unroll
    for (int j = 0; j < K / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const float2 pair = load_pair(tile.ptr(row0 + acc_row(i), col0 + acc_col(j, i)));
        frag.x[j][i] = pair.x;
        frag.x[j][i + 1] = pair.y;
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
      load_matrices<false>(frag.x[k],
                           tile.address(row0 + lane % 16, col0 + 16 * k + lane / 16 * 8));
    }
  }
  return frag;
}

// The same of a tile that holds A transposed: A[i, k] = tile(row0 + k, col0 + i).
template <class Real, int K, int R, int C>
__device__ __forceinline__ Frag<Real, K> load_frag_t(Smem<Real, R, C> tile, int row0, int col0) {
  Frag<Real, K> frag;
  const int lane = lane_index();
  if constexpr (std::is_same_v<Real, float>) {
#pragma unroll
    for (int j = 0; j < K / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        frag.x[j][i] = tile.at(row0 + acc_col(j, i), col0 + acc_row(i));
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
      load_matrices<true>(frag.x[k], tile.address(row0 + 16 * k + lane % 8 + lane / 16 * 8,
                                                  col0 + lane / 8 % 2 * 8));
    }
  }
  return frag;
}

// --- Products ------------------------------------------------------------------------------------

// c += A B on the tensor cores: 16 x 16 times 16 x 8, bf16 into float.
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// acc += A B for 16 columns of a bf16 A; kTransposed: the tile holds B as [N][K], not [K][N].
template <bool kTransposed, int N, int R, int C>
__device__ __forceinline__ void mma_step(Acc<N>& acc, const uint32_t (&a)[4], Smem<bf16, R, C> b,
                                         int k0, int n0) {
  const int lane = lane_index();
#pragma unroll
  for (int j = 0; j < N / 8; j += 2) {
    uint32_t pair[4];  // k 0..7 and 8..15 of column block j, then of j + 1
    const int half = j + 1 < N / 8 ? lane / 16 * 8 : 0;
    if constexpr (kTransposed) {
      load_matrices<false>(pair, b.address(n0 + 8 * j + lane % 8 + half, k0 + lane / 8 % 2 * 8));
    } else {
      load_matrices<true>(pair, b.address(k0 + lane % 16, n0 + 8 * j + half));
    }
    mma_16x8x16(acc.x[j], a, pair[0], pair[1]);
    if (j + 1 < N / 8) mma_16x8x16(acc.x[j + 1], a, pair[2], pair[3]);
  }
}

// acc += A B for 8 columns of a float A, of which the lane has both its rows whole.
template <bool kTransposed, int N, int R, int C>
__device__ __forceinline__ void ffma_step(Acc<N>& acc, const float (&a)[2][8], Smem<float, R, C> b,
                                          int k0, int n0) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    if constexpr (kTransposed) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int k = 0; k < 8; k += 4) {
          const float4 four = *reinterpret_cast<const float4*>(b.ptr(n0 + acc_col(j, i), k0 + k));
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float& sum = acc.x[j][2 * r + i];
            sum = fmaf(a[r][k], four.x, sum);
            sum = fmaf(a[r][k + 1], four.y, sum);
            sum = fmaf(a[r][k + 2], four.z, sum);
            sum = fmaf(a[r][k + 3], four.w, sum);
          }
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float2 two = load_pair(b.ptr(k0 + k, n0 + acc_col(j, 0)));
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          acc.x[j][2 * r] = fmaf(a[r][k], two.x, acc.x[j][2 * r]);
          acc.x[j][2 * r + 1] = fmaf(a[r][k], two.y, acc.x[j][2 * r + 1]);
        }
      }
    }
  }
}

template <bool kTransposed, int N, int K, int R, int C>
__device__ __forceinline__ void multiply(Acc<N>& acc, const Frag<bf16, K>& a, Smem<bf16, R, C> b,
                                         int k0, int n0) {
#pragma unroll
  for (int k = 0; k < K / 16; ++k) mma_step<kTransposed>(acc, a.x[k], b, k0 + 16 * k, n0);
}
template <bool kTransposed, int N, int K, int R, int C>
__device__ __forceinline__ void multiply(Acc<N>& acc, const Frag<float, K>& a, Smem<float, R, C> b,
                                         int k0, int n0) {
  Frag<float, K> left = a;  // its first block is the next to be used, so that the loop can stay one
#pragma unroll(K* N <= 2048 ? K / 8 : 1)
  for (int k = 0; k < K; k += 8) {
    float row[2][8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      row[0][i] = __shfl_sync(~0u, left.x[0][i % 2], i / 2, 4);
      row[1][i] = __shfl_sync(~0u, left.x[0][2 + i % 2], i / 2, 4);
    }
    ffma_step<kTransposed>(acc, row, b, k0 + k, n0);
#pragma unroll
    for (int j = 0; j + 1 < K / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) left.x[j][i] = left.x[j + 1][i];
    }
  }
}

// acc[16, N] += A[16, K] B[K, N], B[k, n] = b(k0 + k, n0 + n).
template <class Real, int N, int K, int R, int C>
__device__ __forceinline__ void mma_ab(Acc<N>& acc, const Frag<Real, K>& a, Smem<Real, R, C> b,
                                       int k0, int n0) {
  multiply<false>(acc, a, b, k0, n0);
}
// acc[16, N] += A[16, K] B[K, N], B[k, n] = b(n0 + n, k0 + k).
template <class Real, int N, int K, int R, int C>
__device__ __forceinline__ void mma_abt(Acc<N>& acc, const Frag<Real, K>& a, Smem<Real, R, C> b,
                                        int n0, int k0) {
  multiply<true>(acc, a, b, k0, n0);
}

// Both operands in shared memory, A read as it is used: for long K, and few registers.
enum class Stored { plain, transposed };
template <int K, Stored kA, Stored kB, class Real, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void mma_tiles(Acc<N>& acc, Smem<Real, Ra, Ca> a, int i0, int ak0,
                                          Smem<Real, Rb, Cb> b, int bk0, int n0) {
  constexpr bool kTransposed = kB == Stored::transposed;
  if constexpr (std::is_same_v<Real, float>) {
#pragma unroll 1
    for (int k = 0; k < K; k += 8) {
      float row[2][8];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = i0 + acc_row(2 * r);
        if constexpr (kA == Stored::plain) {
          *reinterpret_cast<float4*>(row[r]) = *reinterpret_cast<float4*>(a.ptr(i, ak0 + k));
          *reinterpret_cast<float4*>(row[r] + 4) =
              *reinterpret_cast<float4*>(a.ptr(i, ak0 + k + 4));
        } else {
#pragma unroll
          for (int s = 0; s < 8; ++s) row[r][s] = a.at(ak0 + k + s, i);
        }
      }
      ffma_step<kTransposed>(acc, row, b, bk0 + k, n0);
    }
  } else {
#pragma unroll
    for (int k = 0; k < K; k += 16) {
      Frag<bf16, 16> frag;
      if constexpr (kA == Stored::plain) {
        frag = load_frag<bf16, 16>(a, i0, ak0 + k);
      } else {
        frag = load_frag_t<bf16, 16>(a, ak0 + k, i0);
      }
      mma_step<kTransposed>(acc, frag.x[0], b, bk0 + k, n0);
    }
  }
}
// acc += A B with A[i, k] = a(i0 + i, ak0 + k), B[k, n] = b(bk0 + k, n0 + n).
template <int K, class Real, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void mma_ab(Acc<N>& acc, Smem<Real, Ra, Ca> a, int i0, int ak0,
                                       Smem<Real, Rb, Cb> b, int bk0, int n0) {
  mma_tiles<K, Stored::plain, Stored::plain>(acc, a, i0, ak0, b, bk0, n0);
}
// acc += A B with A[i, k] = a(i0 + i, ak0 + k), B[k, n] = b(n0 + n, bk0 + k).
template <int K, class Real, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void mma_abt(Acc<N>& acc, Smem<Real, Ra, Ca> a, int i0, int ak0,
                                        Smem<Real, Rb, Cb> b, int n0, int bk0) {
  mma_tiles<K, Stored::plain, Stored::transposed>(acc, a, i0, ak0, b, bk0, n0);
}
// acc += A B with A[i, k] = a(ak0 + k, i0 + i), B[k, n] = b(bk0 + k, n0 + n).
template <int K, class Real, int N, int Ra, int Ca, int Rb, int Cb>
__device__ __forceinline__ void mma_atb(Acc<N>& acc, Smem<Real, Ra, Ca> a, int ak0, int i0,
                                        Smem<Real, Rb, Cb> b, int bk0, int n0) {
  mma_tiles<K, Stored::transposed, Stored::plain>(acc, a, i0, ak0, b, bk0, n0);
}

}  // namespace weft::kernels::tile
