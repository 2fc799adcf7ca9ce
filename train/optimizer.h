// AdamW over a model's parameters, and the learning rate's schedule. The arithmetic is that of
// kernels/optimizer/adamw.h.
#pragma once

#include <vector>

#include "kernels/optimizer/adamw.h"
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

  // What the arithmetic runs over. The leaves' gradients must be there.
  std::vector<kernels::AdamwTensor> tensors() const;
  kernels::AdamwSettings settings() const;
  // The learning rate of `step` (0-based).
  double rate(int64_t step, int64_t steps, const ScheduleSettings& schedule) const;

  struct Moments {
    Tensor m, v;
  };
  const std::vector<Moments>& moments() const { return moments_; }
  const std::vector<layers::Parameter>& parameters() const { return parameters_; }
  // The first parameter or moment with a value that is not finite, in words; empty where there is
  // none.
  std::string not_finite() const;

 private:
  OptimizerSettings settings_;
  std::vector<layers::Parameter> parameters_;
  std::vector<Moments> moments_;
};

}  // namespace weft::train
