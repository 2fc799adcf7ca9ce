// The arithmetic of pieces on tiles: the decays that scalar log gates make between their tokens,
// and what scans do with left operands and stages.
#pragma once

#include "kernels/tile/tile.cuh"

namespace weft::kernels {

// A log gate for each token and head, natural, <= 0: g + log_gamma, each of which may be absent.
struct ScalarGates {
  const float* g = nullptr;          // [B, T, H]
  const float* log_gamma = nullptr;  // [H]
  int64_t by_row = 0, by_token = 0, by_head = 0;

  __device__ explicit operator bool() const { return g || log_gamma; }
  __device__ float at(int b, int t, int h) const {
    return (g ? g[b * by_row + t * by_token + h * by_head] : 0.f) +
           (log_gamma ? log_gamma[h] : 0.f);
  }
};

// Of C tokens, base 2. With G_i = g_0 + .. + g_i, summed in double and kept as two floats: a gate
// that forgets all must not cost the differences of later ones their digits. Such a gate, -infinity
// too, counts for no more than it takes, so that 48 bits hold the sum of 64 of them to 2^-35. No
// exponent is ever positive.
template <int C>
struct SharedDecay {
  static_assert(C == 64);  // two tokens a lane
  static constexpr int kFloats = 4 * C + 4;
  float* data;

  __device__ float* high() const { return data; }  // G_i = high + low, times log2(e)
  __device__ float* low() const { return data + C; }
  __device__ float* from_start() const { return data + 2 * C; }  // e^{G_i}: to token i
  __device__ float* to_end() const { return data + 3 * C; }      // e^{G_{n-1} - G_i}: from it on
  __device__ float& total() const { return data[4 * C]; }        // e^{G_{n-1}}

  // By one warp: lane l has the gates of tokens 2 l and 2 l + 1, zero beyond the last.
  __device__ void set(float first, float second) const {
    constexpr double kLog2e = 1.4426950408889634;
    const int lane = tile::lane_index();
    const double a = tile::summable_gate(first) * kLog2e;
    const double pair = a + tile::summable_gate(second) * kLog2e;
    double sum = pair;
#pragma unroll
    for (int m = 1; m < 32; m <<= 1) {
      const double before = __shfl_up_sync(~0u, sum, m);
      if (lane >= m) sum += before;
    }
    const double all = __shfl_sync(~0u, sum, 31);
    put(2 * lane, sum - pair + a, all);
    put(2 * lane + 1, sum, all);
    if (lane == 0) total() = tile::ex2(static_cast<float>(all));
  }
  // Does the gate of token i forget all?
  __device__ bool resets(int i) const {
    return (i > 0 ? between(i, i - 1) : from_start()[0]) == 0.f;
  }
  // e^{G_i - G_j} for j <= i.
  __device__ float between(int i, int j) const {
    return tile::ex2(high()[i] - high()[j] + (low()[i] - low()[j]));
  }

 private:
  __device__ void put(int i, double sum, double all) const {
    const float rounded = static_cast<float>(sum);
    high()[i] = rounded;
    low()[i] = static_cast<float>(sum - rounded);
    from_start()[i] = tile::ex2(rounded);
    to_end()[i] = tile::ex2(static_cast<float>(all - sum));
  }
};

// The two gates of this lane for the tokens begin .. end - 1 of a piece.
__device__ inline float2 lane_gates(const ScalarGates& gates, int b, int begin, int end, int h) {
  const int t = begin + 2 * tile::lane_index();
  return {gates && t < end ? gates.at(b, t, h) : 0.f,
          gates && t + 1 < end ? gates.at(b, t + 1, h) : 0.f};
}

// a[i, k] *= factor[k], a warp's left operand.
template <int K>
__device__ __forceinline__ void scale_inner(tile::Frag<tile::bf16, K>& a, const float* factor) {
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 by = tile::load_pair(factor + tile::acc_col(2 * k + half, 0));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint32_t& pair = a.x[k][2 * half + r];
        pair = tile::pack_bf16(tile::low_of(pair) * by.x, tile::high_of(pair) * by.y);
      }
    }
  }
}
template <int K>
__device__ __forceinline__ void scale_inner(tile::Frag<float, K>& a, const float* factor) {
#pragma unroll
  for (int j = 0; j < K / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.x[j][i] *= factor[tile::acc_col(j, i)];
  }
}

