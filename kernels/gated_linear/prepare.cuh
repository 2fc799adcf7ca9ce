// What gated_linear's kernels share: the tensors and sizes of a call, and the pass over all tokens
// that comes first in both directions (`prepare`). A row lies on a grid of chunks of 64 tokens; a
// piece is what one document has of a chunk, cut into sub-chunks of 16 tokens from its first one
// on.
//
// Gates enter as products of e^g, none above 1 (README.md, Chunkwise). The scores within a
// sub-chunk are made on the tensor cores by halving it: tokens i of an upper half meet tokens j of
// the lower one as (q_i a_mid .. a_i)(k_j a_{j+1} .. a_{mid-1}), then each half is halved again.
#pragma once

#include <cmath>
#include <optional>

#include "kernels/gated_linear/gated_linear.h"
#include "kernels/tokens/chunk.cuh"
#include "kernels/tokens/pieces.cuh"

namespace weft::kernels::gated_linear {

inline constexpr int kTokens = 64;  // of a chunk
inline constexpr int kSub = 16;     // of a sub-chunk
inline constexpr int kSubs = kTokens / kSub;

template <class Real>
struct CudaProblem {
  // cu_seqlens lies on the device. The tensors of x have contiguous rows.
  CudaProblem(const Inputs<GatedLinear>& x, const Options<GatedLinear>& o, const Tensor& cu_seqlens)
      : q(token_rows<const Real>(x.q)),
        k(token_rows<const Real>(x.k)),
        v(token_rows<const Real>(x.v)),
        g(token_rows<const float>(x.g)),
        initial_state(dptr<const float>(x.initial_state)),
        B(static_cast<int>(x.q.size(0))),
        H(static_cast<int>(x.v.size(2))),
        group(static_cast<int>(x.v.size(2) / x.q.size(2))),
        K(static_cast<int>(x.q.size(3))),
        V(static_cast<int>(x.v.size(3))),
        scale(static_cast<float>(o.scale != 0 ? o.scale : 1 / std::sqrt(x.q.size(3)))) {
    documents.cu = dptr<const int32_t>(cu_seqlens);
    documents.T = static_cast<int>(x.q.size(1));
    documents.N = static_cast<int>(document_count(o.cu_seqlens, x.q.size(0)));
  }

  TokenRows<const Real> q, k, v;
  TokenRows<const float> g;
  const float* initial_state;  // [N, H, K, V]; absent: zero
  DocumentWalk<kTokens> documents;
  int B, H, group, K, V;
  float scale;
};

// The inputs as the kernels take them. Refuses the widths that they do not cover.
inline Inputs<GatedLinear> cuda_inputs(const Inputs<GatedLinear>& x) {
  require(x.q.size(3) <= 256 && x.v.size(3) <= 256, "gated_linear: K = ", x.q.size(3),
          ", V = ", x.v.size(3), "; the CUDA kernels take K and V up to 256");
  Inputs<GatedLinear> y = x;
  for (Tensor* t : {&y.q, &y.k, &y.v, &y.g}) *t = with_rows(*t);
  if (y.initial_state) y.initial_state = y.initial_state.contiguous();
  return y;
}

// What prepare makes.
template <class Real>
struct Prepared {
  TokenRows<Real> q_up, k_down;  // [B, T, H, K]: scale * q . up, k . down, see README.md
  TokenRows<Real> p;             // [B, T, H, 16]: scores of a token with those of its sub-chunk
  TokenRows<float> total;        // [B, cells, H, K]: decay over a sub-chunk, see has_total

