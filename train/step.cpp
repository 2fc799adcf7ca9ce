#include "train/step.h"

#include <cmath>

#include "autograd/ops.h"
#include "core/hash.h"

namespace weft::train {

using autograd::backward;
using autograd::Var;
namespace {

// Runs forward and backward once more with every result checked; what it throws says where.
std::string cause(const layers::Model& model, const layers::Batch& batch, double factor) {
  try {
    const autograd::FiniteCheck check;
    backward(autograd::scale(model.loss(batch).total, factor));
  } catch (const Error& e) {
    return e.what();
  }
  return "no single operation made it: the sum over micro-batches is too large";
}

[[noreturn]] void stop(int64_t step, const char* what, double value, const std::string& why) {
  fail("step ", step + 1, ": ", what, std::isnan(value) ? " is not a number; " : " is infinite; ",
       why,
       ". The parameters are as they were before this step. Lower [optimizer] lr, or set clip.");
}

}  // namespace

StepResult train_step(const layers::Model& model, AdamW& optimizer, const Recipe& recipe,
                      int64_t step, const std::function<layers::Batch()>& next) {
  Allocator& memory = allocator(model.parameters().front().var.value().device());
  memory.reset_peak();
  StepResult result;
  {
    const OwnerScope owner("gradients");
    for (const layers::Parameter& p : model.parameters()) p.var.zero_grad();
  }
  const auto count = recipe.train.accumulate;
  const double factor = 1.0 / static_cast<double>(count);
  layers::Batch batch;
  for (int64_t i = 0; i < count; ++i) {
    batch = next();
    layers::Loss loss = model.loss(batch);
    result.tokens += static_cast<double>(batch.tokens.numel());
    if (!loss.cross_entropy.is_meta()) {
      const double value = loss.cross_entropy.item();
      const double total = loss.total.value().item();
      if (!std::isfinite(value) || !std::isfinite(total))
        stop(step, "the loss", std::isfinite(value) ? total : value, cause(model, batch, factor));
      result.loss += value * factor;
    }
    const Var total = count == 1 ? loss.total : autograd::scale(loss.total, factor);
    loss = {};
    backward(total);
  }
  result.norm = optimizer.gradient_norm();
  if (!std::isfinite(result.norm))
    stop(step, "the gradient norm", result.norm, cause(model, batch, factor));
  const double clip = recipe.optimizer.clip;
  const double shrink = clip > 0 && result.norm > clip ? clip / result.norm : 1.0;
  result.lr = recipe.optimizer.lr * schedule_factor(recipe.schedule, step, recipe.train.steps);
  optimizer.step(step + 1, result.lr, shrink);
  result.peak_bytes = memory.stats().peak;
  return result;
}

uint64_t parameter_hash(const std::vector<layers::Parameter>& parameters) {
  Hash64 hash;
  for (const layers::Parameter& p : parameters) {
    const Tensor t = p.var.value().contiguous();
    hash.update(p.name);
    hash.update(t.raw(), static_cast<size_t>(t.numel() * size_of(t.dtype())));
  }
  return hash.digest();
}

}  // namespace weft::train
