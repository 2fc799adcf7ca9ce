#include "train/step.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops.h"
#include "core/hash.h"

namespace weft::train {

using autograd::backward;
using autograd::Var;
namespace {

// Runs forward and backward once more with every result checked; what it throws says where.
std::string cause(const layers::Model& model, const layers::Batch& batch, int64_t count) {
  try {
    const autograd::FiniteCheck check;
    backward(autograd::scale(model.loss(batch).total, 1.0 / static_cast<double>(count)));
  } catch (const Error& e) {
    return count == 1 ? e.what()
                      : concat("run again, one of ", count, " micro-batches: ", e.what());
  }
  if (count == 1) return "no single operation made it: the sum of the squares is too large";
  return concat("running one of ", count,
                " micro-batches again shows nothing: another made it, or their sum");
}

class HostStepper final : public Stepper {
 public:
  HostStepper(const layers::Model& model, AdamW& optimizer, const Recipe& recipe)
      : model_(model), optimizer_(optimizer), recipe_(recipe) {}

  void begin(int64_t step, const std::function<layers::Batch()>& next) override {
    const Device device = model_.parameters().front().var.value().device();
    Allocator& memory = allocator(device);
    memory.reset_peak();
    StepResult& result = result_ = {.step = step};
    {
      const OwnerScope owner("gradients");
      for (const layers::Parameter& p : model_.parameters()) p.var.zero_grad();
    }
    const auto count = recipe_.train.accumulate;
    const double factor = 1.0 / static_cast<double>(count);
    layers::Batch batch;
    for (int64_t i = 0; i < micro_batches(recipe_, device); ++i) {
      batch = next();
      layers::Loss loss = model_.loss(batch);
      result.tokens += static_cast<double>(batch.tokens.numel());
      if (!loss.cross_entropy.is_meta()) {
        const double value = loss.cross_entropy.item(), total = loss.total.value().item();
        if (!std::isfinite(value) || !std::isfinite(total))
          refuse_step(model_, batch, 1, step, std::isfinite(value) ? total : value, 0);
        result.loss += value * factor;
      }
      const Var total = count == 1 ? loss.total : autograd::scale(loss.total, factor);
      loss = {};
      backward(total);
    }
    const std::vector<kernels::AdamwTensor> tensors = optimizer_.tensors();
    const kernels::AdamwSettings settings = optimizer_.settings();
    result.norm = kernels::gradient_norm(tensors);
    if (!std::isfinite(result.norm)) refuse_step(model_, batch, count, step, 0, result.norm);
    const double clip = settings.clip;
    const double shrink = clip > 0 && result.norm > clip ? clip / result.norm : 1.0;
    result.lr = optimizer_.rate(step, recipe_.train.steps, recipe_.schedule);
    if (!kernels::adamw(tensors, settings, step + 1, result.lr, shrink))
      refuse_update(optimizer_, step);
    result.peak_bytes = memory.stats().peak;
  }
  StepResult finish() override { return result_; }

 private:
  const layers::Model& model_;
  AdamW& optimizer_;
  const Recipe& recipe_;
  StepResult result_;
};

}  // namespace

void refuse_step(const layers::Model& model, const layers::Batch& batch, int64_t count,
                 int64_t step, double loss, double norm) {
  const bool of_loss = !std::isfinite(loss);
  throw NotFinite(concat(
      "step ", step + 1, ": ", of_loss ? "the loss" : "the gradient norm",
      std::isnan(of_loss ? loss : norm) ? " is not a number; " : " is infinite; ",
      cause(model, batch, count),
      ". The parameters are as they were before this step. Lower [optimizer] lr, or set clip."));
}

void refuse_update(const AdamW& optimizer, int64_t step) {
  const kernels::AdamwSettings s = optimizer.settings();
  // In f32 a smaller one is 0 as well.
  const bool none = static_cast<float>(s.eps) == 0;
  fail("step ", step + 1, ": after the update ", optimizer.not_finite(),
       ". The step is not kept, and nothing of it is saved. ",
       none ? concat("[optimizer] eps = ", s.eps,
                     " divides 0 by 0 where a gradient is 0: set eps, as in 1e-8.")
            : "Lower [optimizer] lr or weight_decay, or set clip.");
}

int64_t micro_batches(const Recipe& recipe, Device device) {
  return device.is_meta() ? std::min<int64_t>(recipe.train.accumulate, 2) : recipe.train.accumulate;
}

std::unique_ptr<Stepper> make_stepper(const layers::Model& model, AdamW& optimizer,
                                      const Recipe& recipe) {
  if constexpr (has_cuda)
    if (model.parameters().front().var.value().device().takes_cuda_forms())
      return make_cuda_stepper(model, optimizer, recipe);
  return std::make_unique<HostStepper>(model, optimizer, recipe);
}

uint64_t parameter_hash(const std::vector<layers::Parameter>& parameters) {
  Hash64 hash;
  for (const layers::Parameter& p : parameters) {
    const Tensor t = p.master.to(kCpu).contiguous();
    hash.update(p.name);
    hash.update(t.raw(), static_cast<size_t>(t.numel() * size_of(t.dtype())));
  }
  return hash.digest();
}

}  // namespace weft::train
