// Signals and closed output: what stops a run saves it, and what need not stop it does not.
#include "train/stop.h"

#include "core/error.h"
#include "tests/catch.h"
#include "tests/train/running.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;

namespace {

const std::string kRecipe = kSmallModel + R"([train]
steps = 1000000
batch = 2
log_every = 1
out = "run"
[schedule]
type = "constant"
[sample]
tokens = 0
)";

void prepare(const Folder& f) { write_run(f, kRecipe); }

size_t checkpoints(const Folder& f) {
  size_t n = 0;
  if (std::filesystem::exists(f / "run/checkpoints"))
    for (const auto& entry : std::filesystem::directory_iterator(f / "run/checkpoints"))
      n += entry.path().extension() == ".h5";
  return n;
}

}  // namespace

TEST_CASE("stop: HUP, INT, TERM, XCPU, USR1 and USR2 save and stop a run") {
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGXCPU, SIGUSR1, SIGUSR2}) {
    const Folder f;
    prepare(f);
    Running run(f, {"train", "recipe.toml"});
    REQUIRE(run.says("step 3/"));
    run.send(signal);
    const int status = run.end();
    INFO("signal " << signal << "\n" << run.text());
    CHECK(status == 128 + signal);
    CHECK_THAT(run.text(), ContainsSubstring("stopped at step") && ContainsSubstring("--resume"));
    CHECK(checkpoints(f) == 1);
  }
}

TEST_CASE("stop: a signal that the parent ignores stays ignored") {
  const Folder f;
  prepare(f);
  Running run(f, {"train", "recipe.toml"}, SIGHUP);
  REQUIRE(run.says("step 3/"));
  run.send(SIGHUP);
  CHECK(run.says("step 40/"));
  run.send(SIGTERM);
  CHECK(run.end() == 128 + SIGTERM);
}

TEST_CASE("stop: two Ctrl-C within a second are one") {
  const Folder f;
  prepare(f);
  Running run(f, {"train", "recipe.toml"});
  REQUIRE(run.says("step 3/"));
  run.send(SIGINT);
  run.send(SIGINT);
  CHECK(run.end() == 128 + SIGINT);
  CHECK_THAT(run.text(), ContainsSubstring("--resume"));
  CHECK(checkpoints(f) == 1);
}

TEST_CASE("stop: a second Ctrl-C after more than a second ends the run at once") {
  using std::chrono::milliseconds;
  // The step never ends; on a busy machine it begins late.
  for (const int wait : {200, 1000, 5000, 25000}) {
    const Folder f;
    prepare(f);
    Running run(f, {"train", "recipe.toml", "--set", "train.accumulate=10000000"});
    REQUIRE(run.says("run folder"));
    std::this_thread::sleep_for(milliseconds(wait));
    run.send(SIGINT);
    std::this_thread::sleep_for(milliseconds(1200));
    run.send(SIGINT);
    const int status = run.end();
    INFO(run.text());
    CHECK(status == 128 + SIGINT);
    if (run.text().find("stopped at step 0") != std::string::npos) continue;
    CHECK(checkpoints(f) == 0);
    return;
  }
  FAIL("no step has begun");
}

TEST_CASE("stop: output that nobody reads, or that cannot be written, ends no run") {
  const Folder f;
  prepare(f);
  Running run(f, {"train", "recipe.toml", "--set", "train.steps=40"});
  REQUIRE(run.says("step 2/"));
  run.close_output();
  CHECK(run.end() == 0);
  CHECK(std::filesystem::exists(f / "run/checkpoints/step-0000000040.h5"));

  const std::string shell = concat("cd ", f.path(), " && ", program_path(),
                                   " train recipe.toml --overwrite --set train.steps=41 "
                                   ">/dev/full 2>told");
  CHECK(std::system(shell.c_str()) == 0);
  CHECK(std::filesystem::exists(f / "run/checkpoints/step-0000000041.h5"));
  CHECK_THAT(f.read("told"), ContainsSubstring("the run goes on"));
}
