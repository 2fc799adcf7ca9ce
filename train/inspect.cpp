// A dry run: the model is built and one training step is run on the meta device, where every
// allocation is counted and none is made.
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "autograd/tape.h"
#include "train/progress.h"
#include "train/source.h"
#include "train/step.h"
#include "train/verbs.h"

namespace weft::train {
namespace {

struct Plan {
  std::vector<std::pair<std::string, int64_t>> parameters;  // by part
  int64_t parameter_count = 0, active = 0;
  double flops_forward = 0;  // a token
  int64_t parameter_bytes = 0, gradient_bytes = 0, optimizer_bytes = 0, activation_bytes = 0;
  int64_t decode_bytes = 0, peak = 0;
  std::vector<Owned> owners;
  Shape batch;
};

int64_t owned_by(const std::vector<Owned>& owners, const std::string& name) {
  for (const Owned& o : owners)
    if (o.owner == name) return o.bytes;
  return 0;
}

Plan make_plan(Recipe& recipe) {
  const DataSettings data = read_data(recipe.toml.table("data"));
  layers::Model model(recipe.toml, vocabulary_of(data), recipe.train.dtype,
                      meta_of(recipe.train.device), recipe.train.seed);
  AdamW optimizer(recipe.optimizer, model.parameters());
  recipe.finish();

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
  const std::unique_ptr<Stepper> stepper = make_stepper(model, optimizer, recipe);
  stepper->begin(0, [&] { return batches.next(); });
  plan.peak = stepper->finish().peak_bytes;
  plan.owners = allocator(meta).stats().at_peak;
  plan.parameter_bytes = owned_by(plan.owners, "parameters");
  plan.gradient_bytes = owned_by(plan.owners, "gradients");
  plan.optimizer_bytes = owned_by(plan.owners, "optimizer");
  plan.activation_bytes =
      plan.peak - plan.parameter_bytes - plan.gradient_bytes - plan.optimizer_bytes;

  layers::Generation generation;
  generation.capacity = model.context();
  if (meta.takes_cuda_forms()) generation.place = empty({1}, Dtype::i32, meta);  // as it runs there
  model.next(empty({1, 1}, Dtype::i32, meta), generation);
  plan.decode_bytes = generation.bytes();
  return plan;
}

void print_json(const Recipe& recipe, const Plan& p) {
  nlohmann::ordered_json j;
  j["recipe"] = recipe.name;
  j["parameters"] = p.parameter_count;
  j["active_parameters"] = p.active;
  for (const auto& [part, count] : p.parameters) j["parameters_by_part"][part] = count;
  j["forward_flops_per_token"] = p.flops_forward;
  j["training_flops_per_token"] = 3 * p.flops_forward;
  j["parameter_bytes"] = p.parameter_bytes;
  j["gradient_bytes"] = p.gradient_bytes;
  j["optimizer_bytes"] = p.optimizer_bytes;
  j["activation_bytes"] = p.activation_bytes;
  j["decode_state_bytes"] = p.decode_bytes;
  j["peak_bytes"] = p.peak;
  for (const Owned& o : p.owners) j["peak_by_owner"][o.owner] = o.bytes;
  std::printf("%s\n", j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void print_text(const Recipe& recipe, const Plan& p) {
  std::printf("%s: a step on tokens [%ld, %ld], %ld micro-batches\n\n", recipe.name.c_str(),
              static_cast<long>(p.batch[0]), static_cast<long>(p.batch[1]),
              static_cast<long>(recipe.train.accumulate));
  std::printf("%-28s %12s\n", "parameters", count_text(double(p.parameter_count)).c_str());
  for (const auto& [part, count] : p.parameters)
    std::printf("  %-26s %12ld\n", part.c_str(), static_cast<long>(count));
  if (p.active != p.parameter_count)
    std::printf("  %-26s %12ld\n", "met by a token", static_cast<long>(p.active));
  std::printf("%-28s %12s\n", "FLOPs a token, forward", count_text(p.flops_forward).c_str());
  std::printf("%-28s %12s\n\n", "FLOPs a token, training", count_text(3 * p.flops_forward).c_str());
  const auto row = [](const char* name, int64_t bytes) {
    std::printf("%-28s %12s %16ld B\n", name, bytes_text(double(bytes)).c_str(),
                static_cast<long>(bytes));
  };
  row("parameters", p.parameter_bytes);
  row("gradients", p.gradient_bytes);
  row("optimizer", p.optimizer_bytes);
  row("activations at the peak", p.activation_bytes);
  row("peak of a training step", p.peak);
  row("state of a generation", p.decode_bytes);
  std::printf("\nheld at the peak\n");
  for (const Owned& o : p.owners) row(("  " + o.owner).c_str(), o.bytes);
}

}  // namespace

std::string smaller_batch(const Recipe& recipe) {
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
    const auto peak = static_cast<double>(make_plan(smaller).peak);
    if (peak < kUsable * memory)
      return concat("train.batch = ", batch, " with train.accumulate = ", accumulate,
                    " would need ", bytes_text(peak), " of ", bytes_text(memory));
  }
  return "";
}

int run_inspect(const InspectArguments& a) {
  Recipe recipe = read_recipe(a.recipe, a.set, a.device, /*planned=*/true);
  const Plan plan = make_plan(recipe);
  if (a.json)
    print_json(recipe, plan);
  else
    print_text(recipe, plan);
  return 0;
}

}  // namespace weft::train
