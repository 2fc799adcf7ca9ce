// train.safetensors: a run's checkpoints have twins for other programs.
#include "train/twin.h"

#include <filesystem>

#include "core/error.h"
#include "core/safetensors.h"
#include "tests/catch.h"
#include "tests/train/small_run.h"
#include "train/checkpoint.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;
namespace fs = std::filesystem;

namespace {

const std::string kRecipe = kSmallModel + R"([train]
device = "cpu"
steps = 4
batch = 2
log_every = 1
eval_every = 2
eval_batches = 1
checkpoint_every = 1
out = "run"
[sample]
tokens = 0
)";

const std::vector<std::string> kTwins = {"--set", "train.safetensors=true"};

Ran run_train(const Folder& f, const std::vector<std::string>& more = {}) {
  std::vector<std::string> words{"train", "recipe.toml"};
  words.insert(words.end(), more.begin(), more.end());
  return run_weft(f, words);
}

void trained(const Folder& f, std::vector<std::string> more = {}) {
  more.insert(more.end(), kTwins.begin(), kTwins.end());
  const Ran ran = run_train(f, more);
  INFO(ran.text);
  REQUIRE(ran.status == 0);
}

void check_twin(const std::string& checkpoint, const std::string& dtype = "F32") {
  INFO(checkpoint);
  const Hdf5Reader file(checkpoint);
  REQUIRE(fs::exists(twin_path(checkpoint)));
  const SafetensorsReader twin(twin_path(checkpoint));
  CHECK(twin.metadata().at("format") == "weft");
  CHECK(twin.metadata().at("step") == std::to_string(file.integer("", "step")));
  CHECK(twin.metadata().at("recipe") == file.text("", "recipe"));
  CHECK(twin.entries().size() == file.tensors("parameters").size());
  for (const SafeTensor& t : twin.entries()) {
    CHECK(t.dtype == dtype);
    CHECK(to_doubles(twin.read(t.name)) == to_doubles(file.tensor("parameters/" + t.name)));
  }
}

// Every checkpoint of the run, and best.h5, has its twin, and there is no other file.
void check_run(const Folder& f, size_t checkpoints) {
  const auto saved = checkpoints_of(f / "run");
  CHECK(saved.size() == checkpoints);
  for (const SavedStep& s : saved) check_twin(s.path);
  check_twin(f / "run/best.h5");
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(f / "run/checkpoints")) ++files;
  CHECK(files == 2 * checkpoints);
}

std::string last_hash(const Folder& f) {
  const std::string text = f.read("run/metrics.jsonl");
  return text.substr(text.rfind("\"hash\""), 30);
}

}  // namespace

TEST_CASE("twin: every checkpoint and best.h5 have one, and it goes when its checkpoint goes") {
  const Folder f;
  write_run(f, kRecipe);
  trained(f);
  check_run(f, 2);
  const std::string hash = last_hash(f);
  CHECK(run_train(f, {"--overwrite"}).status == 0);
  CHECK(last_hash(f) == hash);
  CHECK_FALSE(fs::exists(f / "run/best.safetensors"));
  for (const SavedStep& s : checkpoints_of(f / "run")) CHECK_FALSE(fs::exists(twin_path(s.path)));
  trained(f, {"--overwrite", "--set", "train.keep=9"});
  check_run(f, 4);
  trained(f, {"--overwrite", "--set", "train.dtype=f64"});
  check_twin(f / "run/best.h5", "F64");
}

TEST_CASE("twin: best.safetensors stays that of best.h5, also where a worse step follows") {
  const Folder f;
  write_run(f, kRecipe);
  trained(f, {"--set", "optimizer.lr=0", "--set", "train.keep=1"});  // no step after 2 is better
  CHECK(step_of_best(f / "run") == 2);
  check_run(f, 1);
}

TEST_CASE("twin: a run that has lost its twins goes on and makes them again") {
  const Folder f;
  write_run(f, kRecipe);
  trained(f, {"--set", "train.steps=2"});
  fs::remove(f / "run/best.safetensors");
  fs::remove(twin_path(checkpoint_path(f / "run", 2)));
  f.write("run/checkpoints/step-0000000002.safetensors.tmp-01234567-01234567", "killed");
  const Ran done = run_train(f, {"--resume", "--set", "train.steps=2", kTwins[0], kTwins[1]});
  CHECK(done.status == 0);
  check_twin(checkpoint_path(f / "run", 2));
  check_run(f, 2);
}

TEST_CASE(
    "twin: a run goes on with or without the key, and no best.safetensors is of another step") {
  const Folder f;
  write_run(f, kRecipe);
  const Ran whole = run_train(f, {"--set", "train.steps=4"});
  REQUIRE(whole.status == 0);
  const std::string hash = last_hash(f);
  fs::remove_all(f / "run");
  // lr of a step follows from the steps of the run: the same number, stopped by a kept checkpoint.
  trained(f, {"--set", "train.keep=9"});
  for (const int64_t step : {3, 4}) {
    fs::remove(checkpoint_path(f / "run", step));
    fs::remove(twin_path(checkpoint_path(f / "run", step)));
  }
  fs::remove(f / "run/best.h5");
  fs::create_hard_link(checkpoint_path(f / "run", 2), f / "run/best.h5");
  const Ran without = run_train(f, {"--resume"});
  INFO(without.text);
  CHECK(without.status == 0);
  CHECK(last_hash(f) == hash);
  CHECK(step_of_best(f / "run") == 4);
  CHECK_FALSE(fs::exists(f / "run/best.safetensors"));
  CHECK_FALSE(fs::exists(twin_path(checkpoint_path(f / "run", 4))));
  trained(f, {"--resume"});  // of a finished run: the newest and the best get theirs
  check_twin(checkpoint_path(f / "run", 4));
  check_twin(f / "run/best.h5");
}

TEST_CASE("twin: where one cannot be written, the checkpoint stands and the run says so") {
  const Folder f;
  write_run(f, kRecipe);
  fs::create_directories(f / "run/checkpoints/step-0000000004.safetensors");
  const Ran ran = run_train(f, kTwins);
  INFO(ran.text);
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("step-0000000004.safetensors: is no regular file"));
  CHECK(checkpoints_of(f / "run").back().step == 4);
  CHECK(fs::is_directory(f / "run/checkpoints/step-0000000004.safetensors"));
}
