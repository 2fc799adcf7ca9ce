// Block masks with names, for block_sparse: u8 [heads, n, n] on the CPU, 1 where the queries of
// block row a see the keys of block column c. All are causal: c <= a. A row depends on nothing
// beyond it, so that a longer sequence, or a decode step, sees the same blocks.
// n = block_count(T, block) for the longest sequence.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace weft::kernels {

inline int64_t block_count(int64_t tokens, int64_t block) {
  return tokens / block + (tokens % block > 0);
}

// How many blocks a row of window_blocks needs for each query to see at least `window` keys.
inline int64_t blocks_of_window(int64_t window, int64_t block) {
  return 1 + block_count(window - 1, block);
}

// [1, n, n]. The last `width` blocks, the own one included.
Tensor window_blocks(int64_t n, int64_t width);
// [1, n, n]. Of each `step` blocks back one, `width` of them, the own one included.
Tensor dilated_blocks(int64_t n, int64_t width, int64_t step);
// [1, n, n]. Of each `step` blocks back one, to the start.
Tensor strided_blocks(int64_t n, int64_t step);
// [1, n, n]. The first `count` blocks.
Tensor global_blocks(int64_t n, int64_t count);

// [heads, n, n]. `count` blocks of a row's past that are not in `taken` [1 or heads, n, n], or all
// of them where there are fewer: `taken` itself is not in the result. They are drawn by Philox from
// (seed, layer, head, row), so they belong to the model and not to a run.
Tensor random_blocks(const Tensor& taken, int64_t heads, int64_t count, uint64_t seed,
                     int64_t layer);

// The union of masks with the same n; those with one head serve for all heads.
Tensor united(const std::vector<Tensor>& masks);

// [1, n, n]. A window and the first blocks (arXiv:2004.05150, the causal part).
Tensor longformer_blocks(int64_t n, int64_t width, int64_t global);

// [heads, n, n]. The first block, the last three and `random` others (arXiv:2007.14062, the causal
// part; no row is dense).
Tensor bigbird_blocks(int64_t heads, int64_t n, int64_t random, uint64_t seed, int64_t layer);

// Pairs of a query and a key it sees, causal, of T tokens and one head of a mask.
double causal_pairs(const Tensor& mask, int64_t head, int64_t block, int64_t T);

}  // namespace weft::kernels
