// The choice by mass on a GPU: a warp for each query and head. It holds both sides of each block in
// shared memory and takes the best by turns.
#include "kernels/selection/grid.cuh"
#include "kernels/selection/select_mass.h"
#include "kernels/tile/warp.cuh"

namespace weft::kernels {
namespace {

using namespace selection;

constexpr int kThreads = 128;
constexpr int64_t kMostSlots = 6000;  // whose two sides a warp's shared memory holds

struct MassChoice {
  int64_t first = 0, recent = 1, top_k = 1;
  int H = 1, group = 1, K = 1;
  float scale = 1, lost = 0;
  uint8_t* mask = nullptr;  // [B, H, T, slots]
  float* bound = nullptr;   // [B, H, T]
};

template <class E>
__global__ void __launch_bounds__(kThreads)
    find_radius(const BlockGrid grid, int64_t count, int Hk, int K, const AnyHeads<const E> k,
                const AnyHeads<const E> means, float* radius) {
  const int64_t unit = thread_of_grid();
  if (unit >= count) return;
  const int64_t h = unit % Hk, slot = unit / Hk % grid.slots(), b = unit / Hk / grid.slots();
  const int64_t first = grid.first_token(slot);
  float most = 0;
  for (int64_t t = first; first >= 0 && t < first + grid.block; ++t) {
    float sum = 0;
    for (int i = 0; i < K; ++i) {
      const float gap = to_float(k.at(b, t, h, i)) - to_float(means.at(b, slot, h, i));
      sum = fmaf(gap, gap, sum);
    }
    most = fmaxf(most, sum);
  }
  radius[unit] = sqrtf(most);
}

// q . key of a warp's lanes, in all of them.
template <class E, class Key>
__device__ __forceinline__ float dot_of(const AnyHeads<const E>& q, int64_t b, int64_t t, int64_t h,
                                        int K, const Key& key) {
  float dot = 0;
  for (int i = tile::lane_index(); i < K; i += 32)
    dot = fmaf(to_float(q.at(b, t, h, i)), key(i), dot);
  return tile::warp_sum(dot);
}

template <class E>
__global__ void __launch_bounds__(32)
    select(const BlockGrid grid, const MassChoice a, const AnyHeads<const E> q,
           const AnyHeads<const E> k, const AnyHeads<const E> means, const float* radius) {
  extern __shared__ float sides[];  // [2, slots]
  const int64_t unit = blockIdx.x, t = unit % grid.T, h = unit / grid.T % a.H,
                b = unit / grid.T / a.H, hk = h / a.group;
  const auto at = grid.place(t);
  const int slots = static_cast<int>(grid.slots()), own = static_cast<int>(at.index);
  const int Hk = a.H / a.group, lane = tile::lane_index();
  float *const low = sides, *const high = sides + slots;
  const float length =
      sqrtf(dot_of(q, b, t, h, a.K, [&](int i) { return to_float(q.at(b, t, h, i)); }));
  const int64_t row = grid.position ? grid.held() - 1 : t + grid.S - grid.T;
  const float self =
      a.scale * dot_of(q, b, t, h, a.K, [&](int i) { return to_float(k.at(b, row, hk, i)); });
  float top = self;
  for (int c = 0; c < own; ++c) {
    const int64_t slot = at.slot + c;
    const float x = a.scale * dot_of(q, b, t, h, a.K,
                                     [&](int i) { return to_float(means.at(b, slot, hk, i)); });
    const float y = x + a.scale * length * radius[(b * slots + slot) * Hk + hk];
    top = fmaxf(top, y);
    if (lane == 0) low[c] = x, high[c] = y;
  }
  __syncwarp();
  if (lane != 0) return;  // what is left is a sum in one order

  const int first = static_cast<int>(min(a.first, at.index + 1));
  const int recent = static_cast<int>(max(int64_t{first}, at.index + 1 - a.recent));
  uint8_t* const mask = a.mask + unit * slots;
  const float block = static_cast<float>(grid.block);
  float kept = expf(self - top);
  for (int c = 0; c < slots; ++c) {
    mask[c] = c < first || (c >= recent && c <= own) ? 1 : 0;
    if (mask[c] && c < own) kept += block * expf(low[c] - top);
  }
  const int64_t least = a.top_k - first - (own + 1 - recent);
  float left = 0;
  for (int64_t n = 0;; ++n) {
    left = 0;
    int best = -1;
    for (int c = first; c < recent; ++c)
      if (!mask[c]) {
        left += block * expf(high[c] - top);
        if (best < 0 || high[c] > high[best]) best = c;
      }
    if (best < 0 || (n >= least && left <= a.lost * (left + kept))) break;
    mask[best] = 1;
    kept += block * expf(low[best] - top);
  }
  a.bound[unit] = left > 0 ? left / (left + kept) : 0.f;
}

}  // namespace

void cuda_block_radius(const Tensor& k, const Tensor& means, const SelectBlocks& o,
                       const Tensor& radius) {
  const int64_t S = k.size(1);
  const Tensor cu = borders_on(o.cu_seqlens, S, radius.device());
  if (radius.is_meta()) return;
  const BlockGrid grid = grid_on(o.position ? 1 : S, S, o.block, o.cu_seqlens, cu, o.position);
  for_cuda_dtype(k.dtype(), [&]<class E>() {
    launch(find_radius<E>, ceil_div(radius.numel(), kThreads), kThreads, 0, grid, radius.numel(),
           static_cast<int>(k.size(2)), static_cast<int>(k.size(3)), strided<const E>(k),
           strided<const E>(means), dptr<float>(radius));
  });
  check_launch("block_radius");
}

void cuda_select_mass(const Tensor& q, const Tensor& k, const Tensor& means, const Tensor& radius,
                      const SelectBlocks& o, double lost, const SelectedMass& result) {
  const int64_t T = q.size(1), H = q.size(2), slots = means.size(1);
  const Tensor cu = borders_on(o.cu_seqlens, T, q.device());
  require(slots <= kMostSlots, "select_mass: ", slots, " blocks of keys; on a GPU at most ",
          kMostSlots);
  if (q.is_meta()) return;
  const BlockGrid grid = grid_on(T, k.size(1), o.block, o.cu_seqlens, cu, o.position);
  const MassChoice a{o.first,
                     o.recent,
                     o.top_k,
                     static_cast<int>(H),
                     static_cast<int>(H / k.size(2)),
                     static_cast<int>(q.size(3)),
                     static_cast<float>(o.scale),
                     static_cast<float>(lost),
                     dptr<uint8_t>(result.mask),
                     dptr<float>(result.bound)};
  for_cuda_dtype(q.dtype(), [&]<class E>() {
    launch(select<E>, q.size(0) * H * T, 32, static_cast<int>(2 * slots * sizeof(float)), grid, a,
           strided<const E>(q), strided<const E>(k), strided<const E>(means),
           dptr<const float>(radius));
  });
  check_launch("select_mass");
}

}  // namespace weft::kernels
