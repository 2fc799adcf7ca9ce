// Muon over a list of matrices: the momentum of the gradients is made nearly orthogonal, so that
// every direction of a matrix moves alike.
//   m = momentum m + (1 - momentum) g,   u = momentum m + (1 - momentum) g
//   X = u / |u|, lying so that it has no more rows than columns; then five times
//   X = a X + (b A + c A^2) X,   A = X X',   (a, b, c) = (3.4445, -4.7750, 2.0315)
//   p = (1 - lr weight_decay) p - lr scale X
// scale is sqrt(max(1, rows / columns)), or 0.2 sqrt(max(rows, columns)), whose steps are as large
// as those of AdamW, so that it may share AdamW's rate.
// Sources: kellerjordan.github.io/posts/muon; arXiv:2502.16982 (the second scale).
#pragma once

#include <vector>

#include "core/tensor.h"

namespace weft::kernels {

struct MuonTensor {
  // [rows, columns], or [n, rows, columns]: n matrices by themselves. One shape, contiguous, f32 or
  // f64.
  Tensor master, m, grad;
};

struct MuonSettings {
  double momentum = 0.95, weight_decay = 0.1;
  bool like_adamw = false;  // the second scale
};

// The numbers of room that the largest matrix of the list needs.
int64_t muon_room(const std::vector<MuonTensor>& list);
// One step with all gradients multiplied by `factor`. `room` has that many numbers, of the dtype of
// the list. Returns false where a value of master or m is not finite afterwards: then all are lost.
// CPU.
[[nodiscard]] bool muon(const std::vector<MuonTensor>& list, const MuonSettings& s, double lr,
                        double factor, const Tensor& room);

}  // namespace weft::kernels
