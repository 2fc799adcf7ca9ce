// What both passes of the CUDA form share.
//
// A warp owns 8 C channels of one row (C is 1 or 2) and 16 states of each, and walks time by
// itself: lane 4 g + q holds channels C g .. C g + C - 1 and states 4 q .. 4 q + 3 of them in
// registers. Tokens come in steps of 8: for loads and stores lane 4 j + q stands for token j of the
// step and for 2 C neighbouring channels. Sums over states are sums over the four lanes q; a
// tensor-core product with a matrix of ones makes them, and puts those of token j where the lanes
// of token j can use them. More than 16 states are blocks of 16, each with warps of its own.
#pragma once

#include "kernels/selective_scan/selective_scan.h"
#include "kernels/tile/vectors.cuh"
#include "kernels/tile/warp.cuh"
#include "kernels/tokens/documents.cuh"

namespace weft::kernels::selective_scan {

inline constexpr int kWarps = 4;    // of a block: neighbours in channels
inline constexpr int kStep = 8;     // tokens
inline constexpr int kChunk = 32;   // tokens from one kept state to the next
inline constexpr int kStates = 16;  // of a warp

// [B, T, width], the last dimension's elements being neighbours.
template <class Real>
struct Plane {
  Real* data = nullptr;
  int64_t row = 0, token = 0;
  bool vectors = false;  // a lane's part of a row can be read at once

  __device__ __forceinline__ Real* at(int b, int t, int column) const {
    return data + b * row + t * token + column;
  }
  // n of N elements; zeros for the others.
  template <int N>
  __device__ __forceinline__ auto get(int b, int t, int column, int n) const {
    using E = std::remove_const_t<Real>;
    if (vectors) return n > 0 ? fetch<N>(at(b, t, column)) : Packed<E, N>{};
    float some[N];
    load_some(at(b, t, column), n, some);
    return packed<E>(some);
  }
  template <int N>
  __device__ __forceinline__ void put(int b, int t, int column, int n,
                                      const float (&from)[N]) const {
    if (!vectors)
      store_some(at(b, t, column), n, from);
    else if (n > 0)
      store(at(b, t, column), from);
  }
};

// [N, E, K], or absent.
template <class Real>
struct States {
  Real* data = nullptr;
  int64_t document = 0, channel = 0, state = 0;
};

template <class Real>
struct Problem {
  Plane<const Real> x, dt, z, B, C;  // z may be absent
  const float* A_log;
  int64_t A_channel, A_state;
  const float *D, *bias;  // or null
  States<const float> initial;
  const int32_t* cu;  // [N + 1], or null: row n is document n
  int N, rows, tokens, E, K;
  int blocks;  // of 16 states
  int groups;  // of kWarps warps, for the channels of a row

  __host__ __device__ int64_t chunks() const { return (tokens + kChunk - 1) / kChunk; }
  // Where the state before a chunk is kept: [B, chunks - 1, E, 16 blocks].
  __device__ __forceinline__ int64_t kept(int row, int chunk, int channel) const {
    return ((row * (chunks() - 1) + chunk - 1) * E + channel) * (blocks * kStates);
  }
};

struct Document {
  int n, begin, end;
};
template <class Real>
__device__ __forceinline__ Document document_of(const Problem<Real>& p, int row, int t) {
  if (!p.cu) return {row, 0, p.tokens};
  const int n = document_at(p.cu, p.N, t);
  return {n, p.cu[n], p.cu[n + 1]};
}

// What a lane stands for. Block b of the grid: channels fastest, then state blocks, then rows.
template <int C>
struct Lane {
  static constexpr int N = 2 * C;  // channels of its loads and stores

  int g, q, warp;
  int row, block;  // of states
  int group;       // of the row's blocks of warps
  int channel;     // first of the C that it holds; those past E are zeros
  int state;       // first of the 4
  int column, n;   // of its loads and stores: first channel, and how many exist
  int states;      // how many of the 4 exist

