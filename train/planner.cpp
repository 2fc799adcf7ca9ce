#include "train/planner.h"

#include <algorithm>
#include <map>
#include <memory>

#include "core/memory.h"
#include "core/units.h"
#include "train/distillation.h"
#include "train/source.h"
#include "train/step.h"

namespace weft::train {
namespace {

int64_t owned_by(const std::vector<Owned>& owners, const std::string& name) {
  for (const Owned& o : owners)
    if (o.owner == name) return o.bytes;
  return 0;
}

std::vector<int64_t> first_steps(const Recipe& r) {
  std::vector<int64_t> steps{0};
  for (const int64_t step : {r.distill.align.steps, r.distill.align.steps + r.distill.match.steps})
    if (step > steps.back() && step < r.train.steps) steps.push_back(step);
  return steps;
}

}  // namespace

Plan make_plan(Recipe& recipe, int ranks, int rank) {
  require_shards(recipe, ranks);
  const DataSettings data = read_data(recipe.toml.table("data"));
  layers::Model model(recipe.toml, vocabulary_of(data), recipe.train.dtype,
                      meta_of(recipe.train.device), recipe.train.seed);
  AdamW optimizer(recipe.optimizer, model.parameters(), Ranks::planned(rank, ranks));
  recipe.finish();
  std::unique_ptr<Distillation> distillation;
  if (!recipe.distill.teacher.empty())
    distillation = std::make_unique<Distillation>(recipe, model, /*planned=*/true);

  Plan plan;
  std::map<std::string, int64_t> parts;
  for (const layers::Parameter& p : model.parameters()) {
    if (!parts.count(p.part)) plan.parameters.emplace_back(p.part, 0);
    parts[p.part] += p.var.value().numel();
  }
  for (auto& [part, count] : plan.parameters) count = parts[part];
  plan.parameter_count = model.parameter_count();
  plan.active = model.active_parameter_count();
  plan.flops_forward = model.flops_per_token();

  const BatchShape shape = batch_shape(data, recipe, model.context());
  plan.batch = shape.tokens;
  const Device meta = meta_of(recipe.train.device);
  MetaBatches batches(shape);
  const std::unique_ptr<Stepper> stepper =
      make_stepper(model, optimizer, recipe, distillation.get());
  // The most of all stages, each by its first step.
  for (const int64_t step : first_steps(recipe)) {
    stepper->begin(step, [&] { return batches.next(); });
    const int64_t peak = stepper->finish().peak_bytes;
    if (peak <= plan.peak) continue;
    plan.peak = peak;
    plan.owners = allocator(meta).stats().at_peak;
  }
  plan.parameter_bytes = owned_by(plan.owners, "parameters");
  plan.gradient_bytes = owned_by(plan.owners, "gradients");
  plan.optimizer_bytes = owned_by(plan.owners, "optimizer");
  plan.teacher_bytes = owned_by(plan.owners, "teacher");
  plan.activation_bytes = plan.peak - plan.parameter_bytes - plan.gradient_bytes -
                          plan.optimizer_bytes - plan.teacher_bytes;

  for (int64_t eighth = 1; eighth <= 8; ++eighth) {
    layers::Generation generation;
    generation.capacity = std::max<int64_t>(1, model.context() * eighth / 8);
    if (meta.takes_cuda_forms()) generation.place = empty({1}, Dtype::i32, meta);  // as there
    model.next(empty({1, 1}, Dtype::i32, meta), generation);
    plan.decode_by_length.emplace_back(generation.capacity, generation.bytes());
  }
  plan.decode_bytes = plan.decode_by_length.back().second;
  return plan;
}

std::string smaller_batch(const Recipe& recipe, int ranks) {
  constexpr double kUsable = 0.95;  // the rest is the driver's
  const auto memory = static_cast<double>(memory_of(recipe.train.device));
  for (int64_t parts = 2; recipe.train.batch / parts > 0; parts *= 2) {
    const int64_t batch = recipe.train.batch / parts;
    if (batch * parts != recipe.train.batch) break;
    const int64_t accumulate = recipe.train.accumulate * parts;
    Recipe smaller =
        recipe_from_text(recipe.toml.to_text(), recipe.name,
                         {concat("train.batch=", batch), concat("train.accumulate=", accumulate),
                          concat("train.device=\"", recipe.train.device, "\"")});
    const auto peak = static_cast<double>(make_plan(smaller, ranks).peak);
    if (peak < kUsable * memory)
      return concat("train.batch = ", batch, " with train.accumulate = ", accumulate,
                    " would need ", bytes_text(peak), " of ", bytes_text(memory));
  }
  return "";
}

}  // namespace weft::train
