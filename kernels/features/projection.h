// The random rows of a projection for `random_features`. They are a function of a seed, a layer, a
// head and the number of the draw: whoever asks again gets the same bits, on any device.
#pragma once

#include "core/tensor.h"

namespace weft::kernels {

struct Projection {
  int64_t heads = 1, features = 1, width = 1;
  // Rows at right angles in blocks of `width`, with the lengths of normal rows; else normal rows.
  bool orthogonal = true;
  uint64_t seed = 0;
  int64_t layer = 0, draw = 0;
};

// [H, M, K] in f64 on the CPU. A row by itself is normal either way; rows at right angles make the
// mean of their features vary less (arXiv:2009.14794, section 3).
Tensor random_projection(const Projection& p);

}  // namespace weft::kernels
