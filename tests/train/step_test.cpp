// One step of training, with batches and gradients as the test wants them.
#include "train/step.h"

#include <limits>

#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

TEST_CASE("step: of several micro-batches the message says that another may have made it") {
  Recipe recipe = recipe_from_text(
      "[model]\nwidth = 8\nlayers = 1\npattern = [\"attention\"]\ncontext = 8\n"
      "[attention]\nheads = 2\n[train]\nsteps = 1\naccumulate = 3\n",
      "recipe.toml");
  const layers::Model model(recipe.toml, 11, Dtype::f32, kCpu, 1);
  const std::vector<layers::Parameter>& parameters = model.parameters();
  AdamW optimizer(recipe.optimizer, parameters);
  const std::unique_ptr<Stepper> stepper = make_stepper(model, optimizer, recipe);
  int made = 0;
  const auto next = [&] {
    if (++made == 2)  // what the first micro-batch left behind
      parameters.front().var.grad().data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
    return layers::Batch{.tokens = tensor_of(std::vector<int32_t>(8, made)).reshape({1, 8}),
                         .targets = tensor_of(std::vector<int32_t>(8, 1)).reshape({1, 8})};
  };
  CHECK_THROWS_WITH(stepper->begin(0, next),
                    ContainsSubstring("gradient norm is not a number") &&
                        ContainsSubstring("one of 3 micro-batches again shows nothing"));
}