  template <class Real>
  __device__ explicit Lane(const Problem<Real>& p)
      : g(tile::lane_index() / 4), q(tile::lane_index() % 4), warp(tile::warp_index()) {
    const unsigned above = blockIdx.x / p.groups;
    group = blockIdx.x - above * p.groups;
    row = above / p.blocks;
    block = above - row * p.blocks;
    const int first = (group * kWarps + warp) * 8 * C;
    channel = first + g * C;
    column = first + q * N;
    n = max(0, min(N, p.E - column));
    state = block * kStates + 4 * q;
    states = max(0, min(4, p.K - state));
  }
};

// h[c][s] from a tensor of states, zeros where there is none.
template <int C, class Real>
__device__ __forceinline__ void load_states(const States<const float>& from, int n,
                                            const Lane<C>& lane, const Problem<Real>& p,
                                            float (&h)[C][4]) {
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const bool here = from.data && lane.channel + c < p.E;
    load_some(
        from.data + n * from.document + (lane.channel + c) * from.channel + lane.state * from.state,
        here ? lane.states : 0, h[c], from.state);
  }
}
template <int C, class Real>
__device__ __forceinline__ void store_states(const States<float>& to, int n, const Lane<C>& lane,
                                             const Problem<Real>& p, const float (&h)[C][4]) {
  if (!to.data) return;
#pragma unroll
  for (int c = 0; c < C; ++c)
    if (lane.channel + c < p.E)
      store_some(
          to.data + n * to.document + (lane.channel + c) * to.channel + lane.state * to.state,
          lane.states, h[c], to.state);
}

// -A from its logarithm, which ends where any step forgets all.
__device__ __forceinline__ float pace(float A_log) {
  constexpr float kFastest = SelectiveScan::kFastest;
  return expf(A_log > kFastest ? kFastest : A_log);
}

// A in units of log2, for ex2. States that do not exist get 0, and stay 0.
template <int C, class Real>
__device__ __forceinline__ void load_rates(const Problem<Real>& p, const Lane<C>& lane,
                                           float (&A)[C][4]) {
  load_states({p.A_log, 0, p.A_channel, p.A_state}, 0, lane, p, A);
#pragma unroll
  for (int c = 0; c < C; ++c)
#pragma unroll
    for (int s = 0; s < 4; ++s) A[c][s] = s < lane.states ? -tile::kLog2e * pace(A[c][s]) : 0.0f;
}

// A lane's numbers, one for each of its channels.
template <int N, class Real>
__device__ __forceinline__ void load_weights(const float* from, const Lane<N / 2>& lane,
                                             const Problem<Real>&, float (&to)[N]) {
  load_some(from + lane.column, from ? lane.n : 0, to);
}

// log(1 + e^x). The logarithm instruction is good to 2e-7 absolute: below 1/8 the series is better.
__device__ __forceinline__ float softplus(float x) {
  const float u = tile::ex2(-tile::kLog2e * fabsf(x));
  float p = -1.0f / 6;
  p = fmaf(p, u, 1.0f / 5);
  p = fmaf(p, u, -1.0f / 4);
  p = fmaf(p, u, 1.0f / 3);
  p = fmaf(p, u, -1.0f / 2);
  const float log1p = u < 0.125f ? fmaf(p * u, u, u) : tile::kLn2 * tile::lg2(1.0f + u);
  return fmaxf(x, 0.0f) + log1p;  // which NaN stays in
}

