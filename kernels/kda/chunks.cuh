// What the chunkwise form of kda makes of a chunk before any state is known, for forward and
// backward: queries and keys with their decays, the decayed scores, the inverse of the triangular
// system.
//
// A decay between two tokens is a vector, so scores are products of matrices only where a reference
// lies between row and column. Blocks of 16 tokens have theirs at the row's block's start:
//   P_ij = <q_i up_i decay_IJ, k_j down_j>     token j in block J, before token i in block I
// with up from the start of its block to the token, down from the token to its block's end, and
// decay_IJ over the blocks between: no exponent is positive, and nothing lies in a token's future.
// Within a block keys fade token by token, in fp32.
#pragma once

#include "kernels/delta_rule/problem.cuh"
#include "kernels/kda/kda.h"

namespace weft::kernels::kda {

using namespace delta_rule;

inline constexpr int kBlock = 16, kBlocks = kChunk / kBlock;

template <class Real>
struct Chunks {
  Grid grid;
  int K, group, width;  // width: of rows of K in memory
  float scale;
  Heads<const Real> q, k;
  Heads<const float> beta, g;
  Real *inverse, *scores;  // [B, H, T, kInverseWidth], [B, H, T, 64]
  Gate* gates;             // [B, H, T]
  Real *q_up, *k_up,
      *k_end;    // [B, H, T, width]: from the piece's start (q times scale), to its end
  float* total;  // [B, H, chunks, width], of the piece that ends with the chunk
};

template <class Real, int KP>
struct ChunkTiles {
  Smem<Real, kChunk, KP> q, k, k_down;
  Smem<float, kChunk, KP> a;  // log gates, then gates
  float* sums;                // [kBlocks][KP]: log2 gates of a block
  float* system;              // [64, kPitch]
  float* own;                 // [kBlocks][16][16]: scores of q with k within a block
  float* beta;                // [64]
  __host__ __device__ explicit ChunkTiles(Arena& arena) {
    q = arena.carve<Smem<Real, kChunk, KP>>();
    k = arena.carve<Smem<Real, kChunk, KP>>();
    a = arena.carve<Smem<float, kChunk, KP>>();
    if constexpr (std::is_same_v<Real, float>) {
      k_down = a;  // a lane reads its channels of a block before it writes them
    } else {
      k_down = arena.carve<Smem<Real, kChunk, KP>>();
    }
    sums = arena.carve<float>(kBlocks * KP);
    system = arena.carve<float>(kChunk * kPitch);
    own = arena.carve<float>(kBlocks * kBlock * kBlock);
    beta = arena.carve<float>(kChunk);
  }
};

// Two neighbouring channels at a time.
__device__ __forceinline__ float2 times(float2 a, float2 b) { return {a.x * b.x, a.y * b.y}; }
__device__ __forceinline__ float2 plus(float2 a, float2 b) { return {a.x + b.x, a.y + b.y}; }
__device__ __forceinline__ float2 fma(float2 a, float2 b, float2 c) {
  return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)};
}
__device__ __forceinline__ float2 fma(float a, float2 b, float2 c) {
  return {fmaf(a, b.x, c.x), fmaf(a, b.y, c.y)};
}

// One step of it: lanes that differ in bit M share the numbers that differ in it.
template <int M>
__device__ __forceinline__ void halve_across(float (&x)[32]) {
  const bool upper = lane_index() & M;
#pragma unroll
  for (int i = 0; i < M; ++i) {
    const float keep = upper ? x[i + M] : x[i], send = upper ? x[i] : x[i + M];
    x[i] = keep + __shfl_xor_sync(~0u, send, M);
  }
}
// For lane l the sum over lanes of their x[l].
__device__ __forceinline__ float sum_across(float (&x)[32]) {
  halve_across<16>(x);
  halve_across<8>(x);
  halve_across<4>(x);
  halve_across<2>(x);
  halve_across<1>(x);
  return x[0];
}

// Columns of a left operand times by[column block][column % 2]. In bf16 this rounds a second time,
// which costs up to 4% of a result's error (dg: 8%) where gates are close to 0, and nothing
// elsewhere.
__device__ __forceinline__ void scale_frag(Frag<float, 16>& frag, const float (&by)[2][2]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) frag.x[j][i] *= by[j][i % 2];
  }
}
__device__ __forceinline__ void scale_frag(Frag<bf16, 16>& frag, const float (&by)[2][2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t& pair = frag.x[0][i];
    pair = pack_bf16(low_of(pair) * by[i / 2][0], high_of(pair) * by[i / 2][1]);
  }
}

