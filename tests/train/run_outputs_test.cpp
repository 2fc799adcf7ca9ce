// What a run leaves behind and prints: checkpoints, metrics and samples, by the keys that ask for
// them.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "core/error.h"
#include "core/hash.h"
#include "tests/catch.h"
#include "tests/train/small_run.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/step.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;

namespace {

Ran run(const Folder& f, const std::vector<std::string>& set, bool resume = false) {
  write_run(f, kSmallModel + R"([train]
device = "cpu"
steps = 5
batch = 2
log_every = 1
seed = 3
out = "run"
[sample]
tokens = 0
)");
  std::vector<std::string> words{"train", "recipe.toml", resume ? "--resume" : "--overwrite"};
  for (const std::string& one : set) words.insert(words.end(), {"--set", one});
  const Ran ran = run_weft(f, words);
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  return ran;
}

std::vector<int64_t> saved(const Folder& f) {
  std::vector<int64_t> steps;
  for (const SavedStep& s : checkpoints_of(f / "run")) steps.push_back(s.step);
  return steps;
}

std::vector<nlohmann::json> metrics(const Folder& f, const std::string& key) {
  std::vector<nlohmann::json> all;
  std::istringstream lines(f.read("run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);)
    if (const auto j = nlohmann::json::parse(line); j.contains(key)) all.push_back(j);
  return all;
}

std::vector<int64_t> steps_with(const Folder& f, const std::string& key) {
  std::vector<int64_t> steps;
  for (const auto& j : metrics(f, key)) steps.push_back(j["step"]);
  return steps;
}

using Steps = std::vector<int64_t>;

struct Saved {
  Recipe recipe;
  layers::Model model;
  RunState state;
};

Saved open(const Folder& f, int64_t step) {
  const Hdf5Reader file = open_checkpoint(checkpoint_path(f / "run", step));
  RunState state = read_state(file);
  Recipe r = recipe_from_text(state.recipe, "recipe");
  layers::Model model(r.toml, 256, r.train.dtype, kCpu, 1);
  load_parameters(file, model.parameters());
  r.toml.set("data.source", f / "text.txt");
  return {std::move(r), std::move(model), std::move(state)};
}

}  // namespace

TEST_CASE("run outputs: the last step is saved, whether a checkpoint is due there or not") {
  const Folder f;
  const std::string none = "data.held_out=0";  // no evaluation that would save as well
  run(f, {none, "train.checkpoint_every=0"});
  CHECK(saved(f) == Steps{5});
  run(f, {none});
  CHECK(saved(f) == Steps{5});
  run(f, {none, "train.checkpoint_every=2", "train.keep=9"});
  CHECK(saved(f) == Steps{2, 4, 5});
  run(f, {none, "train.checkpoint_every=5", "train.keep=9"});
  CHECK(saved(f) == Steps{5});
  run(f, {none, "train.checkpoint_every=100"});
  CHECK(saved(f) == Steps{5});
  CHECK_FALSE(has_best(f / "run"));
}

TEST_CASE("run outputs: the newest train.keep checkpoints stay, and the best as best.h5") {
  const Folder f;
  const std::string none = "data.held_out=0", each = "train.checkpoint_every=1";
  run(f, {none, each});
  CHECK(saved(f) == Steps{4, 5});
  run(f, {none, each, "train.keep=1"});
  CHECK(saved(f) == Steps{5});
  run(f, {none, each, "train.keep=3"});
  CHECK(saved(f) == Steps{3, 4, 5});
  run(f, {none, each, "train.keep=5"});
  CHECK(saved(f) == Steps{1, 2, 3, 4, 5});
  // Nothing moves, so that no evaluation is better than the first.
  run(f, {each, "train.keep=2", "train.eval_every=2", "optimizer.lr=0"});
  CHECK(saved(f) == Steps{4, 5});
  CHECK(step_of_best(f / "run") == 2);
}

TEST_CASE("run outputs: metrics have a line for the first, the last and each log_every-th step") {
  const Folder f;
  run(f, {"train.log_every=2"});
  CHECK(steps_with(f, "loss") == Steps{1, 2, 4, 5});
  run(f, {"train.log_every=3", "train.steps=6"});
  CHECK(steps_with(f, "loss") == Steps{1, 3, 6});
  run(f, {"train.log_every=100"});
  CHECK(steps_with(f, "loss") == Steps{1, 5});
}

TEST_CASE("run outputs: a line of metrics has the numbers of its step") {
  const Folder f;
  run(f, {"train.accumulate=3", "optimizer.lr=0.5", "schedule.type=constant", "schedule.warmup=4",
          "train.checkpoint_every=1", "train.keep=9"});
  const auto lines = metrics(f, "loss");
  REQUIRE(lines.size() == 5);
  const double rates[] = {0.125, 0.25, 0.375, 0.5, 0.5};
  for (size_t i = 0; i < 5; ++i) {
    const auto step = static_cast<int64_t>(i) + 1;
    INFO("step " << step);
    CHECK(lines[i]["lr"].get<double>() == Approx(rates[i]));
    CHECK(lines[i]["tokens"].get<double>() == static_cast<double>(step) * 3 * 2 * 16);
    CHECK(lines[i]["norm"].get<double>() > 0);
    CHECK(lines[i]["peak_bytes"].get<double>() > 0);
    const double rate = lines[i]["tokens_per_second"].get<double>();
    CHECK(rate > 0);
    CHECK(lines[i]["flops_per_second"] == Approx(3 * open(f, step).model.flops_per_token() * rate));
    const Saved s = open(f, step);
    CHECK(lines[i]["hash"] == to_hex(parameter_hash(s.model.parameters())));
    CHECK(s.state.step == step);
    CHECK(s.state.tokens == lines[i]["tokens"].get<double>());
    CHECK(s.state.seed == 3);
    CHECK(s.state.data.at("step") == 3 * step);
  }
}

TEST_CASE("run outputs: a run that goes on counts its tokens on") {
  const Folder f;
  run(f, {"train.steps=2"});
  run(f, {"train.steps=4"}, /*resume=*/true);
  const auto lines = metrics(f, "loss");
  REQUIRE(lines.size() == 4);
  for (size_t i = 0; i < 4; ++i)
    CHECK(lines[i]["tokens"].get<double>() == static_cast<double>(i + 1) * 2 * 16);
}

TEST_CASE("run outputs: evaluations come each eval_every-th step and at the end, of eval_batches") {
  const Folder f;
  run(f, {"train.eval_every=2", "train.checkpoint_every=1", "train.keep=9"});
  CHECK(steps_with(f, "eval_loss") == Steps{2, 4, 5});
  run(f, {"train.eval_every=5"});
  CHECK(steps_with(f, "eval_loss") == Steps{5});
  run(f, {"data.held_out=0", "train.eval_every=1"});
  CHECK(steps_with(f, "eval_loss").empty());
  for (const int64_t batches : {1, 3}) {
    run(f, {concat("train.eval_batches=", batches)});
    REQUIRE(steps_with(f, "eval_loss") == Steps{5});
    const Saved s = open(f, 5);
    Source source(read_data(s.recipe.toml.table("data")), s.recipe, 16);
    const Evaluation e = evaluate(s.model, *source.held_out(), batches, kCpu);
    const auto line = metrics(f, "eval_loss")[0];
    CHECK(line["eval_loss"].get<double>() == e.loss);
    CHECK(line["perplexity"].get<double>() == e.perplexity);
    CHECK(line["bits_per_byte"].get<double>() == e.bits_per_byte);
    CHECK_FALSE(line.contains("accuracy"));
    CHECK(s.state.best_loss == e.loss);
    CHECK(s.state.best_step == 5);
  }
}

TEST_CASE("run outputs: samples come each sample.every-th step and once at the end") {
  const Folder f;
  const auto steps = [&](const std::vector<std::string>& set) {
    const std::string text = run(f, set).text, key = "--- sample at step ";
    Steps all;
    for (size_t at = 0; (at = text.find(key, at)) != std::string::npos; ++at)
      all.push_back(std::stoll(text.substr(at + key.size())));
    return all;
  };
  CHECK(steps({"sample.tokens=3"}) == Steps{5});
  CHECK(steps({"sample.tokens=3", "sample.every=2"}) == Steps{2, 4, 5});
  CHECK(steps({"sample.tokens=3", "sample.every=5"}) == Steps{5});
  CHECK(steps({"sample.tokens=0", "sample.every=2"}).empty());
}

TEST_CASE("run outputs: a sample is drawn as [sample] says, with a seed of its step") {
  const Folder f;
  const auto bytes = data::byte_tokenizer();
  std::set<std::string> seen;
  const auto check = [&](std::vector<std::string> set, const std::string& prompt, int64_t tokens,
                         SamplingSettings s) {
    INFO(set.back());
    set.insert(set.end(), {"sample.every=3", "train.checkpoint_every=3", "data.held_out=0"});
    const std::string text = run(f, set).text;
    for (const int64_t step : {3, 5}) {
      s.seed = static_cast<uint64_t>(3 + step);
      s.tokens = 256;
      const std::string sample =
          bytes->decode(generate(open(f, step).model, bytes->encode(prompt), tokens, s).tokens);
      CHECK((text.find(concat("--- sample at step ", step, " ---\n", prompt, sample, "\n---\n")) !=
             std::string::npos));
      if (step == 5) seen.insert(sample);
    }
  };
  const std::string p = "sample.prompt=ab", t = "sample.tokens=12";
  check({p, t}, "ab", 12, {.temperature = 0.8});
  check({p, t, "sample.temperature=0"}, "ab", 12, {.temperature = 0});
  check({p, t, "sample.temperature=50"}, "ab", 12, {.temperature = 50});
  check({p, t, "sample.temperature=50", "sample.top_k=3"}, "ab", 12,
        {.temperature = 50, .top_k = 3});
  check({p, t, "sample.temperature=50", "sample.top_p=0.1"}, "ab", 12,
        {.temperature = 50, .top_p = 0.1});
  check({p, "sample.tokens=11"}, "ab", 11, {});
  check({"sample.tokens=12"}, "\n", 12, {});
  check({p, "sample.tokens=200"}, "ab", 14, {});  // as far as the context goes
  CHECK(seen.size() == 8);
}

TEST_CASE("run outputs: the folder's recipe has the overrides, and gives the same run again") {
  const Folder f;
  run(f, {"optimizer.lr=0.02", "train.steps=4"});
  const std::string recipe = f.read("run/recipe.toml"), hash = metrics(f, "hash").back()["hash"];
  CHECK_THAT(recipe, ContainsSubstring("lr = 0.02") && ContainsSubstring("steps = 4"));
  f.write("again.toml", recipe);
  REQUIRE(run_weft(f, {"train", "again.toml", "--set", "train.out=again"}).status == 0);
  std::string last;
  std::istringstream lines(f.read("again/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);)
    if (line.find("\"hash\"") != std::string::npos) last = line;
  CHECK_THAT(last, ContainsSubstring(hash));
  // Another seed, another run.
  run(f, {"optimizer.lr=0.02", "train.steps=4", "train.seed=4"});
  CHECK(metrics(f, "hash").back()["hash"] != hash);
}

TEST_CASE("run outputs: a task's evaluations have an accuracy, and no bits per byte") {
  const Folder f;
  f.write("task.toml",
          "[model]\nwidth = 16\nlayers = 1\npattern = [\"attention\"]\ncontext = 16\n"
          "[attention]\nheads = 2\n[data]\ntask = \"mqar\"\nvocabulary = 16\npairs = [1, 2]\n"
          "test_examples = 12\n[train]\ndevice = \"cpu\"\nsteps = 3\nbatch = 4\nout = \"run\"\n");
  const Ran ran = run_weft(f, {"train", "task.toml"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  CHECK_THAT(ran.text, !ContainsSubstring("--- sample") && ContainsSubstring("accuracy"));
  const auto lines = metrics(f, "eval_loss");
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].contains("accuracy"));
  CHECK_FALSE(lines[0].contains("bits_per_byte"));
  const Ran text = run_weft(f, {"generate", "run", "--prompt", "a"});
  CHECK(text.status == 2);
  CHECK_THAT(text.text, ContainsSubstring("trained on a task"));
  CHECK(run_weft(f, {"eval", "run", "--data", "task.toml"}).status == 2);
  CHECK_THAT(run_weft(f, {"eval", "run"}).text, ContainsSubstring("accuracy"));
}

TEST_CASE("run outputs: a step's line has the loss, the norm and the rate that metrics have") {
  const Folder f;
  const std::string text = run(f, {"optimizer.lr=0.02"}).text;
  const auto lines = metrics(f, "loss");
  REQUIRE(lines.size() == 5);
  for (int64_t step = 1; step <= 5; ++step) {
    const auto& j = lines[static_cast<size_t>(step) - 1];
    // A cosine over five steps from 0.02 to a tenth of it.
    const double factor = 0.1 + 0.45 * (1 + std::cos(3.141592653589793 * double(step - 1) / 5));
    CHECK(j["lr"].get<double>() == Approx(0.02 * factor).epsilon(1e-12));
    char line[128];
    std::snprintf(line, sizeof line, "step %d/5 | loss %.4f | norm %.2f | lr %.2e | ",
                  static_cast<int>(step), j["loss"].get<double>(), j["norm"].get<double>(),
                  j["lr"].get<double>());
    CHECK_THAT(text, ContainsSubstring(line));
  }
  CHECK(text.find(" tok/s | 0s left") != std::string::npos);
  CHECK_THAT(text, ContainsSubstring("context 16, text.txt: ") &&
                       ContainsSubstring("; cpu f32, ") && ContainsSubstring(", seed 3\n") &&
                       ContainsSubstring("run folder: run\n"));
  CHECK_THAT(run(f, {"train.steps=7", "optimizer.lr=0.02"}, /*resume=*/true).text,
             ContainsSubstring("run folder: run, going on from step 5") &&
                 ContainsSubstring("step 7/7 | "));
}

TEST_CASE("run outputs: what of a folder is no text is told where it is read") {
  const Folder f;
  std::filesystem::create_directory(f / "books");
  f.write("books/a.txt", small_text());
  f.write("books/b.bin", std::string("x\0y", 3));
  const std::string said = "left out: 1 binary (books/b.bin)";
  const Ran data = run_weft(f, {"data", "books", "--out", "t.h5"});
  CHECK(data.status == 0);
  CHECK_THAT(data.text, ContainsSubstring(said));
  CHECK_THAT(run(f, {"data.source=books"}).text, ContainsSubstring(said));
  CHECK_THAT(run_weft(f, {"eval", "run", "--data", "books"}).text, ContainsSubstring(said));
}
