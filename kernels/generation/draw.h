// Drawing a token from logits: what generation does with what the model says.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace weft::kernels {

struct Sampling {
  double temperature = 0.8;  // 0: always the likeliest token
  int64_t top_k = 0;         // only the k likeliest; 0: all
  double top_p = 1;          // only the smallest set of likeliest tokens with this much probability
  uint64_t seed = 1;
  // Only the first so many logits stand for a token; 0: all. A model may have more entries than its
  // vocabulary has tokens, so that its size suits the machine.
  int64_t tokens = 0;

  // In [0, 1): what chance says at draw `index`, so that a seed gives the same text again.
  double chance(uint64_t index) const;
  // Those of `logits` [V] that stand for a token.
  Tensor drawable(const Tensor& logits) const;
};

// The token drawn from logits [V] at draw `index`: tokens stand in falling order of their logits,
// ties by number, each as wide as it is likely; the one at `chance` of the width kept is taken. A
// logit that is not finite is never drawn; throws Error where none is finite.
int32_t draw_token(const Tensor& logits, const Sampling& sampling, uint64_t index);

// The same on a GPU, without the host. Weights exp(logit / temperature) are whole numbers of 2^-40
// of the largest there, so that their sums are exact in any order: the token is that of
// draw_token() but where chance falls within some 2^-39 of a border between two.
//   logits   [V]  f32 or bf16
//   chances  [n]  f64: chance(0), ...
//   place    i32 [1]: the position of the last token, raised by one: that of the token drawn
//   token    i32 [1]: the token drawn
// The draw's number is place - first, with `place` as it was.
void cuda_draw_token(const Tensor& logits, const Sampling& sampling, const Tensor& chances,
                     const Tensor& place, int64_t first, const Tensor& token);

}  // namespace weft::kernels
