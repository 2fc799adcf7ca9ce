// kda on a GPU, backward: a scan from the last piece to the first that carries the gradient of the
// state (R and dV come of it), then all pieces by themselves (token_gradients): dq, dk, dbeta, dg.
//
// As for delta, with decays that are vectors (up, down: within a block of 16 tokens; D_J over block
// J):
//   dP = scale dO U'      dL = -R U', below the diagonal      dM = beta dL
//   dQ_i = up_i . X_i     X = sum of what lies before i's block, decayed to its start:
//                         begin with scale dO S', then for each block J:
//                         X <- D_J . X + dP_iJ down . K_J
//   E_i  = up_i . X_i     the same with -R S' and dL; beta E is the gradient of k where it erases
//   W_j  = down_j . Y_j   Y = sum of what lies after j's block, decayed to its end, from the last
//                         block back: Y <- D_I . Y + dP_Ij' up . Q_I + dM_Ij' up . K_I
//   Z_j  = down_j . D_{J+1} .. D_4 . (U dS')_j
//   dK = beta E + W + Z   dbeta = R . V + K . E
// each with the pairs within the block added, token by token in fp32. Per channel,
//   dg_t = sum_{i >= t} (q_i dQ_i + k_i beta E_i - k_i W_i) + sum_{j < t} k_j Z_j + total <dS, S>
// without the terms of one token with itself.
#pragma once

#include "kernels/kda/chunks.cuh"

