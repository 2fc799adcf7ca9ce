// AdamW (Loshchilov and Hutter, arXiv:1711.05101) with decoupled decay, clipping by the global norm,
// and the learning rate's schedule.
#pragma once

#include <vector>

#include "layers/layer.h"
#include "train/recipe.h"

namespace weft::train {

// The factor on lr at `step` (0-based) of `steps`: linear warm-up, then
//   cosine: half a cosine from 1 down to `final`;
//   wsd: 1, then in the last `decay` part of the steps linearly down to `final`;
//   constant: 1.
double schedule_factor(const ScheduleSettings& s, int64_t step, int64_t steps);

class AdamW {
 public:
  // Moments start at zero and are held for "optimizer" in the memory counts.
  AdamW(const OptimizerSettings& settings, const std::vector<layers::Parameter>& parameters);

  // The norm of all gradients together; sums run in f64 over fixed pieces, in order.
  double gradient_norm() const;
  // One step at learning rate `lr` with all gradients multiplied by `factor`. `step` counts from 1.
  //   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
  //   p -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay p)
  void step(int64_t step, double lr, double factor);

  struct Moments {
    Tensor m, v;
  };
  const std::vector<Moments>& moments() const { return moments_; }
  const std::vector<layers::Parameter>& parameters() const { return parameters_; }

 private:
  OptimizerSettings settings_;
  std::vector<layers::Parameter> parameters_;
  std::vector<Moments> moments_;
};

}  // namespace weft::train