// Scores of a block with itself: P [q_i . k_j], M [k_i . k_j], faded from j to i. Two columns j at
// a time; a lane adds up every 32nd pair of channels. put(i, j, p, m) for j <= i.
template <class Real, int KP, class F>
__device__ __forceinline__ void block_scores(const ChunkTiles<Real, KP>& x, int top, F&& put) {
  const int lane = lane_index();
#pragma unroll 1
  for (int j = 0; j < kBlock; j += 2) {
    float p[32] = {}, m[32] = {};  // of rows j + t at t, and of rows j + 1 + t at 16 + t
#pragma unroll 1
    for (int c = 2 * lane; c < KP; c += 64) {
      float2 first, second = {0, 0};  // the keys j and j + 1, faded
#pragma unroll
      for (int t = 0; t < kBlock; ++t) {
        if (t >= kBlock - j) break;
        const int r = top + j + t;
        const float2 q = load_pair(x.q.ptr(r, c)), k = load_pair(x.k.ptr(r, c));
        if (t == 0) {
          first = k;
        } else {
          const float2 a = load_pair(x.a.ptr(r, c));
          first = times(first, a);
          second = t == 1 ? k : times(second, a);
          m[t] = fmaf(k.x, first.x, fmaf(k.y, first.y, m[t]));
          p[15 + t] = fmaf(q.x, second.x, fmaf(q.y, second.y, p[15 + t]));
          if (t > 1) m[15 + t] = fmaf(k.x, second.x, fmaf(k.y, second.y, m[15 + t]));
        }
        p[t] = fmaf(q.x, first.x, fmaf(q.y, first.y, p[t]));
      }
    }
    const float of_p = sum_across(p), of_m = sum_across(m);
    const int column = j + lane / 16, row = column + lane % 16;
    if (row < kBlock) put(row, column, of_p, of_m);
  }
}

template <class Real, int KP>
__global__ void __launch_bounds__(128, KP <= 128 && sizeof(Real) == 2 ? 2 : 1)
    prepare(const __grid_constant__ Chunks<Real> a) {
  Arena arena(dynamic_memory());
  const ChunkTiles<Real, KP> x(arena);
  const int block = warp_index(), top = kBlock * block, at = static_cast<int>(threadIdx.x);
  const int lane = lane_index();
  float* const own = x.own + block * kBlock * kBlock;

  a.grid.for_pieces([&](const Span& s, int b, int h) {
    __syncthreads();  // the piece before is done
    load_rows<128>(x.k, a.k.at(b, s.begin, h / a.group), a.k.token, s.n, a.K, at);
    load_rows<128>(x.q, a.q.at(b, s.begin, h / a.group), a.q.token, s.n, a.K, at);
    load_rows<128>(x.a, a.g.at(b, s.begin, h), a.g.token, s.n, a.K, at);
    async_commit();
    const int64_t token = a.grid.token(b, h, s.begin);
    if (at < kChunk) {
      const float beta = at < s.n ? *a.beta.at(b, s.begin + at, h) : 0.f;
      x.beta[at] = beta;
      if (at < s.n) a.gates[token + at] = {1.f, 1.f, beta, 0.f};
    }
    async_wait<0>();
    __syncthreads();
    for (int c = 2 * lane; c < KP; c += 64) {
      float2 sum = {0, 0};
#pragma unroll 8
      for (int i = 0; i < kBlock; ++i) {
        float* const gate = x.a.ptr(top + i, c);
        const float2 log = load_pair(gate);
        sum = plus(sum, log);
        store_pair(gate, ex2(kLog2e * log.x), ex2(kLog2e * log.y));
      }
      store_pair(x.sums + block * KP + c, kLog2e * sum.x, kLog2e * sum.y);
    }
    __syncthreads();
    block_scores(x, top, [&](int i, int j, float p, float m) {
      own[i * kBlock + j] = p;
      x.system[(top + i) * kPitch + top + j] = i > j ? x.beta[top + i] * m : 0.f;
    });
    __syncwarp();

    // q and k of the block in place, decayed from its start; k decayed to its end; all for the
    // scans.
    for (int c = 2 * lane; c < KP; c += 64) {
      float2 before = {0, 0}, after = {0, 0}, gate[kBlock], k[kBlock];
      for (int other = 0; other < kBlocks; ++other) {
        const float2 sum = load_pair(x.sums + other * KP + c);
        if (other < block) before = plus(before, sum);
        if (other > block) after = plus(after, sum);
      }
      const int64_t end = s.begin + s.n;
      if (block == 0 && c < a.width && (end == a.grid.T || end % kChunk == 0)) {
        const float2 all = plus(load_pair(x.sums + c), after);
        const int64_t place = (int64_t{b} * a.grid.H + h) * a.grid.chunks + s.chunk;
        store_pair(a.total + place * a.width + c, ex2(all.x), ex2(all.y));
      }
      before = {ex2(before.x), ex2(before.y)}, after = {ex2(after.x), ex2(after.y)};
      const float2 scaled = {a.scale * before.x, a.scale * before.y};
      const int64_t place = (token + top) * a.width + c;
      float2 up = {1, 1}, down = {1, 1};
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        gate[i] = load_pair(x.a.ptr(top + i, c));
        up = times(up, gate[i]);
        k[i] = load_pair(x.k.ptr(top + i, c));
        const float2 q_up = times(up, load_pair(x.q.ptr(top + i, c))), k_up = times(up, k[i]);
        store_pair(x.q.ptr(top + i, c), q_up.x, q_up.y);
        store_pair(x.k.ptr(top + i, c), k_up.x, k_up.y);
        if (c < a.width && top + i < s.n) {
          store_pair(a.q_up + place + i * a.width, scaled.x * q_up.x, scaled.y * q_up.y);
          store_pair(a.k_up + place + i * a.width, before.x * k_up.x, before.y * k_up.y);
        }
      }
#pragma unroll
      for (int i = kBlock - 1; i >= 0; --i) {
        const float2 k_down = times(down, k[i]);
        store_pair(x.k_down.ptr(top + i, c), k_down.x, k_down.y);
        if (c < a.width && top + i < s.n) {
          store_pair(a.k_end + place + i * a.width, after.x * k_down.x, after.y * k_down.y);
        }
        down = times(down, gate[i]);
      }
    }
    __syncthreads();

    Real* const scores = a.scores + (token + top) * kChunk;
#pragma unroll 1
    for (int other = 0; other < kBlocks; ++other) {
      Acc<kBlock> P, M;
      fill(P, 0.f);
      fill(M, 0.f);
#pragma unroll 2
      for (int k0 = 0; k0 < KP && other < block; k0 += 16) {
        auto q = load_frag<Real, 16>(x.q, top, k0), k = load_frag<Real, 16>(x.k, top, k0);
        if (other + 1 < block) {
          float by[2][2];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float* const sums = x.sums + k0 + acc_col(j, 0);
            float2 sum = load_pair(sums + (other + 1) * KP);
            if (other + 2 < block) sum = plus(sum, load_pair(sums + (other + 2) * KP));
            by[j][0] = ex2(sum.x);
            by[j][1] = ex2(sum.y);
          }
          scale_frag(q, by);
          scale_frag(k, by);
        }
        mma_abt(P, q, x.k_down, kBlock * other, k0);
        mma_abt(M, k, x.k_down, kBlock * other, k0);
      }
      if (other < block) {
        each(M, [&](int row, int col, float& m) {
          x.system[(top + row) * kPitch + kBlock * other + col] = x.beta[top + row] * m;
        });
      } else if (other == block + 1) {
        each(M, [&](int row, int col, float& zero) {
          x.system[(top + row) * kPitch + kBlock * other + col] = zero;
        });
      } else if (other == block) {
        each(P,
             [&](int row, int col, float& p) { p = col <= row ? own[row * kBlock + col] : 0.f; });
      }
      scale(P, a.scale);
      store_acc(P, scores + kBlock * other, kChunk, s.n - top, kBlock);
    }
    __syncthreads();
    invert(x.system);
    store_inverse(x.system, a.inverse + token * kInverseWidth<Real>, s.n);
  });
}