namespace weft::kernels::kda {

template <class Real>
struct TokenGradients : Gradients<Real> {
  Heads<const float> g;
};

// Three warpgroups, for dQ, E and W; a warp has a block of 16 tokens.
inline constexpr int kKeys = 64;  // columns of K at a time

enum Pairs { kP, kPt, kLt, kM };                     // gradients of a block's scores, fp32
enum Sums { kOfQuery, kOfErase, kOfWrite, kOfEnd };  // of a block, a channel each

template <class Real>
struct GradientTiles {
  using Operands = Slices<Real, kKeys, sizeof(Real) == 2 ? 64 : 16>;
  using Keys = Smem<Real, kChunk, kKeys>;
  using Wide = Smem<float, kChunk, kKeys>;
  using Square = Smem<Real, kChunk, kChunk>;
  Keys q, k, q_up, k_up, k_down;
  // In one place: the operands of the products with states; then what the groups made.
  Operands slices;
  Wide g;  // log gates
  Wide query, erase, write, end;
  Square dP, dL, dM;
  float* pairs;    // [4][kBlocks][16][16]
  Gate* gates;     // [64]
  float* own;      // [64]: dP of a token with itself
  float* rows;     // [3][64]: k . E, R . V in two halves
  float* decay;    // [kBlocks][kKeys]: of a whole block
  float* sums;     // [4][kBlocks][kKeys]
  float* closing;  // [4][kKeys]: of dS . S, a quarter of the rows each
  __host__ __device__ explicit GradientTiles(Arena& arena) {
    q = arena.carve<Keys>();  // one by one: whose address is taken ends up in local memory
    k = arena.carve<Keys>();
    q_up = arena.carve<Keys>();
    k_up = arena.carve<Keys>();
    k_down = arena.carve<Keys>();
    Arena later = arena;
    slices = Operands(arena);
    g = arena.carve<Wide>();
    query = later.carve<Wide>();
    erase = later.carve<Wide>();
    write = later.carve<Wide>();
    end = later.carve<Wide>();
    if (later.used() > arena.used()) arena = later;
    dP = arena.carve<Square>();
    dL = arena.carve<Square>();
    dM = arena.carve<Square>();
    pairs = arena.carve<float>(4 * kBlocks * kBlock * kBlock);
    gates = arena.carve<Gate>(kChunk);
    own = arena.carve<float>(kChunk);
    rows = arena.carve<float>(3 * kChunk);
    decay = arena.carve<float>(kBlocks * kKeys);
    sums = arena.carve<float>(4 * kBlocks * kKeys);
    closing = arena.carve<float>(4 * kKeys);
  }
  __device__ float* pair(Pairs kind, int block) const {
    return pairs + (kind * kBlocks + block) * kBlock * kBlock;
  }
  __device__ float* sum(Sums kind, int block) const {
    return sums + (kind * kBlocks + block) * kKeys;
  }
};

// Two neighbouring channels c, c + 1 of a row, those below K.
template <class Real>
__device__ __forceinline__ void store_channels(Real* row, int c, int K, bool pairs, float2 x) {
  if (pairs && c + 1 < K) {
    store_pair(row + c, x.x, x.y);
  } else {
    if (c < K) row[c] = from_float<Real>(x.x);
    if (c + 1 < K) row[c + 1] = from_float<Real>(x.y);
  }
}

// A row of a block's pairs, those from `begin` to `end` - 1.
struct Row {
  float x[kBlock];
};
__device__ __forceinline__ Row load_row(const float* from, int begin, int end) {
  Row row;
#pragma unroll
  for (int i = 0; i < kBlock; i += 4) {
    if (i + 4 <= begin || i >= end) continue;
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    row.x[i] = four.x, row.x[i + 1] = four.y, row.x[i + 2] = four.z, row.x[i + 3] = four.w;
  }
  return row;
}

template <class Real>
__global__ void __launch_bounds__(kGradientThreads, 1)
    token_gradients(const __grid_constant__ TokenGradients<Real> a) {
  using Tiles = GradientTiles<Real>;
  Arena arena(dynamic_memory());
  const Tiles x(arena);
  const int role = warpgroup_index(), block = warp_index() % 4, top = kBlock * block;
  const int at = static_cast<int>(threadIdx.x), rank = at % 128, lane = lane_index(), c = 2 * lane;
  const bool pairs = a.K % 2 == 0;

  a.grid.for_pieces([&](const Span& s, int b, int h) {
    const int64_t token = a.grid.token(b, h, s.begin), hk = h / a.group;
    const int64_t place = (b * a.grid.T + s.begin) * a.grid.H + h;  // in [B, T, H]
    const PieceProducts<Real, typename Tiles::Operands> products(a, x.slices, s, b, h);
    __syncthreads();  // the piece before is done
    if (at < kChunk) x.gates[at] = at < s.n ? a.gates[token + at] : Gate{};

    for (int k0 = 0; k0 < a.K; k0 += kKeys) {
      if (k0 > 0) __syncthreads();
      const auto load_keys = [&] {
        if (role == 0) {
          load_rows<128>(x.g, a.g.at(b, s.begin, h) + k0, a.g.token, s.n, a.K - k0, rank);
        } else if (role == 1) {
          load_rows<128>(x.q, a.q.at(b, s.begin, hk) + k0, a.q.token, s.n, a.K - k0, rank);
        } else {
          load_rows<128>(x.k, a.k.at(b, s.begin, hk) + k0, a.k.token, s.n, a.K - k0, rank);
        }
      };
      float2 closing = {0, 0};
      const auto close = [&](auto state, auto dstate) {
        const int quarter = block * (state.rows / 4);
#pragma unroll 4
        for (int r = quarter; r < quarter + state.rows / 4; ++r) {
          closing = fma(load_pair(state.ptr(r, c)), load_pair(dstate.ptr(r, c)), closing);
        }
      };
      Acc<kKeys> grad;     // of this group: dQ, E or Z, before decays
      Acc<kChunk> scores;  // the first two: dP or dL
      const float value_dot = products.run(k0, grad, scores, load_keys, close);
      __syncthreads();  // q, k and g are there; the slices have been used
      if (role == 2) {
        store_pair(x.closing + block * kKeys + c, closing.x, closing.y);
        if (k0 == 0) x.rows[kChunk + rank] = value_dot;
      } else if (k0 == 0) {
        float* const plain = x.pair(role == 0 ? kP : kM, block);
        float* const turned = x.pair(role == 0 ? kPt : kLt, block);
        each(scores, [&](int row, int col, float& d) {
          const int r = top + row;
          d = col > r ? 0.f : role == 0 ? a.scale * d : -d;
          if (role == 0 && col == r) x.own[r] = d;
          if (col >= r) d = 0;
          if (col >= top && col < top + kBlock) {
            plain[row * kBlock + col - top] = role == 0 ? d : x.gates[r].beta * d;
            turned[(col - top) * kBlock + row] = d;
          }
        });
        acc_to_smem(scores, role == 0 ? x.dP : x.dL, top, 0);
        if (role == 1) {
          each(scores, [&](int row, int, float& d) { d *= x.gates[top + row].beta; });
          acc_to_smem(scores, x.dM, top, 0);
        }
      }

      // The block's gates, and the operands that hold them: a group makes one.
      float2 gate[kBlock];
      float2 sum = {0, 0};
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        const float2 log = load_pair(x.g.ptr(top + i, c));
        gate[i] = {kLog2e * log.x, kLog2e * log.y};
        sum = plus(sum, gate[i]);
        gate[i] = {ex2(gate[i].x), ex2(gate[i].y)};
      }
      if (role == 0) store_pair(x.decay + block * kKeys + c, ex2(sum.x), ex2(sum.y));
      float2 factor = {1, 1};
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        const int r = role == 2 ? kBlock - 1 - i : i;
        if (role < 2) factor = times(factor, gate[i]);
        const float2 from = load_pair((role == 0 ? x.q : x.k).ptr(top + r, c));
        const auto to = role == 0 ? x.q_up : role == 1 ? x.k_up : x.k_down;
        store_pair(to.ptr(top + r, c), from.x * factor.x, from.y * factor.y);
        if (role == 2) factor = times(factor, gate[kBlock - 1 - i]);
      }
      __syncthreads();

      // Across blocks.
      if (role < 2) {
        scale(grad, role == 0 ? a.scale : -1.f);
        for (int other = 0; other < block; ++other) {
          scale_cols(grad, load_cols<kKeys>(x.decay + other * kKeys));
          mma_ab<kBlock>(grad, role == 0 ? x.dP : x.dL, top, kBlock * other, x.k_down,
                         kBlock * other, 0);
        }
        acc_to_smem(grad, role == 0 ? x.query : x.erase, top, 0);
      } else {
        Acc<kKeys> within;
        fill(within, 0.f);
        for (int other = kBlocks - 1; other > block; --other) {
          const Cols<kKeys> decay = load_cols<kKeys>(x.decay + other * kKeys);
          scale_cols(grad, decay);
          scale_cols(within, decay);
          mma_atb<kBlock>(within, x.dP, kBlock * other, top, x.q_up, kBlock * other, 0);
          mma_atb<kBlock>(within, x.dM, kBlock * other, top, x.k_up, kBlock * other, 0);
        }
        acc_to_smem(within, x.write, top, 0);
        acc_to_smem(grad, x.end, top, 0);
      }
      __syncwarp();

      // Within the block: a lane has two channels.
      const int64_t key = place * a.K + k0, keys = int64_t{a.grid.H} * a.K;
      if (role < 2) {
        const float* const d = x.pair(role == 0 ? kPt : kLt, block);
        const auto out = role == 0 ? x.query : x.erase;
        float2 k[kBlock], inner[kBlock] = {}, up = {1, 1}, total = {0, 0};
#pragma unroll
        for (int i = 0; i < kBlock; ++i) k[i] = load_pair(x.k.ptr(top + i, c));
#pragma unroll
        for (int j = 0; j + 1 < kBlock; ++j) {
          const Row column = load_row(d + j * kBlock, j + 1, kBlock);
#pragma unroll
          for (int i = j + 1; i < kBlock; ++i) {
            if (j > 0) inner[i] = times(inner[i], gate[j]);
            inner[i] = fma(column.x[i], k[j], inner[i]);
          }
        }
        float of_row[32] = {};
#pragma unroll
        for (int i = 0; i < kBlock; ++i) {
          const int r = top + i;
          up = times(up, gate[i]);
          float2 grad = fma(load_pair(out.ptr(r, c)), up, times(inner[i], gate[i]));
          if (role == 0) {
            const float2 read = times(load_pair(x.q.ptr(r, c)), grad);
            store_pair(out.ptr(r, c), mark_reset(gate[i].x, read.x), mark_reset(gate[i].y, read.y));
            total = plus(total, read);
            grad = fma(x.own[r], k[i], grad);
            if (r < s.n) {
              if (a.dq) store_channels(a.dq + key + r * keys, c, a.K - k0, pairs, grad);
              if (a.dq_part) store_channels(a.dq_part + key + r * keys, c, a.K - k0, pairs, grad);
            }
          } else {
            of_row[i] = k[i].x * grad.x + k[i].y * grad.y;
            const float beta = x.gates[r].beta;
            grad = {beta * grad.x, beta * grad.y};
            store_pair(out.ptr(r, c), grad.x, grad.y);
            total = fma(k[i], grad, total);
          }
        }
        store_pair(x.sum(role == 0 ? kOfQuery : kOfErase, block) + c, total.x, total.y);
        if (role == 1) {
          const float row = sum_across(of_row);
          if (lane < kBlock) x.rows[top + lane] = k0 == 0 ? row : x.rows[top + lane] + row;
        }
      } else {
        const float *const dP = x.pair(kP, block), *const dM = x.pair(kM, block);
        float2 inner[kBlock] = {}, down = {1, 1}, of_write = {0, 0}, of_end = {0, 0};
#pragma unroll
        for (int i = kBlock - 1; i > 0; --i) {
          const float2 q = load_pair(x.q.ptr(top + i, c)), k = load_pair(x.k.ptr(top + i, c));
          const Row of_q = load_row(dP + i * kBlock, 0, i), of_k = load_row(dM + i * kBlock, 0, i);
#pragma unroll
          for (int j = 0; j < i; ++j) {
            inner[j] = fma(of_k.x[j], k, fma(of_q.x[j], q, inner[j]));
            inner[j] = times(inner[j], gate[i]);
          }
        }
#pragma unroll
        for (int j = kBlock - 1; j >= 0; --j) {
          const float2 k = load_pair(x.k.ptr(top + j, c));
          const float2 write = fma(load_pair(x.write.ptr(top + j, c)), down, inner[j]);
          const float2 end = times(load_pair(x.end.ptr(top + j, c)), down);
          store_pair(x.write.ptr(top + j, c), write.x, write.y);
          store_pair(x.end.ptr(top + j, c), end.x, end.y);
          of_write = fma(k, write, of_write);
          of_end = fma(k, end, of_end);
          down = times(down, gate[j]);
        }
        store_pair(x.sum(kOfWrite, block) + c, of_write.x, of_write.y);
        store_pair(x.sum(kOfEnd, block) + c, of_end.x, of_end.y);
      }
      __syncthreads();

      if (role == 2) {
#pragma unroll 4
        for (int i = 0; i < kBlock; ++i) {
          const int r = top + i;
          if (r >= s.n) break;
          float2 grad = plus(load_pair(x.write.ptr(r, c)), load_pair(x.end.ptr(r, c)));
          grad = plus(grad, load_pair(x.erase.ptr(r, c)));
          grad = fma(x.own[r], load_pair(x.q.ptr(r, c)), grad);
          if (a.dk) store_channels(a.dk + key + r * keys, c, a.K - k0, pairs, grad);
          if (a.dk_part) store_channels(a.dk_part + key + r * keys, c, a.K - k0, pairs, grad);
        }
      } else if (role == 0 && a.dg) {
        float2 from = {0, 0}, till = {0, 0}, total = {1, 1};
        for (int other = 0; other < kBlocks; ++other) {
          total = times(total, load_pair(x.decay + other * kKeys + c));
          if (other < block) till = plus(till, load_pair(x.sum(kOfEnd, other) + c));
          if (other <= block) continue;
          from = plus(from, load_pair(x.sum(kOfQuery, other) + c));
          from = plus(from, load_pair(x.sum(kOfErase, other) + c));
          from = fma(-1.f, load_pair(x.sum(kOfWrite, other) + c), from);
        }
        float2 kept = {0, 0};
        for (int i = 0; i < 4; ++i) kept = plus(kept, load_pair(x.closing + i * kKeys + c));
        till = fma(total, kept, till);
        float2 past[kBlock];  // what tokens before this one gave to the state after, and it passes
#pragma unroll
        for (int i = 0; i < kBlock; ++i) {
          past[i] = till;
          till = fma(load_pair(x.k.ptr(top + i, c)), load_pair(x.end.ptr(top + i, c)), till);
        }
#pragma unroll
        for (int i = kBlock - 1; i >= 0; --i) {
          const int r = top + i;
          const float2 k = load_pair(x.k.ptr(r, c)), write = load_pair(x.write.ptr(r, c));
          const float2 erase = load_pair(x.erase.ptr(r, c));
          const float2 query = load_pair(x.query.ptr(r, c));
          from = plus(from, query);
          from = fma(k, float2{erase.x - write.x, erase.y - write.y}, from);
          // Where there is nothing to forget, before a document's first token, and where all is
          // forgotten, the sum leaves rounding.
          const bool none = r == 0 && s.first && !products.initial;
          const bool forgets[2] = {is_reset_mark(query.x), is_reset_mark(query.y)};
          const float2 dg = {none || forgets[0] ? 0.f : past[i].x + from.x,
                             none || forgets[1] ? 0.f : past[i].y + from.y};
          from = {forgets[0] ? 0.f : from.x, forgets[1] ? 0.f : from.y};
          if (r < s.n) store_channels(a.dg + key + r * keys, c, a.K - k0, pairs, dg);
        }
      }
    }
    if (a.dbeta && at < s.n) {  // x.rows is done: the loop above synchronised after it
      a.dbeta[place + at * a.grid.H] = x.rows[at] + x.rows[kChunk + at] + x.rows[2 * kChunk + at];
    }
  });
}

template <class Real>
void backward_form(const Kda::Inputs<Tensor>& in, const Kda::Options& o, const Kda::Saved& saved,
                   const Kda::Outputs<Tensor>& dy, Kda::Inputs<Tensor>& dx) {
  const auto run = [](const CudaProblem<Real>& p, const Gradients<Real>& gradients) {
    Arena count;
    (void)GradientTiles<Real>(count);
    launch(token_gradients<Real>, p.chunk_heads(), kGradientThreads, count.used(),
           TokenGradients<Real>{gradients, p.chunks.g});
  };
  delta_rule::backward_form<CudaProblem<Real>, Kda>(in, o, saved, dy, dx, run);
}

}  // namespace weft::kernels::kda
