// The choice of blocks on a GPU: a block of threads for each row of the mask. Its warps make the
// scores in shared memory, a lane a few columns of the heads; one warp then takes the best by
// turns.
#include "kernels/selection/grid.cuh"
#include "kernels/selection/select_blocks.h"
#include "kernels/tile/warp.cuh"

namespace weft::kernels {
namespace {

using namespace selection;

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int64_t kMostSlots = 12000;  // whose scores a block of threads holds

struct Choice {
  int64_t rows = 0, first = 0, recent = 1, top_k = 1;
  int H = 1, heads = 1, group = 1, K = 1;
  bool by_block = false;
  float scale = 1;
  const float* lse = nullptr;  // [B, H, T], or null
  uint8_t* mask = nullptr;     // [B, heads, T, slots]
};

// Of two candidates that with the higher score, of equal ones the lower number; -1: none.
__device__ __forceinline__ bool before(float score, int c, float other, int d) {
  if (c < 0 || d < 0) return d < 0 && c >= 0;
  return score > other || (score == other && c < d);
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    select(const BlockGrid grid, const Choice a, const AnyHeads<const Real> q,
           const AnyHeads<const Real> means) {
  extern __shared__ float scores[];  // [slots]
  const int64_t unit = blockIdx.x, t = unit % grid.T;
  const int m = static_cast<int>(unit / grid.T % a.heads);
  const int64_t b = unit / grid.T / a.heads;
  const auto at = grid.place(t);
  const int lane = tile::lane_index(), slots = static_cast<int>(grid.slots());
  const int own = static_cast<int>(at.index);
  const int first = static_cast<int>(min(a.first, at.index + 1));
  const int recent = static_cast<int>(max(int64_t{first}, at.index + 1 - a.recent));
  const int64_t left = min(a.top_k - first - (own + 1 - recent), int64_t{recent - first});
  uint8_t* const row = a.mask + unit * slots;
  for (int c = threadIdx.x; c < slots; c += kThreads)
    row[c] = c < first || (c >= recent && c <= own) ? 1 : 0;
  if (left <= 0) return;

  const int64_t from = a.by_block ? at.slot + at.index - 1 : t;
  const int share = a.H / a.heads;
  for (int c = first + static_cast<int>(threadIdx.x) / 32; c < recent; c += kWarps) {
    float sum = 0;
    for (int h = m * share; h < (m + 1) * share; ++h) {
      float dot = 0;
      for (int i = lane; i < a.K; i += 32)
        dot = fmaf(to_float(q.at(b, from, h, i)),
                   to_float(means.at(b, at.slot + c, h / a.group, i)), dot);
      dot = tile::warp_sum(dot);
      sum += a.lse ? expf(a.scale * dot - a.lse[(b * a.H + h) * grid.T + t]) : dot;
    }
    if (lane == 0) scores[c] = isnan(sum) ? -INFINITY : sum;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  float last_score = 0;
  int last = -1;
  for (int64_t n = 0; n < left; ++n) {  // the best of those behind the last one taken
    float score = 0;
    int best = -1;
    for (int c = first + lane; c < recent; c += 32)
      if ((last < 0 || before(last_score, last, scores[c], c)) &&
          before(scores[c], c, score, best)) {
        score = scores[c];
        best = c;
      }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, score, offset);
      const int d = __shfl_xor_sync(~0u, best, offset);
      if (before(other, d, score, best)) {
        score = other;
        best = d;
      }
    }
    if (lane == 0) row[best] = 1;
    last_score = score;
    last = best;
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    find_before(const BlockGrid grid, int64_t count, int H, int32_t* index, Real* there) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const auto at = grid.place(i / H % grid.T);
  const int64_t slot = at.index > 0 ? at.slot + at.index - 1 : 0;
  index[i] = static_cast<int32_t>((i / H / grid.T * grid.slots() + slot) * H + i % H);
  there[i] = from_float<Real>(at.index > 0 ? 1.f : 0.f);
}

__global__ void __launch_bounds__(kThreads)
    find_past(const BlockGrid grid, int64_t count, uint8_t* mask) {
  const int64_t i = thread_of_grid();
  if (i < count) mask[i] = grid.is_past(i / grid.slots(), i % grid.slots());
}

}  // namespace

void cuda_select_blocks(const Tensor& q, const Tensor& means, int64_t T, int64_t S,
                        const SelectBlocks& o, const Tensor& mask) {
  const int64_t slots = mask.size(3);
  require(slots <= kMostSlots, "select_blocks: ", slots, " blocks of ", o.block,
          " tokens; on a GPU at most ", kMostSlots, "; set a larger block");
  const Tensor cu = borders_on(o.cu_seqlens, T, q.device());
  const Tensor lse = o.lse ? o.lse.to(Dtype::f32).contiguous() : Tensor();
  if (q.is_meta()) return;
  const Choice a{.rows = T,
                 .first = o.first,
                 .recent = o.recent,
                 .top_k = o.top_k,
                 .H = static_cast<int>(q.size(2)),
                 .heads = static_cast<int>(mask.size(1)),
                 .group = static_cast<int>(q.size(2) / means.size(2)),
                 .K = static_cast<int>(q.size(3)),
                 .by_block = o.by_block,
                 .scale = static_cast<float>(o.scale),
                 .lse = lse ? dptr<const float>(lse) : nullptr,
                 .mask = dptr<uint8_t>(mask)};
  const BlockGrid grid = grid_on(T, S, o.block, o.cu_seqlens, cu, o.position);
  for_cuda_dtype(q.dtype(), [&]<class Real>() {
    launch(select<Real>, q.size(0) * mask.size(1) * T, kThreads,
           static_cast<int>(slots * sizeof(float)), grid, a, strided<const Real>(q),
           strided<const Real>(means));
  });
  check_launch("select_blocks");
}

void cuda_blocks_before(int64_t T, int64_t S, const SelectBlocks& o, const BlocksBefore& y) {
  const int64_t count = y.index.numel();
  const Tensor cu = borders_on(o.cu_seqlens, T, y.index.device());
  if (y.index.is_meta()) return;
  const BlockGrid grid = grid_on(T, S, o.block, o.cu_seqlens, cu, o.position);
  for_cuda_dtype(y.there.dtype(), [&]<class Real>() {
    launch(find_before<Real>, ceil_div(count, kThreads), kThreads, 0, grid, count,
           static_cast<int>(y.there.size(2)), dptr<int32_t>(y.index), dptr<Real>(y.there));
  });
  check_launch("blocks_before");
}

void cuda_past_slots(int64_t T, int64_t S, const SelectBlocks& o, const Tensor& mask) {
  const Tensor cu = borders_on(o.cu_seqlens, T, mask.device());
  if (mask.is_meta()) return;
  const BlockGrid grid = grid_on(T, S, o.block, o.cu_seqlens, cu, o.position);
  launch(find_past, ceil_div(mask.numel(), kThreads), kThreads, 0, grid, mask.numel(),
         dptr<uint8_t>(mask));
  check_launch("past_slots");
}

}  // namespace weft::kernels