// d[i] += the sums over lanes q of a (i = 0, 1) and b (i = 2, 3), for the lanes of token j: i = 0,
// 2 is the sum of lane group g = 2 q, i = 1, 3 that of 2 q + 1. `mine` is 1 in the lanes of token
// j, else 0. bf16 tensors get sums of tf32 numbers, which is finer than what they keep; f32 ones
// get a second product for the rest.
template <bool kExact>
__device__ __forceinline__ void sum_states(float (&d)[4], float mine, float a, float b) {
  const auto product = [&](float u, float v) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%5,%4}, "
        "{%6,%7}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(mine)), "r"(0), "r"(__float_as_uint(u)), "r"(__float_as_uint(v)));
  };
  if (kExact) {
    const float u = __uint_as_float(__float_as_uint(a) & 0xffffe000u);
    const float v = __uint_as_float(__float_as_uint(b) & 0xffffe000u);
    product(u, v);
    product(a - u, b - v);
  } else {
    product(a, b);
  }
}
// The sums as they lie, in the order of the lane's channels: those of C values, one a channel.
template <int C>
__device__ __forceinline__ void channels_of(const float (&d)[4], float (&to)[2 * C]) {
  if constexpr (C == 2) {
    to[0] = d[0], to[1] = d[2], to[2] = d[1], to[3] = d[3];
  } else {
    to[0] = d[0], to[1] = d[1];
  }
}

// What the walk reads of a token, in shared memory: step and step times input of each channel.
template <int C>
struct Inputs8 {
  static constexpr int kRow = C == 2 ? 9 : 4;  // float4; one is a gap that keeps banks apart
  float4 at[kStep][kRow];

  // Lane's channels of token j.
  __device__ __forceinline__ void put(int j, const Lane<C>& lane, const float (&step)[2 * C],
                                      const float (&in)[2 * C]) {
#pragma unroll
    for (int i = 0; i < C; ++i)
      at[j][lane.q * C + i] = make_float4(step[2 * i], in[2 * i], step[2 * i + 1], in[2 * i + 1]);
  }
  __device__ __forceinline__ void get(int j, const Lane<C>& lane, float (&step)[C],
                                      float (&in)[C]) const {
    if constexpr (C == 2) {
      const float4 v = at[j][lane.g];
      step[0] = v.x, in[0] = v.y, step[1] = v.z, in[1] = v.w;
    } else {
      const float2 v = reinterpret_cast<const float2*>(at[j])[lane.g];
      step[0] = v.x, in[0] = v.y;
    }
  }
};

// B and C of 8 tokens and 16 states: pairs of bf16, or floats in two planes.
template <class Real>
struct Shared8 {
  static constexpr int kPlanes = sizeof(Real) == 4 ? 2 : 1;
  uint4 at[kPlanes][kStep][4];

  __device__ __forceinline__ void put(int j, int q, const Packed<Real, 4>& B,
                                      const Packed<Real, 4>& C) {
    if constexpr (kPlanes == 2) {
      at[0][j][q] = B.words[0];
      at[1][j][q] = C.words[0];
    } else {
      at[0][j][q] = make_uint4(
          __byte_perm(B.bits[0], C.bits[0], 0x5410), __byte_perm(B.bits[0], C.bits[0], 0x7632),
          __byte_perm(B.bits[1], C.bits[1], 0x5410), __byte_perm(B.bits[1], C.bits[1], 0x7632));
    }
  }
  __device__ __forceinline__ void get(int j, int q, float (&B)[4], float (&C)[4]) const {
    const uint4 v = at[0][j][q];
    const uint32_t bits[4] = {v.x, v.y, v.z, v.w};
    if constexpr (kPlanes == 2) {
      const uint4 w = at[1][j][q];
      const uint32_t more[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int s = 0; s < 4; ++s) B[s] = __uint_as_float(bits[s]), C[s] = __uint_as_float(more[s]);
    } else {
#pragma unroll
      for (int s = 0; s < 4; ++s) B[s] = tile::low_of(bits[s]), C[s] = tile::high_of(bits[s]);
    }
  }
};

// One token: the decays a and the state h.
template <int C>
__device__ __forceinline__ void advance(const float (&A)[C][4], const float (&step)[C],
                                        const float (&in)[C], const float (&B)[4],
                                        const float (&before)[C][4], float (&a)[C][4],
                                        float (&h)[C][4]) {
#pragma unroll
  for (int c = 0; c < C; ++c)
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      a[c][s] = tile::ex2(step[c] * A[c][s]);
      h[c][s] = fmaf(a[c][s], before[c][s], in[c] * B[s]);
    }
}

