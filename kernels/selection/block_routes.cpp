#include "kernels/selection/block_routes.h"

#include <algorithm>

#include "core/parallel.h"
#include "kernels/selection/grid_cpu.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

using selection::BlockGrid;

BlockGrid grid_of(int64_t T, int64_t S, const SelectBlocks& o) {
  return selection::grid_on_cpu(T, S, o.block, o.cu_seqlens, o.position);
}

void check(const char* name, int64_t B, int64_t T, int64_t S, const SelectBlocks& o) {
  require(o.block >= 1 && T <= S && (!o.cu_seqlens || (T == S && B == 1)) &&
              (!o.position || (T == 1 && !o.cu_seqlens)),
          name, ": block ", o.block, ", ", T, " queries and ", S,
          " keys, expected a block of 1 or more, with documents as many and one row, with a ",
          "position one query");
}

}  // namespace

Tensor block_leads(int64_t B, int64_t T, int64_t S, bool held, const SelectBlocks& o,
                   Device device) {
  check("block_leads", B, T, S, o);
  require(held || (T == S && !o.position), "block_leads: ", T, " of ", S,
          " tokens without the row that the call before left, expected it, or all of the text");
  const Tensor index = empty({B * T}, Dtype::i32, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_block_leads(T, S, held, o, index);
    return index;
  }
  if (device.is_meta()) return index;
  const BlockGrid grid = grid_of(T, S, o);
  const int64_t front = held ? 1 : 0;
  for (int64_t i = 0; i < B * T; ++i)
    index.data<int32_t>()[i] =
        static_cast<int32_t>(i / T * (T + front) + std::max<int64_t>(0, grid.lead(i % T) + front));
  return index;
}

Tensor block_slots(int64_t B, int64_t T, const SelectBlocks& o, Device device) {
  check("block_slots", B, T, T, o);
  const Tensor index = empty({B * T}, Dtype::i32, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_block_slots(T, o, index);
    return index;
  }
  if (device.is_meta()) return index;
  const BlockGrid grid = grid_of(T, T, o);
  for (int64_t i = 0; i < B * T; ++i)
    index.data<int32_t>()[i] =
        static_cast<int32_t>(i / T * grid.slots() + grid.lead(i % T) / o.block);
  return index;
}

Tensor route_parts(int64_t B, int64_t T, int64_t window, const SelectBlocks& o, Dtype dtype,
                   Device device) {
  check("route_parts", B, T, T, o);
  const Tensor parts = empty({B * T, kRoutes}, dtype, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_route_parts(T, window, o, parts);
    return parts;
  }
  if (device.is_meta()) return parts;
  const BlockGrid grid = grid_of(T, T, o);
  for_real(dtype, [&]<class Real>() {
    Real* to = parts.data<Real>();
    for (int64_t i = 0; i < B * T; ++i, to += kRoutes) {
      const Real all = static_cast<Real>(grid.keys_of(i % T, T));
      to[kNoRoute] = 0;
      to[kWindowRoute] = static_cast<Real>(grid.keys_of(i % T, window)) / all;
      to[kSelectedRoute] = static_cast<Real>(grid.keys_of(i % T, o.top_k)) / all;
      to[kFullRoute] = 1;
    }
  });
  return parts;
}

void take_routes(const Tensor& mask, const Tensor& route, int64_t S, int64_t window,
                 const SelectBlocks& o) {
  const int64_t B = mask.size(0), T = mask.size(2);
  check("take_routes", B, T, S, o);
  require(mask.dtype() == Dtype::u8 && mask.is_contiguous() && route.dtype() == Dtype::i32 &&
              route.shape() == Shape{B * T},
          "take_routes: route is ", route.dtype(), " ", route.shape(), ", expected i32 [", B * T,
          "], and a contiguous mask u8");
  mask.mark_written();
  if (mask.device().takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_take_routes(mask, route, S, window, o);
    return;
  }
  if (mask.is_meta()) return;
  const BlockGrid grid = grid_of(T, S, o);
  const int64_t heads = mask.size(1), slots = mask.size(3);
  parallel_for(B * heads * T, [&](int64_t unit) {
    const int64_t t = unit % T, b = unit / T / heads;
    const int32_t chosen = route.data<int32_t>()[b * T + t];
    if (chosen == kSelectedRoute) return;
    const int64_t own = grid.place(t).index;
    const int64_t seen = chosen == kNoRoute ? 0 : chosen == kFullRoute ? own + 1 : window;
    uint8_t* const row = mask.data<uint8_t>() + unit * slots;
    for (int64_t c = 0; c < slots; ++c) row[c] = c <= own && own - c < seen;
  });
}

Tensor column_numbers(int64_t R, int64_t n, Device device) {
  const Tensor index = empty({R, n}, Dtype::i32, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_column_numbers(index);
    return index;
  }
  if (device.is_meta()) return index;
  for (int64_t i = 0; i < R * n; ++i) index.data<int32_t>()[i] = static_cast<int32_t>(i % n);
  return index;
}

}  // namespace weft::kernels
