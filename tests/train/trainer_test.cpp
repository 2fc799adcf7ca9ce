// What stands beside a run's steps: saves, evaluations and samples.
#include "train/trainer.h"

#include "core/error.h"
#include "tests/catch.h"
#include "tests/train/running.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

const std::string kRecipe = kSmallModel + R"([train]
steps = 6
batch = 2
log_every = 1
out = "run"
[sample]
tokens = 12
)";

void prepare(const Folder& f, const std::string& more = "") { write_run(f, kRecipe + more); }

Ran trained(const Folder& f, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"train", "recipe.toml"});
  return run_weft(f, more);
}

size_t count(const std::string& text, const std::string& words) {
  size_t n = 0;
  for (size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("trainer: checkpoints come by steps where these are counted, else by time") {
  RunSettings s;
  CHECK_FALSE(save_is_due(s, 100, 590));
  CHECK(save_is_due(s, 101, 601));
  s.checkpoint_every = 10;
  CHECK(save_is_due(s, 20, 0));
  CHECK_FALSE(save_is_due(s, 21, 1e6));
  s.checkpoint_every = 0;
  CHECK_FALSE(save_is_due(s, 20, 1e6));
}

TEST_CASE("trainer: a model with more entries than the vocabulary has tokens draws only tokens") {
  const Folder f;
  prepare(f);
  REQUIRE(run_weft(f, {"data", "text.txt", "--out", "text.h5"}).status == 0);
  std::string recipe = kRecipe;
  recipe.replace(recipe.find("source = \"text.txt\""), 19,
                 "dataset = \"text.h5\"\nvocabulary = 4000");
  f.write("recipe.toml", recipe);
  // At this temperature nearly every entry would be one that stands for nothing.
  const Ran ran = trained(f, {"--set", "sample.every=2", "--set", "sample.temperature=100"});
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK(count(ran.text, "--- sample at step") == 3);
  CHECK_THAT(ran.text, !ContainsSubstring("outside"));
  for (const std::vector<std::string>& more : {std::vector<std::string>{"--temperature", "0"},
                                               {"--temperature", "100", "--top-k", "3000"},
                                               {"--temperature", "100", "--top-p", "0.99"}}) {
    std::vector<std::string> words{"generate", "run", "--prompt", "word", "--tokens", "12"};
    words.insert(words.end(), more.begin(), more.end());
    const Ran text = run_weft(f, words);
    INFO(text.text);
    CHECK(text.status == 0);
  }
}

TEST_CASE("trainer: a checkpoint that is due comes before the sample") {
  const Folder f;
  prepare(f);
  Running run(
      f, {"train", "recipe.toml", "--set", "train.steps=100000", "--set",
          "train.checkpoint_every=2", "--set", "sample.every=2", "--set", "train.keep=1000000"});
  REQUIRE(run.says("--- sample at step 2 "));
  CHECK(std::filesystem::exists(f / "run/checkpoints/step-0000000002.h5"));
}

TEST_CASE("trainer: a run stopped after its last save makes up for the evaluation") {
  const Folder f;
  prepare(f);
  REQUIRE(trained(f, {"--set", "train.eval_every=3"}).status == 0);
  const std::string whole = f.read("run/metrics.jsonl");
  REQUIRE(count(whole, "eval_loss") == 2);
  // As a kill before the last evaluation leaves it.
  f.write("run/metrics.jsonl", whole.substr(0, whole.rfind("{\"step\":6,\"eval_loss\"")));
  const Ran ran = trained(f, {"--set", "train.eval_every=3", "--resume"});
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK(f.read("run/metrics.jsonl") == whole);
  CHECK_THAT(trained(f, {"--set", "train.eval_every=3", "--resume"}).text,
             ContainsSubstring("the run is finished"));
  CHECK(f.read("run/metrics.jsonl") == whole);
}

TEST_CASE("trainer: a text of which nothing can be learned is refused before the first step") {
  const Folder f;
  prepare(f);
  std::string lines;
  for (int i = 0; i < 900; ++i) lines += "x\n";
  f.write("text.txt", lines);
  const std::vector<std::string> packed{"--set", "data.packed=true", "--set", "data.document=line"};
  const Ran ran = trained(f, packed);
  INFO(ran.text);
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("text.txt") && ContainsSubstring("two tokens"));
  CHECK_FALSE(std::filesystem::exists(f / "run"));

  // With documents to learn from, but none held out: told, and no evaluation.
  std::string good;
  for (int i = 0; i < 900; ++i) good += "some words\n";
  f.write("text.txt", good + lines);
  auto some = packed;
  some.insert(some.end(), {"--set", "data.held_out=0.02"});
  const Ran told = trained(f, some);
  INFO(told.text);
  CHECK(told.status == 0);
  CHECK_THAT(told.text, ContainsSubstring("never evaluated"));
  CHECK(count(f.read("run/metrics.jsonl"), "eval_loss") == 0);
}

TEST_CASE("trainer: a loss of exactly 0 has an accuracy, or bits per byte") {
  CHECK_THAT((Evaluation{.loss = 0, .accuracy = 1}.text()), ContainsSubstring("accuracy 1.0000"));
  const std::string text = Evaluation{.loss = 0, .bits_per_byte = 0}.text();
  CHECK_THAT(text, ContainsSubstring("0.0000 bits per byte") && !ContainsSubstring("accuracy"));
}

TEST_CASE("trainer: an update that is not finite ends the run, and nothing of it is saved") {
  const Folder f;
  prepare(f);
  const std::vector<std::string> every{"--set", "train.checkpoint_every=1", "--set",
                                       "train.steps=40"};
  const auto fails = [&](std::vector<std::string> more) {
    more.insert(more.end(), every.begin(), every.end());
    const Ran ran = trained(f, more);
    INFO(ran.text);
    CHECK(ran.status == 2);
    CHECK_THAT(ran.text, ContainsSubstring("step "));
    return ran.text;
  };
  // A byte that is not in the text has no gradient where the head has its own: 0 / 0.
  const std::string text =
      fails({"--set", "optimizer.eps=0", "--set", "model.tied_embeddings=false"});
  CHECK_THAT(text, ContainsSubstring("step 1: after the update the parameter embedding.weight is "
                                     "not a number") &&
                       ContainsSubstring("eps = 0") &&
                       ContainsSubstring("No checkpoint was saved"));
  CHECK_FALSE(std::filesystem::exists(f / "run/checkpoints/step-0000000001.h5"));

  fails({"--overwrite", "--set", "optimizer.lr=1000", "--set", "optimizer.weight_decay=1000"});
  size_t saved = 0;
  for (const auto& entry : std::filesystem::directory_iterator(f / "run/checkpoints")) {
    Recipe recipe = recipe_from_text(kRecipe, "recipe.toml");
    layers::Model model(recipe.toml, 256, Dtype::f32, kCpu, 1);
    const AdamW optimizer(recipe.optimizer, model.parameters());
    load_parameters(open_checkpoint(entry.path().string()), model.parameters());
    load_optimizer(open_checkpoint(entry.path().string()), optimizer);
    CHECK(optimizer.not_finite().empty());
    ++saved;
  }
  CHECK(saved > 0);
}

TEST_CASE("trainer: a state that is not finite is not saved") {
  const Folder f;
  Recipe recipe = recipe_from_text(kRecipe, "recipe.toml");
  const layers::Model model(recipe.toml, 11, Dtype::f32, kCpu, 1);
  AdamW optimizer(recipe.optimizer, model.parameters());
  const RunState state;
  save_checkpoint(f / "good.h5", state, optimizer);
  CHECK(optimizer.not_finite().empty());
  optimizer.moments()[1].v.data<float>()[0] = std::numeric_limits<float>::infinity();
  CHECK_THAT(optimizer.not_finite(),
             ContainsSubstring("second moment of") && ContainsSubstring("infinite in 1 of its"));
  CHECK_THROWS_WITH(save_checkpoint(f / "bad.h5", state, optimizer),
                    ContainsSubstring("not finite"));
  CHECK_FALSE(std::filesystem::exists(f / "bad.h5"));
}
