// One training step, the same code on every device: the real run and the plan made by `weft inspect`
// call it alike.
#pragma once

#include <functional>

#include "layers/model.h"
#include "train/optimizer.h"
#include "train/recipe.h"

namespace weft::train {

struct StepResult {
  double loss = 0;  // mean cross-entropy of the step's labelled tokens, nats
  double norm = 0;  // gradient norm before clipping
  double lr = 0;
  double tokens = 0;       // positions seen
  int64_t peak_bytes = 0;  // the most memory held during the step
};

// Forward and backward over `accumulate` micro-batches, clipping and update. `step` is 0-based.
// A loss or gradient that is not finite leaves the parameters as they were and throws Error that names
// the step and the first operation and layer that made it (found by running the step again with
// every result checked).
StepResult train_step(const layers::Model& model, AdamW& optimizer, const Recipe& recipe,
                      int64_t step, const std::function<layers::Batch()>& next);

// A 64-bit hash of all parameters, in order, names included.
uint64_t parameter_hash(const std::vector<layers::Parameter>& parameters);

}  // namespace weft::train
