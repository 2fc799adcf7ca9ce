// A checkpoint gives back what was saved, and takes nothing that is of another model.
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "tests/catch.h"
#include "tests/folder.h"
#include "train/checkpoint.h"

using namespace weft;
using namespace weft::train;
using weft::tests::Folder;

namespace {

struct Made {
  Recipe recipe;
  layers::Model model;
  AdamW optimizer;

  explicit Made(const std::string& more = "", uint64_t seed = 1)
      : recipe(recipe_from_text("[model]\nwidth = 8\nlayers = 1\npattern = [\"attention\"]\n"
                                "context = 8\n" +
                                    more + "[attention]\nheads = 2\n",
                                "r.toml")),
        model(recipe.toml, 11, Dtype::f32, kCpu, seed),
        optimizer(recipe.optimizer, model.parameters()) {}

  // Each number of each tensor another one.
  void fill(float from) {
    for (size_t i = 0; i < model.parameters().size(); ++i)
      for (const Tensor& t :
           {model.parameters()[i].master, optimizer.moments()[i].m, optimizer.moments()[i].v})
        for (int64_t j = 0; j < t.numel(); ++j) t.data<float>()[j] = from++;
  }
  std::vector<std::vector<double>> numbers() const {
    std::vector<std::vector<double>> all;
    for (size_t i = 0; i < model.parameters().size(); ++i)
      for (const Tensor& t :
           {model.parameters()[i].master, optimizer.moments()[i].m, optimizer.moments()[i].v})
        all.push_back(to_doubles(t));
    return all;
  }
};

RunState some_state() {
  return {.step = 17,
          .tokens = 1234567,
          .best_loss = 1.25,
          .best_step = 9,
          .data = {{"step", 34}, {"fingerprint", -5}},
          .seed = 77,
          .recipe = "[model]\nwidth = 8\n",
          .recipe_name = "mine",
          .tokenizer = std::string("a\0b\xff", 4)};
}

}  // namespace

TEST_CASE("state: every number and text of a checkpoint comes back as it was saved") {
  const Folder f;
  Made one, other("", 2);
  one.fill(1);
  const RunState s = some_state();
  save_checkpoint(f / "a.h5", s, one.optimizer);
  const Hdf5Reader file = open_checkpoint(f / "a.h5");
  const RunState back = read_state(file);
  CHECK(back.step == 17);
  CHECK(back.tokens == 1234567);
  CHECK(back.best_loss == 1.25);
  CHECK(back.best_step == 9);
  CHECK(back.data == s.data);
  CHECK(back.seed == 77);
  CHECK(back.recipe == s.recipe);
  CHECK(back.recipe_name == "mine");
  CHECK(back.tokenizer == s.tokenizer);
  load_parameters(file, other.model.parameters());
  load_optimizer(file, other.optimizer);
  CHECK(other.numbers() == one.numbers());
  CHECK(file.tensors("parameters").size() == one.model.parameters().size());
  CHECK(file.tensors("optimizer").size() == 2 * one.model.parameters().size());
}

TEST_CASE("state: before the first evaluation the best loss is infinite, of no step") {
  const Folder f;
  const Made one;
  RunState s;
  s.best_loss = std::numeric_limits<double>::infinity();
  save_checkpoint(f / "a.h5", s, one.optimizer);
  const RunState back = read_state(open_checkpoint(f / "a.h5"));
  CHECK(back.best_loss == std::numeric_limits<double>::infinity());
  CHECK(back.best_step == -1);
  CHECK(back.tokenizer.empty());
  CHECK(back.data.empty());
}

TEST_CASE("state: a tensor that is missing, too much or of another shape is named") {
  const Folder f;
  const Made one, wider("[mlp]\nwidth = 9\n"), learned("positions = \"learned\"\n");
  save_checkpoint(f / "a.h5", {}, one.optimizer);
  save_checkpoint(f / "more.h5", {}, learned.optimizer);
  const auto load = [&](const std::string& path, const Made& into) {
    std::vector<layers::Parameter> parameters = into.model.parameters();
    load_parameters(open_checkpoint(f / path), parameters);
  };
  CHECK_THROWS_WITH(load("a.h5", wider), ContainsSubstring("has shape") &&
                                             ContainsSubstring("the recipe's model expects"));
  CHECK_THROWS_WITH(load("a.h5", learned),
                    ContainsSubstring("position") && ContainsSubstring("is missing"));
  CHECK_THROWS_WITH(load("more.h5", one), ContainsSubstring("position") &&
                                              ContainsSubstring("is not in the recipe's model"));
  CHECK_THROWS_WITH(load_optimizer(open_checkpoint(f / "more.h5"), one.optimizer),
                    ContainsSubstring("is not in the recipe's model"));
  Hdf5Writer(f / "no.h5").commit();
  CHECK_THROWS_WITH(open_checkpoint(f / "no.h5"), ContainsSubstring("not a checkpoint"));
}

TEST_CASE("state: the best checkpoint is the one of that step, that best step and that loss") {
  const Folder f;
  const Made one;
  const auto best = [&](int64_t step, int64_t best_step, double loss) {
    save_checkpoint(f / "best.h5", {.step = step, .best_loss = loss, .best_step = best_step},
                    one.optimizer);
    return is_best(f / "best.h5", 6, 1.5);
  };
  CHECK(best(6, 6, 1.5));
  CHECK_FALSE(best(7, 6, 1.5));
  CHECK_FALSE(best(6, 4, 1.5));
  CHECK_FALSE(best(6, 6, 1.25));
  CHECK_FALSE(is_best(f / "none.h5", 6, 1.5));
  best(5, 5, 2);
  CHECK(step_of_best(f.path()) == 5);
  f.write("best.h5", "no checkpoint");
  CHECK(step_of_best(f.path()) == -1);
  std::filesystem::remove(f / "best.h5");
  CHECK(step_of_best(f.path()) == -1);
}

TEST_CASE("state: nothing that is not finite is saved, whichever tensor holds it") {
  const Folder f;
  for (int which = 0; which < 3; ++which)
    for (const float odd :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      const Made one;
      const AdamW::Moments& m = one.optimizer.moments()[0];
      const Tensor t = which == 0 ? one.model.parameters()[0].master : which == 1 ? m.m : m.v;
      t.data<float>()[0] = odd;  // the first of many
      CHECK_THROWS_WITH(save_checkpoint(f / "a.h5", {}, one.optimizer),
                        ContainsSubstring("not finite"));
      CHECK_FALSE(std::filesystem::exists(f / "a.h5"));
      CHECK_FALSE(one.optimizer.not_finite().empty());
    }
}