// Host: the inputs in the form that the kernels take, with the copies that this needs.
struct Operands {
  Operands(const weft::kernels::Inputs<SelectiveScan>& in, const SelectiveScan::Options& o)
      : x(with_rows(in.x)),
        dt(with_rows(in.dt)),
        z(with_rows(in.z)),
        B(with_rows(in.B)),
        C(with_rows(in.C)),
        A_log(in.A_log),
        D(in.D ? in.D.contiguous() : Tensor()),
        bias(in.dt_bias ? in.dt_bias.contiguous() : Tensor()),
        initial(in.initial_state),
        rows(x.size(0)),
        tokens(x.size(1)),
        E(x.size(2)),
        K(in.A_log.size(1)),
        blocks(ceil_div(K, kStates)),
        channels(rows * E * blocks >= 16384 ? 2 : 1),
        groups(ceil_div(E, 8 * channels * kWarps)) {
    require(K <= 256, "selective_scan: A_log has ", K, " states, expected at most 256 on a GPU");
    require(tokens < int64_t{1} << 30, "selective_scan: ", tokens,
            " tokens, expected fewer than 2^30 on a GPU");
    if (o.cu_seqlens && !x.is_meta()) cu = o.cu_seqlens.to(x.device());
  }

  static Tensor with_rows(const Tensor& t) {
    return !t || t.stride(2) == 1 || t.size(2) == 1 ? t : t.contiguous();
  }
  // Of a tensor [B, T, E]: a lane takes 2 channels of each; of B or C: 4 states.
  template <class Real>
  Plane<Real> channel_plane(const Tensor& t) const {
    return plane<Real>(t, 2 * channels);
  }
  template <class Real>
  Plane<Real> state_plane(const Tensor& t) const {
    return plane<Real>(t, 4);
  }
  template <class Real>
  static Plane<Real> plane(const Tensor& t, int64_t n) {
    if (!t) return {};
    return {dptr<std::remove_const_t<Real>>(t), t.stride(0), t.stride(1),
            t.size(2) % n == 0 && vector_rows(t, n)};
  }
  template <class Real>
  static States<Real> states(const Tensor& t) {
    if (!t) return {};
    return {dptr<float>(t), t.stride(0), t.stride(1), t.stride(2)};
  }
  static float* pointer(const Tensor& t) { return t ? dptr<float>(t) : nullptr; }

  template <class Real>
  Problem<Real> problem() const {
    return {channel_plane<const Real>(x),
            channel_plane<const Real>(dt),
            channel_plane<const Real>(z),
            state_plane<const Real>(B),
            state_plane<const Real>(C),
            dptr<float>(A_log),
            A_log.stride(0),
            A_log.stride(1),
            pointer(D),
            pointer(bias),
            states<const float>(initial),
            cu ? dptr<int32_t>(cu) : nullptr,
            cu ? static_cast<int>(cu.size(0) - 1) : 0,
            static_cast<int>(rows),
            static_cast<int>(tokens),
            static_cast<int>(E),
            static_cast<int>(K),
            static_cast<int>(blocks),
            static_cast<int>(groups)};
  }
  // No lane is without channels or states, and all read whole vectors.
  template <class Real>
  bool plain(const Problem<Real>& p) const {
    return E % (8 * channels) == 0 && K == kStates && p.x.vectors && p.dt.vectors &&
           (!z || p.z.vectors) && p.B.vectors && p.C.vectors;
  }
  unsigned grid() const { return static_cast<unsigned>(rows * blocks * groups); }

  Tensor x, dt, z, B, C, A_log, D, bias, initial, cu;
  int64_t rows, tokens, E, K, blocks, channels, groups;
};

// Calls f.template operator()<T, C>() for the dtype and the channels of a lane.
template <class F>
void for_lanes(const Operands& x, const F& f) {
  for_cuda_dtype(x.x.dtype(), [&]<class Real>() {
    if (x.channels == 2)
      f.template operator()<Real, 2>();
    else
      f.template operator()<Real, 1>();
  });
}

}  // namespace weft::kernels::selective_scan