// A call, and what `prepare` fills: the scans take q and k with their decays, of each head.
template <class Real>
struct CudaProblem : delta_rule::Problem<Real, Kda, true> {
  CudaProblem(const Kda::Inputs<Tensor>& x, const Kda::Options& o)
      : delta_rule::Problem<Real, Kda, true>(x, o) {
    const int64_t B = x.v.size(0), L = x.v.size(1), H = x.v.size(2), width = pitch<Real>(this->K);
    const Device device = x.v.device();
    for (Tensor* t : {&q_up, &k_up, &k_end}) *t = empty({B, H, L, width}, x.v.dtype(), device);
    total = empty({B, H, this->grid.chunks, width}, Dtype::f32, device);
    chunks = {this->grid,
              this->K,
              this->group,
              static_cast<int>(width),
              this->scale,
              heads<const Real>(this->q),
              heads<const Real>(this->k),
              heads<const float>(x.beta),
              heads<const float>(this->g),
              dptr<Real>(this->inverse),
              dptr<Real>(this->scores),
              reinterpret_cast<Gate*>(dptr<float>(this->gates)),
              dptr<Real>(q_up),
              dptr<Real>(k_up),
              dptr<Real>(k_end),
              dptr<float>(total)};
    const auto rows = [&](const Real* data) {
      return Heads<const Real>{data, H * L * width, width, L * width};
    };
    Scan<Real>& scan = this->scan;
    scan.group = 1, scan.scale = 1;
    scan.q = rows(chunks.q_up), scan.k = rows(chunks.k_up), scan.k_end = rows(chunks.k_end);
    scan.total = chunks.total, scan.g = chunks.g;
  }

  template <int KP>
  void prepare_chunks() const {
    Arena count;
    (void)ChunkTiles<Real, KP>(count);
    launch(prepare<Real, KP>, this->chunk_heads(), 128, count.used(), chunks);
  }

  Tensor q_up, k_up, k_end, total;
  Chunks<Real> chunks;
};

}  // namespace weft::kernels::kda
