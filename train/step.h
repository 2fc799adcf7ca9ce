// Training steps. The real run and the plan made by `weft inspect` take them alike: on a meta
// device nothing is computed and every allocation counted.
#pragma once

#include <functional>
#include <memory>

#include "layers/model.h"
#include "train/optimizer.h"
#include "train/recipe.h"

namespace weft::train {

class Distillation;

struct StepResult {
  int64_t step = 0;  // 0-based
  double loss = 0;   // mean cross-entropy of the step's labelled tokens, nats; or a stage's loss
  double norm = 0;   // gradient norm before clipping
  double lr = 0;
  double tokens = 0;       // positions seen
  int64_t peak_bytes = 0;  // the most memory held during a step
};

// Takes steps: forward and backward over `accumulate` micro-batches, clipping and update. A loss or
// gradient that is not finite leaves the parameters as they were, and finish() of that step throws
// Error that names the step and the first operation and layer that made it (found by running the
// step again with every result checked). An update that leaves a parameter or a moment not finite
// has it throw Error that names the step and what is not finite: parameters and moments are lost
// then.
class Stepper {
 public:
  virtual ~Stepper() = default;
  // Starts step `step` (0-based); next() gives its micro-batches, on the CPU (or the meta device).
  virtual void begin(int64_t step, const std::function<layers::Batch()>& next) = 0;
  // The result of the oldest step begun, once it is done.
  virtual StepResult finish() = 0;
  // How many steps may be under way when another begins. Where it is 0, begin() computes and the
  // host has nothing to do meanwhile.
  virtual int64_t ahead() const { return 0; }
  // How the steps are run, in a few words for the log; empty where there is nothing to say.
  virtual std::string how() const { return ""; }
};

// Throws Error unless so many ranks can share the recipe's micro-batches; it names the numbers that
// can.
void require_shards(const Recipe& recipe, int ranks);

// How many of a step's micro-batches one of `ranks` walks. On a meta device it is at most two:
// memory is after the second what it is after all others.
int64_t micro_batches(const Recipe& recipe, Device device, int ranks);

// For the device on which the model's parameters lie, and the optimizer's ranks. `distillation` is
// that of the recipe; null where it names no teacher.
std::unique_ptr<Stepper> make_stepper(const layers::Model& model, AdamW& optimizer,
                                      const Recipe& recipe,
                                      const Distillation* distillation = nullptr);
// Steps on a GPU, or a plan of them; in builds that have CUDA.
std::unique_ptr<Stepper> make_cuda_stepper(const layers::Model& model, AdamW& optimizer,
                                           const Recipe& recipe, const Distillation* distillation);

// The parameters that a step began with give a loss or a gradient that is not finite.
class NotFinite : public Error {
 public:
  using Error::Error;
};

// What a step that went wrong throws: NotFinite. loss_again() is the loss of one of the step's
// `count` micro-batches.
[[noreturn]] void refuse_step(const std::function<autograd::Var()>& loss_again, int64_t count,
                              int64_t step, double loss, double norm);

// What a step throws whose update left something not finite.
[[noreturn]] void refuse_update(const AdamW& optimizer, int64_t step);

// Rank `owner` calls f, which throws; all ranks throw NotFinite with its words, or Error if `lost`.
[[noreturn]] void refuse_together(Ranks& ranks, int owner, bool lost,
                                  const std::function<void()>& f);

// A 64-bit hash of all parameters, in order, names included.
uint64_t parameter_hash(const std::vector<layers::Parameter>& parameters);
// The same of an optimizer's. All of its ranks call it, and rank 0 has it.
uint64_t parameter_hash(const AdamW& optimizer);

// Throws RankFault that names the first rank whose weights are not those of rank 0, the parameter
// and the step. All ranks call it.
void require_equal_weights(const AdamW& optimizer, int64_t step);

}  // namespace weft::train
