// `weft inspect`: prints what a recipe needs.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/parallel.h"
#include "core/units.h"
#include "train/planner.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

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
  if (p.teacher_bytes > 0) j["teacher_bytes"] = p.teacher_bytes;
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
  if (p.teacher_bytes > 0) row("teacher", p.teacher_bytes);
  row("activations at the peak", p.activation_bytes);
  row("peak of a training step", p.peak);
  row("state of a generation", p.decode_bytes);
  std::printf("\nheld at the peak\n");
  for (const Owned& o : p.owners) row(("  " + o.owner).c_str(), o.bytes);
}

}  // namespace

int run_inspect(const InspectArguments& a) {
  Recipe recipe = read_recipe(a.recipe, a.set, a.device, /*planned=*/true);
  if (a.ranks > 1) omp_set_num_threads(threads_of_rank(static_cast<int>(a.ranks)));  // as they have
  const Plan plan = make_plan(recipe, static_cast<int>(a.ranks));
  if (a.json)
    print_json(recipe, plan);
  else
    print_text(recipe, plan);
  return 0;
}

}  // namespace weft::train