// a[i, k] *= factor[i].
template <int K>
__device__ __forceinline__ void scale_outer(tile::Frag<tile::bf16, K>& a,
                                            const tile::Rows& factor) {
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float by = factor.x[i % 2];
      a.x[k][i] = tile::pack_bf16(tile::low_of(a.x[k][i]) * by, tile::high_of(a.x[k][i]) * by);
    }
  }
}
template <int K>
__device__ __forceinline__ void scale_outer(tile::Frag<float, K>& a, const tile::Rows& factor) {
#pragma unroll
  for (int j = 0; j < K / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.x[j][i] *= factor.x[i / 2];
  }
}
// acc += other
template <int N>
__device__ __forceinline__ void add_to(tile::Acc<N>& acc, const tile::Acc<N>& other) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.x[j][i] += other.x[j][i];
  }
}
// Columns 16 j .. 16 j + 15 of an accumulator, to be added to.
template <int N>
__device__ __forceinline__ tile::Acc<16>& outer_part(tile::Acc<N>& acc, int j) {
  return reinterpret_cast<tile::Acc<16>&>(acc.x[2 * j]);
}
// Columns 16 j .. 16 j + 15 of a left operand.
template <int K>
__device__ __forceinline__ tile::Frag<tile::bf16, 16> inner_part(const tile::Frag<tile::bf16, K>& a,
                                                                 int j) {
  return {{{a.x[j][0], a.x[j][1], a.x[j][2], a.x[j][3]}}};
}
template <int K>
__device__ __forceinline__ tile::Frag<float, 16> inner_part(const tile::Frag<float, K>& a, int j) {
  tile::Frag<float, 16> part;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    part.x[0][i] = a.x[2 * j][i];
    part.x[1][i] = a.x[2 * j + 1][i];
  }
  return part;
}

// load_tile_async by the first kThreads threads of a block: each keeps to its columns and steps
// down the rows, so that an address costs an addition.
template <int kThreads, class Real, int R, int C>
__device__ __forceinline__ void load_rows_async(tile::Smem<Real, R, C> to, const Real* from,
                                                int64_t row_stride, int rows_valid,
                                                int cols_valid) {
  constexpr int kUnit = tile::Smem<Real, R, C>::unit_cols, kUnits = C / kUnit;
  constexpr int kStep = kThreads / kUnits;
  static_assert(kThreads % kUnits == 0);
  const int rank = static_cast<int>(threadIdx.x), r = rank / kUnits, c = rank % kUnits * kUnit;
  if (rank >= kThreads) return;
  if (!tile::rows_are_aligned(from, row_stride))
    return load_tile(to, from, row_stride, rows_valid, cols_valid, {rank, kThreads});
  const int bytes = max(0, min(kUnit, cols_valid - c)) * static_cast<int>(sizeof(Real));
  const Real* row = from + r * row_stride + c;
  const uint32_t address = to.address(r, c);
#pragma unroll
  for (int i = 0; i < R; i += kStep) {
    if (kStep > R && r >= R) break;
    const bool inside = r + i < rows_valid && bytes > 0;
    // The swizzle comes round every 8 rows.
    const uint32_t at = kStep % 8 == 0 ? address + i * to.panel_bytes : to.address(r + i, c);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at),
                 "l"(inside ? row : from), "r"(inside ? bytes : 0)
                 : "memory");
    row += kStep * row_stride;
  }
}

// The tile of one stage, of tiles that lie one behind the other.
template <class Real, int R, int C>
__device__ __forceinline__ tile::Smem<Real, R, C> stage_of(tile::Smem<Real, R, C> first,
                                                           int stage) {
  return {first.data + stage * R * C};
}

// to[r * row_stride + c] = from(r, col0 + c) for 16 columns, by one warp.
template <class Real, int R, int C>
__device__ __forceinline__ void store_columns(tile::Smem<Real, R, C> from, int col0, Real* to,
                                              int64_t row_stride, int rows_valid, int cols_valid) {
  constexpr int kUnit = tile::Smem<Real, R, C>::unit_cols, kUnits = 16 / kUnit;
  const bool vectors = tile::rows_are_aligned(to, row_stride);
#pragma unroll 4
  for (int at = tile::lane_index(); at < R * kUnits; at += 32) {
    const int r = at / kUnits, c = at % kUnits * kUnit;
    if (r >= rows_valid || c >= cols_valid) continue;
    const Real* unit = from.ptr(r, col0 + c);
    if (vectors && c + kUnit <= cols_valid) {
      *reinterpret_cast<uint4*>(to + r * row_stride + c) = *reinterpret_cast<const uint4*>(unit);
    } else {
      for (int i = 0; i < kUnit && c + i < cols_valid; ++i) to[r * row_stride + c + i] = unit[i];
    }
  }
}

// A warp's 16 columns of a state [K, V], transposed, by blocks of up to 64 channels: the left
// operand of S' q' as it stands.
template <int K>
struct TransposedState {
  static constexpr int kWidth = K < 64 ? K : 64, kBlocks = K / kWidth;
  tile::Acc<kWidth> s[kBlocks];

  // f(column of V, channel, value)
  template <class F>
  __device__ __forceinline__ void each(F&& f) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
      tile::each(s[block], [&](int v, int d, float& x) { f(v, block * kWidth + d, x); });
  }
  // `state` is where the warp's first column starts, of which `columns` exist; absent: zero.
  __device__ void load(const float* state, int channels, int V, int columns) {
    each([&](int v, int d, float& x) {
      const bool inside = state && v < columns && d < channels;
      x = inside ? state[int64_t{d} * V + v] : 0.f;
    });
  }
  __device__ void store(float* state, int channels, int V, int columns) {
    each([&](int v, int d, float& x) {
      if (v < columns && d < channels) state[int64_t{d} * V + v] = x;
    });
  }
};

}  // namespace weft::kernels
