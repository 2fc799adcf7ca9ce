// What a router needs that chooses a mechanism for each block of queries: which row speaks for a
// block, what each mechanism would see, and the mask of what was chosen. No gradient; the grid of
// blocks is that of select_blocks, and so are its options (block, top_k, cu_seqlens, position).
#pragma once

#include "kernels/selection/select_blocks.h"

namespace weft::kernels {

// What a block of queries may be given: no key, the last `window` blocks, the blocks that a mask
// from select_blocks has, or all of the past. The own block counts, up to the query itself.
enum Route : int32_t { kNoRoute, kWindowRoute, kSelectedRoute, kFullRoute };
inline constexpr int64_t kRoutes = 4;

// The first token of a block speaks for all of it: it is known when the block begins.
// i32 [B * T]: for each row (b, t) of [B, T] the row of its block's first token, in
//   [B, T]       where `held` is false: S = T, and all of the text is there
//   [B, 1 + T]   else: in front stands the row that the last call left, of its last block's first
//                token
Tensor block_leads(int64_t B, int64_t T, int64_t S, bool held, const SelectBlocks& o,
                   Device device);

// i32 [B * T]: for each row (b, t) of [B, T] the row of [B, slots] in whose slot its block begins.
// Incomplete blocks of two documents may begin in one slot.
Tensor block_slots(int64_t B, int64_t T, const SelectBlocks& o, Device device);

// [B * T, kRoutes] of `dtype`: the part of the keys up to it that a query sees by each route.
Tensor route_parts(int64_t B, int64_t T, int64_t window, const SelectBlocks& o, Dtype dtype,
                   Device device);

// Rewrites the rows of `mask` [B, heads, T, slots], which hold the selected blocks, for
// route i32 [B * T].
void take_routes(const Tensor& mask, const Tensor& route, int64_t S, int64_t window,
                 const SelectBlocks& o);

// i32 [R, n]: each row 0 .. n - 1.
Tensor column_numbers(int64_t R, int64_t n, Device device);

// The same on a GPU, where those above come to. In builds that have CUDA. The last argument but
// the options is written.
void cuda_block_leads(int64_t T, int64_t S, bool held, const SelectBlocks& o, const Tensor& index);
void cuda_block_slots(int64_t T, const SelectBlocks& o, const Tensor& index);
void cuda_route_parts(int64_t T, int64_t window, const SelectBlocks& o, const Tensor& parts);
void cuda_take_routes(const Tensor& mask, const Tensor& route, int64_t S, int64_t window,
                      const SelectBlocks& o);
void cuda_column_numbers(const Tensor& index);

}  // namespace weft::kernels
