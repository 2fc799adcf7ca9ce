// Which blocks of keys a query sees, chosen by what they hold: a mask for block_sparse, without a
// gradient.
//
// A query in block a of its sequence or document sees `top_k` blocks, or all of 0 .. a where there
// are fewer: its own one (a), the `first` blocks of all, the `recent` - 1 before its own, and for
// the rest those with the highest scores, of equal scores the lower number. The candidates are
// complete and in the past, so that no choice depends on a later token. A score that is NaN counts
// as the lowest of all. If the forced blocks are more than top_k, they are what is seen.
//
// The score of block c is the sum over the heads of queries that share a mask of
//   q . mean(c)                    or, with lse,   exp(scale q . mean(c) - lse)
// where q is that of the query or, with by_block, the mean of the queries of block a - 1: all
// queries of a block then see the same blocks, known before the first of them.
#pragma once

#include "core/tensor.h"

namespace weft::kernels {

struct SelectBlocks {
  int64_t block = 64, top_k = 8;
  int64_t first = 0, recent = 1;
  bool by_block = false;
  int64_t heads = 0;  // of the mask: those of q, of the means, or 0: of q
  Tensor lse;         // [B, H, T], of attention over the means; not with by_block
  double scale = 1;   // of the scores that have an lse
  Tensor cu_seqlens;  // i32 [N + 1] on the CPU; then B = 1 and S = T
  Tensor position;    // i32 [1] where q lies: that of the only query, in a cache of S keys
};

// The mask u8 [B, heads, T, slots], one row a query, as block_sparse takes it with by_token.
//   q      [B, T, H, K], of rows that stand at positions S - T + t; by_block: [B, slots, H, K]
//   means  [B, slots, Hk, K], as block_means gives them for S keys; slots = ceil(S / block)
// Sums are made in one order whatever T is, so a query chooses the same blocks in any call.
Tensor select_blocks(const Tensor& q, const Tensor& means, int64_t T, int64_t S,
                     const SelectBlocks& o);

// The rows that choose by block read of what was made of blocks: for each of the rows (b, t, h) of
// [B, T, H] the row (b, slot of the block before that of t, h) of [B, slots, H].
struct BlocksBefore {
  Tensor index;  // i32 [B * T * H]; any row where there is no block before
  Tensor there;  // [B, T, H] of `dtype`: 1 where there is one, else 0
};
BlocksBefore blocks_before(int64_t B, int64_t T, int64_t S, int64_t H, const SelectBlocks& o,
                           Dtype dtype, Device device);

// u8 [1, 1, T, slots]: the slots of the complete blocks that end with a query or before it, in its
// document: what a query may see of tensors with a row for each slot.
Tensor past_slots(int64_t T, int64_t S, const SelectBlocks& o, Device device);

// [N + 1] borders of documents for tensors with a row for each slot, on the CPU and in memory sized
// by T alone; absent where cu_seqlens is. A document without a complete block has no slot.
Tensor slot_borders(const Tensor& cu_seqlens, int64_t T, int64_t block);

// The same on a GPU, where those above come to. In builds that have CUDA. `mask` and `before` are
// there.
void cuda_select_blocks(const Tensor& q, const Tensor& means, int64_t T, int64_t S,
                        const SelectBlocks& o, const Tensor& mask);
void cuda_blocks_before(int64_t T, int64_t S, const SelectBlocks& o, const BlocksBefore& before);
void cuda_past_slots(int64_t T, int64_t S, const SelectBlocks& o, const Tensor& mask);

}  // namespace weft::kernels
