// One step of training, with batches and gradients as the test wants them.
#include "train/step.h"

#include <cmath>
#include <functional>
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

TEST_CASE("step: the hash of the parameters hangs on each number, each name and their order") {
  const auto hash = [](const std::function<void(layers::Model&)>& change) {
    const Recipe recipe = recipe_from_text(
        "[model]\nwidth = 8\nlayers = 1\npattern = [\"attention\"]\ncontext = 8\n"
        "[attention]\nheads = 2\n",
        "recipe.toml");
    layers::Model model(recipe.toml, 11, Dtype::f32, kCpu, 1);
    change(model);
    return parameter_hash(model.parameters());
  };
  const auto nothing = [](layers::Model&) {};
  const uint64_t before = hash(nothing);
  CHECK(hash(nothing) == before);
  const size_t count = [&] {
    size_t n = 0;
    hash([&](layers::Model& m) { n = m.parameters().size(); });
    return n;
  }();
  for (size_t i = 0; i < count; ++i)
    for (const bool last : {false, true}) {
      INFO("parameter " << i);
      CHECK(hash([&](layers::Model& m) {
              const Tensor& p = m.parameters()[i].master;
              float& x = p.data<float>()[last ? p.numel() - 1 : 0];
              x = std::nextafter(x, 2.0f);
            }) != before);
      CHECK(hash([&](layers::Model& m) { m.parameters()[i].name += "x"; }) != before);
    }
  CHECK(hash([](layers::Model& m) { std::swap(m.parameters()[0], m.parameters()[1]); }) != before);
}

TEST_CASE("step: a loss that is not finite is told as what it is, before anything moves") {
  for (const float odd :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Recipe recipe = recipe_from_text(
        "[model]\nwidth = 8\nlayers = 1\npattern = [\"attention\"]\ncontext = 8\n"
        "[attention]\nheads = 2\n[train]\nsteps = 1\n",
        "recipe.toml");
    const layers::Model model(recipe.toml, 11, Dtype::f32, kCpu, 1);
    AdamW optimizer(recipe.optimizer, model.parameters());
    model.parameters().back().master.data<float>()[0] = odd;
    const auto stepper = make_stepper(model, optimizer, recipe);
    const uint64_t before = parameter_hash(model.parameters());
    CHECK_THROWS_WITH(
        stepper->begin(6,
                       [&] {
                         return layers::Batch{
                             .tokens = tensor_of(std::vector<int32_t>(8, 1)).reshape({1, 8}),
                             .targets = tensor_of(std::vector<int32_t>(8, 2)).reshape({1, 8})};
                       }),
        ContainsSubstring("step 7: the loss is") && ContainsSubstring("before this step"));
    CHECK(parameter_hash(model.parameters()) == before);
  }
}
