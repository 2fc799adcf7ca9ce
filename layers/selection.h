// What the mixers share whose blocks of keys the data choose: their settings, and the choice.
#pragma once

#include "kernels/selection/select_blocks.h"
#include "layers/softmax.h"

namespace weft::layers {

// Reads block and softcap, and top_k unless the mixer has other numbers of blocks.
class Selection {
 public:
  Selection(const Spec& spec, const TomlTable& t, bool one_number = true);

  // The means of complete blocks of x [B, S, heads, width], all that there is up to now.
  // `held` lives until the gradient of the means is made.
  Var means(const Var& x, const Context& c, const Tensor& held = {}) const;
  // For rows of q that stand at the end of what there is up to now.
  kernels::SelectBlocks options(const Context& c) const;
  // Softmax attention of q [B, T, H, K] over the blocks that `mask` has for each of its rows; with
  // by_block those of a block are equal. `scale`: factor of q.k; 0: K^-1/2.
  Var attend(const HeadProjections::Result& x, const Tensor& mask, bool by_block, double scale,
             const Context& c) const;
  // Mean number of keys that a token sees of a text of T: of its last `blocks` blocks, or of as
  // many as it chooses.
  double keys_seen(int64_t T, int64_t blocks) const;
  double keys_seen(int64_t T) const { return keys_seen(T, top_k_); }

  int64_t block() const { return block_; }

 private:
  int64_t block_, top_k_;
  double softcap_;
};

}  // namespace weft::layers
