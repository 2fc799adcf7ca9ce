// Routes of blocks on a GPU: a thread for each number that is written.
#include "kernels/selection/block_routes.h"
#include "kernels/selection/grid.cuh"

namespace weft::kernels {
namespace {

using namespace selection;

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    find_leads(const BlockGrid grid, int64_t count, int front, int32_t* index) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  index[i] = static_cast<int32_t>(i / grid.T * (grid.T + front) +
                                  max(int64_t{0}, grid.lead(i % grid.T) + front));
}

__global__ void __launch_bounds__(kThreads)
    find_slots(const BlockGrid grid, int64_t count, int32_t* index) {
  const int64_t i = thread_of_grid();
  if (i < count)
    index[i] = static_cast<int32_t>(i / grid.T * grid.slots() + grid.lead(i % grid.T) / grid.block);
}

__global__ void __launch_bounds__(kThreads)
    find_parts(const BlockGrid grid, int64_t count, int64_t window, int64_t top_k, float* parts) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const int64_t t = i / kRoutes % grid.T;
  const int route = static_cast<int>(i % kRoutes);
  const float all = static_cast<float>(grid.keys_of(t, grid.T));
  parts[i] =
      route == kNoRoute ? 0.f
      : route == kFullRoute
          ? 1.f
          : static_cast<float>(grid.keys_of(t, route == kWindowRoute ? window : top_k)) / all;
}

__global__ void __launch_bounds__(kThreads)
    set_routes(const BlockGrid grid, int64_t count, int heads, int64_t window, const int32_t* route,
               uint8_t* mask) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const int64_t slots = grid.slots(), c = i % slots, t = i / slots % grid.T;
  const int32_t chosen = route[i / slots / grid.T / heads * grid.T + t];
  if (chosen == kSelectedRoute) return;
  const int64_t own = grid.place(t).index;
  const int64_t seen = chosen == kNoRoute ? 0 : chosen == kFullRoute ? own + 1 : window;
  mask[i] = c <= own && own - c < seen;
}

__global__ void __launch_bounds__(kThreads) number(int64_t count, int n, int32_t* index) {
  const int64_t i = thread_of_grid();
  if (i < count) index[i] = static_cast<int32_t>(i % n);
}

}  // namespace

void cuda_block_leads(int64_t T, int64_t S, bool held, const SelectBlocks& o, const Tensor& index) {
  const Tensor cu = borders_on(o.cu_seqlens, T, index.device());
  if (index.is_meta()) return;
  const BlockGrid grid = grid_on(T, S, o.block, o.cu_seqlens, cu, o.position);
  launch(find_leads, ceil_div(index.numel(), kThreads), kThreads, 0, grid, index.numel(),
         held ? 1 : 0, dptr<int32_t>(index));
  check_launch("block_leads");
}

void cuda_block_slots(int64_t T, const SelectBlocks& o, const Tensor& index) {
  const Tensor cu = borders_on(o.cu_seqlens, T, index.device());
  if (index.is_meta()) return;
  const BlockGrid grid = grid_on(T, T, o.block, o.cu_seqlens, cu, o.position);
  launch(find_slots, ceil_div(index.numel(), kThreads), kThreads, 0, grid, index.numel(),
         dptr<int32_t>(index));
  check_launch("block_slots");
}

void cuda_route_parts(int64_t T, int64_t window, const SelectBlocks& o, const Tensor& parts) {
  require(parts.dtype() == Dtype::f32, "route_parts: ", parts.dtype(), " on a GPU, expected f32");
  const Tensor cu = borders_on(o.cu_seqlens, T, parts.device());
  if (parts.is_meta()) return;
  const BlockGrid grid = grid_on(T, T, o.block, o.cu_seqlens, cu, o.position);
  launch(find_parts, ceil_div(parts.numel(), kThreads), kThreads, 0, grid, parts.numel(), window,
         o.top_k, dptr<float>(parts));
  check_launch("route_parts");
}

void cuda_take_routes(const Tensor& mask, const Tensor& route, int64_t S, int64_t window,
                      const SelectBlocks& o) {
  const int64_t T = mask.size(2);
  const Tensor cu = borders_on(o.cu_seqlens, T, mask.device());
  if (mask.is_meta()) return;
  const BlockGrid grid = grid_on(T, S, o.block, o.cu_seqlens, cu, o.position);
  launch(set_routes, ceil_div(mask.numel(), kThreads), kThreads, 0, grid, mask.numel(),
         static_cast<int>(mask.size(1)), window, dptr<const int32_t>(route), dptr<uint8_t>(mask));
  check_launch("take_routes");
}

void cuda_column_numbers(const Tensor& index) {
  if (index.is_meta()) return;
  launch(number, ceil_div(index.numel(), kThreads), kThreads, 0, index.numel(),
         static_cast<int>(index.size(1)), dptr<int32_t>(index));
  check_launch("column_numbers");
}

}  // namespace weft::kernels
