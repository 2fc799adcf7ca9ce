// Several ranks train as one does, bit for bit, and go on from each other's checkpoints.
#include <fcntl.h>
#include <sys/file.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "core/file.h"
#include "core/ranks.h"
#include "tests/catch.h"
#include "tests/train/running.h"
#include "tests/train/small_run.h"

using namespace weft;
using namespace weft::tests;

namespace {

const std::string kRun = R"([sample]
tokens = 0
[train]
device = "cpu"
steps = 6
batch = 2
accumulate = 4
log_every = 1
eval_every = 3
eval_batches = 3
checkpoint_every = 2
out = "run"
)";

// What of metrics.jsonl does not depend on the clock or on memory.
std::string numbers_of(const Folder& f, const std::string& out) {
  std::istringstream in(read_file(f / (out + "/metrics.jsonl")));
  std::string all;
  for (std::string line; std::getline(in, line);) {
    auto j = nlohmann::ordered_json::parse(line);
    j.erase("tokens_per_second"), j.erase("peak_bytes");
    all += j.dump() + "\n";
  }
  return all;
}

std::vector<std::string> words(const std::string& out, int ranks,
                               const std::vector<std::string>& more = {}) {
  std::vector<std::string> all = {"train",   "recipe.toml",        "--set", "train.out=" + out,
                                  "--ranks", std::to_string(ranks)};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

void require_same_numbers(const std::string& recipe, const std::vector<int>& counts) {
  const Folder f;
  write_run(f, recipe);
  std::string first;
  for (const int n : counts) {
    const std::string out = "run" + std::to_string(n);
    const Ran ran = run_weft(f, words(out, n));
    INFO(n << " ranks: " << ran.text);
    REQUIRE(ran.status == 0);
    const std::string numbers = numbers_of(f, out);
    if (first.empty()) first = numbers;
    CHECK(first.find("\"hash\"") != std::string::npos);
    CHECK(numbers == first);
  }
}

// The processes that a process started.
std::vector<int> processes_of(int parent) {
  std::vector<int> list;
  std::ifstream in("/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent) +
                   "/children");
  for (int child = 0; in >> child;) list.push_back(child);
  return list;
}

// Ranks whose starter was killed end a moment later.
void wait_until_gone(const std::string& lock) {
  for (int i = 0; i < 2000 && std::filesystem::exists(lock); ++i) {
    const int fd = ::open(lock.c_str(), O_RDWR | O_CLOEXEC);
    const bool free = fd < 0 || ::flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (fd >= 0) ::close(fd);
    if (free) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void skip_without_ranks() {
  if (const std::string why = why_no_cpu_ranks(); !why.empty()) SKIP(why);
}

}  // namespace

TEST_CASE("ranks: 1, 2 and 4 give the same losses, norms and weights at every step") {
  skip_without_ranks();
  require_same_numbers(kSmallModel + kRun, {1, 2, 4});
}

TEST_CASE("ranks: a number of micro-batches that is no power of two has one order of sums too") {
  skip_without_ranks();
  std::string recipe = kSmallModel + kRun;
  recipe.replace(recipe.find("accumulate = 4"), 14, "accumulate = 6");
  require_same_numbers(recipe, {1, 2, 3, 6});
}

TEST_CASE("ranks: delta rule, mixture of experts, packed documents and f64 agree to the bit") {
  skip_without_ranks();
  const std::string head = "[model]\nwidth = 16\nlayers = 2\ncontext = 16\n";
  const std::string data = "[data]\nsource = \"text.txt\"\ndocument = \"line\"\n";
  std::string run = kRun;
  run.replace(run.find("accumulate = 4"), 14, "accumulate = 2");
  require_same_numbers(
      head + "pattern = [\"gated_delta\", \"attention\"]\n[gated_delta]\nheads = 2\n" +
          "[attention]\nheads = 2\n" + data + "packed = true\n" + run,
      {1, 2});
  require_same_numbers(head + "pattern = [\"attention\"]\nmlp = \"moe\"\n[moe]\n" +
                           "experts = 4\ntop_k = 2\n[attention]\nheads = 2\n" + data + run,
                       {1, 2});
  std::string wide = run;
  wide.replace(wide.find("steps = 6"), 9, "steps = 3\ndtype = \"f64\"");
  require_same_numbers(head + "pattern = [\"attention\"]\n[attention]\nheads = 2\n" + data + wide,
                       {1, 2});
}

TEST_CASE("ranks: a task's evaluation, with kinds of examples, is shared out to the bit") {
  skip_without_ranks();
  std::string recipe = kSmallModel + kRun;
  recipe.replace(recipe.find("source = \"text.txt\""), 19,
                 "task = \"mqar\"\nvocabulary = 32\npairs = [2, 3]\ntest_examples = 9");
  require_same_numbers(recipe, {1, 2, 4});
}

TEST_CASE("ranks: a run that is killed again and again goes on on 1, 2 and 4 with no bit changed") {
  skip_without_ranks();
  const Folder f;
  std::string recipe = kSmallModel + kRun;
  recipe.replace(recipe.find("steps = 6"), 9, "steps = 20");
  write_run(f, recipe);
  REQUIRE(run_weft(f, words("whole", 1)).status == 0);
  int status = -1;
  for (int turn = 0; status != 0; ++turn) {
    REQUIRE(turn < 40);
    const int n = std::vector<int>{2, 4, 1}[static_cast<size_t>(turn % 3)];
    std::vector<std::string> more;
    if (turn > 0) more.emplace_back("--resume");
    Running run(f, words("broken", n, more));
    // A step beyond a checkpoint, so that something is lost; the process that starts all is killed,
    // or one of the ranks.
    const bool begun = run.says("step ") && run.says("loss") && run.says("\n");
    if (begun && turn < 12) {
      const std::vector<int> ranks = processes_of(run.process());
      if (ranks.empty() || turn % 4 == 0)
        run.send(SIGKILL);
      else
        kill(ranks[static_cast<size_t>(turn) % ranks.size()], SIGKILL);
    }
    status = run.end();
    INFO("turn " << turn << ", " << n << " ranks: " << run.text());
    if (turn >= 12) CHECK(status == 0);
    wait_until_gone(f / "broken/run.lock");
  }
  CHECK(numbers_of(f, "broken") == numbers_of(f, "whole"));
}
