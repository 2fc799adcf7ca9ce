// Patterns of documents on a GPU: a thread for each number that is written.
#include "kernels/selection/densities.h"
#include "kernels/selection/grid.cuh"

namespace weft::kernels {
namespace {

using namespace selection;

constexpr int kThreads = 128;

struct Patterns {
  int count;
  int64_t first;
  int64_t blocks[kMostDensities];
};

Patterns patterns_of(const Densities& d) {
  Patterns p{static_cast<int>(d.blocks.size()), d.first, {}};
  for (size_t i = 0; i < d.blocks.size(); ++i) p.blocks[i] = d.blocks[i];
  return p;
}

__global__ void __launch_bounds__(kThreads)
    find_owners(const BlockGrid grid, int64_t count, int64_t slots, int32_t* index) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const BlockGrid::Place at = grid.place(i % grid.T);
  index[i] = at.index == 0 ? 0 : static_cast<int32_t>(1 + i / grid.T * slots + at.slot);
}

// Whole numbers, so the sum does not depend on its order.
__global__ void __launch_bounds__(kThreads) sum_keys(const BlockGrid grid, int64_t* sum) {
  __shared__ int64_t own[kThreads];
  int64_t keys = 0;
  for (int64_t t = threadIdx.x; t < grid.T; t += kThreads) keys += grid.keys_of(t, grid.T);
  own[threadIdx.x] = keys;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) keys += own[i];
  *sum = keys;
}

__global__ void __launch_bounds__(kThreads)
    find_parts(const BlockGrid grid, int64_t count, const Patterns p, const int64_t* sum,
               float* parts) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const int64_t t = i / p.count % grid.T, blocks = p.blocks[i % p.count];
  const double mean = static_cast<double>(*sum) / static_cast<double>(grid.T);
  parts[i] =
      blocks == 0 ? 0.f : static_cast<float>(static_cast<double>(grid.keys_of(t, blocks)) / mean);
}

__global__ void __launch_bounds__(kThreads)
    set_patterns(const BlockGrid grid, int64_t count, int heads, const Patterns p,
                 const int32_t* pattern, uint8_t* mask) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const int64_t slots = grid.slots(), c = i % slots, t = i / slots % grid.T;
  const int64_t blocks = p.blocks[pattern[i / slots / grid.T / heads * grid.T + t]];
  mask[i] = density_sees(blocks, p.first, grid.place(t).index, c);
}

}  // namespace

void cuda_opening_owners(int64_t T, int64_t S, int64_t opening, int64_t slots,
                         const SelectBlocks& o, const Tensor& index) {
  const Tensor cu = borders_on(o.cu_seqlens, T, index.device());
  if (index.is_meta()) return;
  const BlockGrid grid = grid_on(T, S, opening, o.cu_seqlens, cu, o.position);
  launch(find_owners, ceil_div(index.numel(), kThreads), kThreads, 0, grid, index.numel(), slots,
         dptr<int32_t>(index));
  check_launch("opening_owners");
}

void cuda_density_parts(int64_t T, const Densities& d, const SelectBlocks& o, const Tensor& parts) {
  require(parts.dtype() == Dtype::f32, "density_parts: ", parts.dtype(), " on a GPU, expected f32");
  const Tensor cu = borders_on(o.cu_seqlens, T, parts.device());
  const Tensor sum = empty({1}, Dtype::i64, parts.device());
  if (parts.is_meta()) return;
  const BlockGrid grid = grid_on(T, T, o.block, o.cu_seqlens, cu, o.position);
  launch(sum_keys, 1, kThreads, 0, grid, dptr<int64_t>(sum));
  launch(find_parts, ceil_div(parts.numel(), kThreads), kThreads, 0, grid, parts.numel(),
         patterns_of(d), dptr<const int64_t>(sum), dptr<float>(parts));
  check_launch("density_parts");
}

void cuda_take_densities(const Tensor& mask, const Tensor& pattern, int64_t S, const Densities& d,
                         const SelectBlocks& o) {
  const int64_t T = mask.size(2);
  const Tensor cu = borders_on(o.cu_seqlens, T, mask.device());
  if (mask.is_meta()) return;
  const BlockGrid grid = grid_on(T, S, o.block, o.cu_seqlens, cu, o.position);
  launch(set_patterns, ceil_div(mask.numel(), kThreads), kThreads, 0, grid, mask.numel(),
         static_cast<int>(mask.size(1)), patterns_of(d), dptr<const int32_t>(pattern),
         dptr<uint8_t>(mask));
  check_launch("take_densities");
}

}  // namespace weft::kernels
