#include "kernels/selection/densities.h"

#include <algorithm>

#include "core/parallel.h"
#include "kernels/selection/grid_cpu.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

using selection::BlockGrid;

void check(const char* name, int64_t B, int64_t T, int64_t S, const SelectBlocks& o) {
  require(o.block >= 1 && T <= S && (!o.cu_seqlens || (T == S && B == 1)) &&
              (!o.position || (T == 1 && !o.cu_seqlens)),
          name, ": block ", o.block, ", ", T, " queries and ", S,
          " keys, expected a block of 1 or more, with documents as many and one row, with a ",
          "position one query");
}

void check(const char* name, const Densities& d) {
  require(!d.blocks.empty() && static_cast<int64_t>(d.blocks.size()) <= kMostDensities &&
              *std::min_element(d.blocks.begin(), d.blocks.end()) >= 0 && d.first >= 0,
          name, ": ", d.blocks.size(), " patterns, expected 1 to ", kMostDensities,
          " of no negative number of blocks");
}

}  // namespace

Tensor opening_owners(int64_t B, int64_t T, int64_t S, int64_t opening, int64_t slots,
                      const SelectBlocks& o, Device device) {
  check("opening_owners", B, T, S, o);
  require(opening >= 1, "opening_owners: an opening of ", opening, ", expected 1 or more");
  const Tensor index = empty({B * T}, Dtype::i32, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_opening_owners(T, S, opening, slots, o, index);
    return index;
  }
  if (device.is_meta()) return index;
  const BlockGrid grid = selection::grid_on_cpu(T, S, opening, o.cu_seqlens, o.position);
  for (int64_t i = 0; i < B * T; ++i) {
    const BlockGrid::Place at = grid.place(i % T);
    index.data<int32_t>()[i] =
        at.index == 0 ? 0 : static_cast<int32_t>(1 + i / T * slots + at.slot);
  }
  return index;
}

Tensor density_parts(int64_t B, int64_t T, const Densities& d, const SelectBlocks& o, Dtype dtype,
                     Device device) {
  check("density_parts", B, T, T, o);
  check("density_parts", d);
  const auto n = static_cast<int64_t>(d.blocks.size());
  const Tensor parts = empty({B * T, n}, dtype, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_density_parts(T, d, o, parts);
    return parts;
  }
  if (device.is_meta()) return parts;
  const BlockGrid grid = selection::grid_on_cpu(T, T, o.block, o.cu_seqlens, o.position);
  int64_t all = 0;  // of one row of the batch
  for (int64_t t = 0; t < T; ++t) all += grid.keys_of(t, T);
  const double mean = static_cast<double>(all) / static_cast<double>(T);
  for_real(dtype, [&]<class Real>() {
    Real* to = parts.data<Real>();
    for (int64_t i = 0; i < B * T; ++i)
      for (const int64_t blocks : d.blocks)
        *to++ = blocks == 0
                    ? Real(0)
                    : static_cast<Real>(static_cast<double>(grid.keys_of(i % T, blocks)) / mean);
  });
  return parts;
}

void take_densities(const Tensor& mask, const Tensor& pattern, int64_t S, const Densities& d,
                    const SelectBlocks& o) {
  const int64_t B = mask.size(0), T = mask.size(2);
  check("take_densities", B, T, S, o);
  check("take_densities", d);
  require(mask.dtype() == Dtype::u8 && mask.is_contiguous() && pattern.dtype() == Dtype::i32 &&
              pattern.shape() == Shape{B * T},
          "take_densities: pattern is ", pattern.dtype(), " ", pattern.shape(), ", expected i32 [",
          B * T, "], and a contiguous mask u8");
  mask.mark_written();
  if (mask.device().takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_take_densities(mask, pattern, S, d, o);
    return;
  }
  if (mask.is_meta()) return;
  const BlockGrid grid = selection::grid_on_cpu(T, S, o.block, o.cu_seqlens, o.position);
  const int64_t heads = mask.size(1), slots = mask.size(3);
  parallel_for(B * heads * T, [&](int64_t unit) {
    const int64_t t = unit % T, b = unit / T / heads, own = grid.place(t).index;
    const int64_t blocks = d.blocks[static_cast<size_t>(pattern.data<int32_t>()[b * T + t])];
    uint8_t* const row = mask.data<uint8_t>() + unit * slots;
    for (int64_t c = 0; c < slots; ++c) row[c] = density_sees(blocks, d.first, own, c);
  });
}

}  // namespace weft::kernels
