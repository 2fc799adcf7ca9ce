// Killed at random moments and resumed, a run ends in the same bits as one that was never stopped.
#include <regex>

#include "core/error.h"
#include "core/random.h"
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;

namespace {

// A tiny hybrid that saves every other step, evaluates, and is done in about two seconds.
constexpr const char* kRecipe = R"(
[model]
width = 16
layers = 3
pattern = ["gated_delta", "window", "gated_linear"]
context = 32
[mlp]
width = 32
[gated_delta]
heads = 2
key_width = 8
value_width = 8
[window]
type = "attention"
heads = 2
window = 8
[data]
source = "text.txt"
packed = true
document = "line"
[train]
steps = 40
batch = 4
eval_every = 10
eval_batches = 2
checkpoint_every = 2
log_every = 1
out = "run"
[sample]
tokens = 8
)";

std::string text() {
  std::string t;
  const Random random(5);
  for (uint64_t i = 0; i < 4000; ++i)
    t += concat("line ", random.below(900, i), i % 3 ? " of a small text\n" : " and another\n");
  return t;
}

// metrics.jsonl without what depends on the clock.
std::string numbers(const std::string& metrics) {
  return std::regex_replace(metrics, std::regex(",\"tokens_per_second\":[^}]*"), "");
}

void prepare(const Folder& f) {
  f.write("recipe.toml", kRecipe);
  f.write("text.txt", text());
}

// How long `weft train` takes here, in seconds.
double timed_run(const Folder& f) {
  const auto start = std::chrono::steady_clock::now();
  const Ran ran = run_weft(f, {"train", "recipe.toml"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Is there a finished checkpoint? A run killed in its first save leaves a part under another name.
bool has_checkpoint(const Folder& f) {
  if (!std::filesystem::exists(f / "run/checkpoints")) return false;
  for (const auto& entry : std::filesystem::directory_iterator(f / "run/checkpoints"))
    if (entry.path().extension() == ".h5") return true;
  return false;
}

// Kills and resumes until the run ends, each try within `whole` seconds, what an unbroken run
// takes. Returns how often it was killed.
int killed_run(const Folder& f, uint64_t seed, double whole) {
  const Random random(seed);
  int kills = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    std::vector<std::string> arguments{"train", "recipe.toml"};
    if (has_checkpoint(f)) arguments.push_back("--resume");
    const Ran ran = run_weft(f, arguments, whole * (0.1 + 0.6 * random.uniform(i)));
    if (ran.status == 0) return kills;
    INFO(ran.text);
    REQUIRE(ran.status == 128 + SIGKILL);
    ++kills;
  }
  FAIL("the run does not end");
  return kills;
}

}  // namespace

TEST_CASE("resume: a run killed at random moments ends in the same bits as an unbroken one") {
  const Folder whole;
  prepare(whole);
  const double seconds = timed_run(whole);
  int kills = 0;
  for (uint64_t seed = 11; kills == 0 && seed < 31; ++seed) {
    const Folder broken;
    prepare(broken);
    kills += killed_run(broken, seed, seconds);
    CHECK(numbers(broken.read("run/metrics.jsonl")) == numbers(whole.read("run/metrics.jsonl")));
  }
  CHECK(kills > 0);
}

TEST_CASE("resume: a stop signal saves, says so, and the run goes on in the same bits") {
  const Folder whole, broken;
  prepare(whole);
  prepare(broken);
  const double seconds = timed_run(whole);
  const Ran stopped = run_weft(broken, {"train", "recipe.toml"}, seconds / 2, SIGTERM);
  INFO(stopped.text);
  if (stopped.status != 0) {
    CHECK(stopped.status == 128 + SIGTERM);
    CHECK_THAT(stopped.text, ContainsSubstring("--resume"));
    REQUIRE(run_weft(broken, {"train", "recipe.toml", "--resume"}).status == 0);
  }
  CHECK(numbers(broken.read("run/metrics.jsonl")) == numbers(whole.read("run/metrics.jsonl")));
}

// The long form of the first: `weft_tests "[fifty]"`.
TEST_CASE("resume: fifty kills in a row change no bit", "[fifty]") {
  const Folder whole;
  prepare(whole);
  const double seconds = timed_run(whole);
  int kills = 0;
  for (uint64_t seed = 100; kills < 50; ++seed) {
    const Folder broken;
    prepare(broken);
    kills += killed_run(broken, seed, seconds);
    REQUIRE(numbers(broken.read("run/metrics.jsonl")) == numbers(whole.read("run/metrics.jsonl")));
  }
  WARN(kills << " kills, every run ended in the same bits");
}