  // Where its decay lies: the cell of 16 tokens in which the sub-chunk starts. Several documents
  // may start in one cell; of those that do, only the last goes on after it.
  __device__ static int cell(int t) { return t / kSub; }
};
// A document's last sub-chunk has no place for its decay; few need it (last_total).
__device__ inline bool has_total(const GridPiece& piece, int sub) {
  return !piece.last || (sub + 1) * kSub < piece.size();
}
// e^{sum of gates} of channel d over the tokens from .. to - 1.
template <class Real>
__device__ float decay_over(const CudaProblem<Real>& p, int b, int h, int from, int to, int d) {
  float sum = 0.f;
  for (int t = from; t < to; ++t) sum += p.g.at(b, t, h)[d];
  return tile::ex2(tile::kLog2e * sum);
}

// Memory for Prepared, in the dtype of q.
struct PreparedTensors {
  PreparedTensors(const Inputs<GatedLinear>& x) {
    const int64_t B = x.v.size(0), T = x.v.size(1), H = x.v.size(2), K = x.q.size(3);
    const Device device = x.q.device();
    q_up = empty({B, T, H, K}, x.q.dtype(), device);
    k_down = empty({B, T, H, K}, x.q.dtype(), device);
    p = empty({B, T, H, kSub}, x.q.dtype(), device);
    total = empty({B, ceil_div(T, kSub), H, K}, Dtype::f32, device);
  }
  template <class Real>
  Prepared<Real> view() const {
    return {token_rows<Real>(q_up), token_rows<Real>(k_down), token_rows<Real>(p),
            token_rows<float>(total)};
  }
  Tensor q_up, k_down, p, total;
};

constexpr int kPrepareThreads = 128;  // a warp for each sub-chunk, two channels a lane

// Channels d and d + 1, the first of which lies at `at`; zero where they do not exist.
template <class Real>
__device__ __forceinline__ float2 channels(const Real* at, int d, int K, bool pairs) {
  if (pairs) return d < K ? tile::load_pair(at) : float2{0.f, 0.f};
  return {d < K ? tile::to_float(at[0]) : 0.f, d + 1 < K ? tile::to_float(at[1]) : 0.f};
}
template <class Real>
__device__ __forceinline__ void put_channels(Real* at, int d, int K, float x, float y) {
  if (K % 2 == 0 && d + 1 < K) {
    tile::store_pair(at, x, y);
    return;
  }
  if (d < K) at[0] = tile::from_float<Real>(x);
  if (d + 1 < K) at[1] = tile::from_float<Real>(y);
}

template <class Real>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare(const CudaProblem<Real> p, const Prepared<Real> y, const int chunks) {
  constexpr int kWidth = 64, kLevels = 4;
  using Tile = tile::Smem<Real, kSub, kWidth>;
  __shared__ __align__(1024) Real memory[kPrepareThreads / 32][kSub * kWidth];
  __shared__ float diagonals[kPrepareThreads / 32][kSub];
  const int warp = tile::warp_index(), lane = tile::lane_index();
  const Tile x{memory[warp]};
  const int h = blockIdx.x % p.H, chunk = blockIdx.x / p.H % chunks;
  const int b = blockIdx.x / p.H / chunks, hk = h / p.group;
  const int stop = min(p.documents.T, (chunk + 1) * kTokens);
  const bool pairs = p.K % 2 == 0 &&
                     tile::pairs_are_aligned(p.q.data, p.q.by_token | p.q.by_head | p.q.by_row) &&
                     tile::pairs_are_aligned(p.k.data, p.k.by_token | p.k.by_head | p.k.by_row);
  const bool pairs_g =
      p.K % 2 == 0 && tile::pairs_are_aligned(p.g.data, p.g.by_token | p.g.by_head | p.g.by_row);

  int document = p.documents.of(b, chunk * kTokens);
  for (int t = chunk * kTokens; t < stop; ++document) {
    const GridPiece piece =
        p.documents.from(p.documents.begin(document), p.documents.end(document), t);
    t = piece.end;
    const int from = piece.begin + kSub * warp, n = min(kSub, piece.end - from);
    if (n <= 0) continue;

    tile::Acc<kSub> scores[kLevels];
#pragma unroll
    for (int l = 0; l < kLevels; ++l) fill(scores[l], 0.f);
    float diagonal[kSub];
#pragma unroll
    for (int i = 0; i < kSub; ++i) diagonal[i] = 0.f;

    // 64 channels. kWhole: all tokens and channels are there, two neighbours in one access.
    const auto pass = [&]<bool kWhole>(const int d) {
      float2 a[kSub], q[kSub], k[kSub];
      const float* const g_row = p.g.at(b, from, h) + d;
      const Real *const q_row = p.q.at(b, from, hk) + d, *const k_row = p.k.at(b, from, hk) + d;
      Real *const up_row = y.q_up.at(b, from, h) + d, *const down_row = y.k_down.at(b, from, h) + d;
      const auto put = [&](Real* row, int i, float one, float other) {
        if constexpr (kWhole) {
          tile::store_pair(row + i * y.q_up.by_token, one, other);
        } else if (i < n) {
          put_channels(row + i * y.q_up.by_token, d, p.K, one, other);
        }
      };
      // Rows that do not exist are read in the place of the last: all loads go out at once.
#pragma unroll
      for (int i = 0; i < kSub; ++i) {
        if constexpr (kWhole) {
          a[i] = tile::load_pair(g_row + i * p.g.by_token);
          q[i] = tile::load_pair(q_row + i * p.q.by_token);
          k[i] = tile::load_pair(k_row + i * p.k.by_token);
        } else {
          const int at = min(i, n - 1);
          a[i] = channels(g_row + at * p.g.by_token, d, p.K, pairs_g);
          q[i] = channels(q_row + at * p.q.by_token, d, p.K, pairs);
          k[i] = channels(k_row + at * p.k.by_token, d, p.K, pairs);
        }
      }
      if constexpr (!kWhole) {
#pragma unroll
        for (int i = 0; i < kSub; ++i)
          if (i >= n) a[i] = q[i] = k[i] = {0.f, 0.f};
      }
      float2 sum = {0.f, 0.f}, up = {1.f, 1.f}, down = {1.f, 1.f};
#pragma unroll
      for (int i = 0; i < kSub; ++i) {
        sum = {sum.x + a[i].x, sum.y + a[i].y};
        a[i] = {tile::ex2(tile::kLog2e * a[i].x), tile::ex2(tile::kLog2e * a[i].y)};
        up = {up.x * a[i].x, up.y * a[i].y};
        q[i] = {p.scale * q[i].x, p.scale * q[i].y};
        diagonal[i] = fmaf(q[i].x, k[i].x, fmaf(q[i].y, k[i].y, diagonal[i]));
        put(up_row, i, q[i].x * up.x, q[i].y * up.y);
      }
      if (has_total(piece, warp))
        put_channels(y.total.at(b, y.cell(from), h) + d, d, p.K, tile::ex2(tile::kLog2e * sum.x),
                     tile::ex2(tile::kLog2e * sum.y));
#pragma unroll
      for (int j = kSub - 1; j >= 0; --j) {
        put(down_row, j, k[j].x * down.x, k[j].y * down.y);
        down = {down.x * a[j].x, down.y * a[j].y};
      }
      const auto meet = [&]<int kLevel>() {
        constexpr int kHalf = 1 << kLevel;
#pragma unroll
        for (int block = 0; block < kSub / 2 / kHalf; ++block) {
          const int middle = (2 * block + 1) * kHalf;
          float2 by = {1.f, 1.f};
#pragma unroll
          for (int i = 0; i < kHalf; ++i) {
            const int at = middle + i;
            by = {by.x * a[at].x, by.y * a[at].y};
            tile::store_pair(x.ptr(at, 2 * lane), q[at].x * by.x, q[at].y * by.y);
          }
          by = {1.f, 1.f};
#pragma unroll
          for (int j = 1; j <= kHalf; ++j) {
            const int at = middle - j;
            tile::store_pair(x.ptr(at, 2 * lane), k[at].x * by.x, k[at].y * by.y);
            by = {by.x * a[at].x, by.y * a[at].y};
          }
        }
        __syncwarp();
        mma_abt<kWidth>(scores[kLevel], x, 0, 0, x, 0, 0);
        __syncwarp();
      };
      meet.template operator()<0>();
      meet.template operator()<1>();
      meet.template operator()<2>();
      meet.template operator()<3>();
    };
    const bool whole = n == kSub && pairs && pairs_g && p.K % kWidth == 0;
    for (int d = 2 * lane; d < p.K + 2 * lane; d += kWidth) {
      if (whole)
        pass.template operator()<true>(d);
      else
        pass.template operator()<false>(d);
    }
#pragma unroll
    for (int i = 0; i < kSub; ++i) {
      const float sum = tile::warp_sum(diagonal[i]);
      if (lane == i) diagonals[warp][i] = sum;
    }
    __syncwarp();
    // Two tokens meet where their numbers first differ.
#pragma unroll
    for (int block = 0; block < kSub / 8; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = tile::acc_row(i), col = tile::acc_col(block, i);
        float score = row == col ? diagonals[warp][row] : 0.f;
#pragma unroll
        for (int l = 0; l < kLevels; ++l)
          if (row > col && (row ^ col) >> l == 1) score = scores[l].x[block][i];
        scores[0].x[block][i] = score;
      }
    }
    store_acc(scores[0], y.p.at(b, from, h), y.p.by_token, n, kSub);
    __syncwarp();
  }
}

template <class Real>
void launch_prepare(const CudaProblem<Real>& p, const Prepared<Real>& y) {
  const int64_t chunks = ceil_div(p.documents.T, kTokens);
  launch(prepare<Real>, int64_t{p.B} * chunks * p.H, kPrepareThreads, 0, p, y,
         static_cast<int>(chunks));
}

}  // namespace weft::kernels::gated_linear
