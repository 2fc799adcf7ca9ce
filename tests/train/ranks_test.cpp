// Several ranks train as one does, bit for bit, and go on from each other's checkpoints.
#include <fcntl.h>
#include <sys/file.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tests/train/rank_runs.h"

using namespace weft;
using namespace weft::tests;

namespace {

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

}  // namespace

TEST_CASE("ranks: 1, 2 and 4 give the same losses, norms and weights at every step") {
  skip_without_ranks();
  require_same_numbers(kSmallModel + kRanksRun, {1, 2, 4});
}

TEST_CASE("ranks: a number of micro-batches that is no power of two has one order of sums too") {
  skip_without_ranks();
  std::string recipe = kSmallModel + kRanksRun;
  recipe.replace(recipe.find("accumulate = 4"), 14, "accumulate = 6");
  require_same_numbers(recipe, {1, 2, 3, 6});
}

TEST_CASE("ranks: inspect plans the memory of rank 0 to the byte") {
  skip_without_ranks();
  const Folder f;
  write_run(f, kSmallModel + kRanksRun);
  for (const int n : {1, 2, 4}) {
    const std::string out = "run" + std::to_string(n);
    REQUIRE(run_weft(f, words(out, n)).status == 0);
    const auto plan = nlohmann::json::parse(
        run_weft(f, {"inspect", "recipe.toml", "--json", "--ranks", std::to_string(n)}).text);
    std::istringstream in(read_file(f / (out + "/metrics.jsonl")));
    std::string line;
    std::getline(in, line);
    CHECK(nlohmann::json::parse(line)["peak_bytes"] == plan["peak_bytes"]);
  }
}

TEST_CASE("ranks: a number that does not divide the micro-batches is refused with those that do") {
  skip_without_ranks();
  const Folder f;
  write_run(f, kSmallModel + kRanksRun);
  const Ran ran = run_weft(f, words("run", 3));
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("3 ranks cannot share 4") && ContainsSubstring("1, 2, 4"));
  CHECK(!std::filesystem::exists(f / "run"));
}

TEST_CASE("ranks: a rank that is killed is named, and the run ends with status 1") {
  skip_without_ranks();
  const Folder f;
  std::string recipe = kSmallModel + kRanksRun;
  recipe.replace(recipe.find("steps = 6"), 9, "steps = 100000");
  write_run(f, recipe);
  for (const size_t victim : {0, 1}) {
    Running run(f, words("run", 2, {"--overwrite"}));
    REQUIRE(run.says("step 4/"));
    const std::vector<int> ranks = processes_of(run.process());
    REQUIRE(ranks.size() == 2);
    kill(ranks[victim], SIGKILL);
    CHECK(run.end() == 1);
    CHECK_THAT(run.text(), ContainsSubstring("rank " + std::to_string(victim) + " of 2 (process " +
                                             std::to_string(ranks[victim])) &&
                               ContainsSubstring("checkpoint: run/checkpoints/step-"));
  }
}

TEST_CASE("ranks: a signal at any rank stops all after one step and one save") {
  skip_without_ranks();
  const Folder f;
  std::string recipe = kSmallModel + kRanksRun;
  recipe.replace(recipe.find("steps = 6"), 9, "steps = 100000");
  write_run(f, recipe);
  for (const auto& [signal, status] : {std::pair{SIGTERM, 143}, std::pair{SIGINT, 130}}) {
    Running run(f, words("run", 2, {"--overwrite"}));
    REQUIRE(run.says("step 2/"));
    const std::vector<int> ranks = processes_of(run.process());
    REQUIRE(ranks.size() == 2);
    kill(ranks[1], signal);
    CHECK(run.end() == status);
    CHECK_THAT(run.text(), ContainsSubstring("go on with --resume"));
  }
}

TEST_CASE("ranks: started by torchrun's variables they meet, and with other recipes they do not") {
  skip_without_ranks();
  const Folder f;
  write_run(f, kSmallModel + kRanksRun);
  const std::string port = std::to_string(20000 + getpid() % 12000);
  const auto both = [&](const std::string& out, const std::string& of_second) {
    const std::string one = "WORLD_SIZE=2 MASTER_PORT=" + port +
                            " WEFT_RANKS_WAIT=60 $WEFT train " +
                            "recipe.toml --set train.out=" + out;
    return run_shell(f, "RANK=1 " + one + of_second + " & RANK=0 " + one + "; s=$?; wait; exit $s");
  };
  const Ran same = both("same", "");
  INFO(same.text);
  CHECK(same.status == 0);
  REQUIRE(run_weft(f, words("one", 1)).status == 0);
  CHECK(numbers_of(f, "same") == numbers_of(f, "one"));
  const Ran other = both("other", " --set optimizer.lr=0.5");
  CHECK(other.status == 1);
  CHECK_THAT(other.text, ContainsSubstring("the recipe of rank 1 of 2"));
}

TEST_CASE("ranks: delta rule, mixture of experts, packed documents and f64 agree to the bit") {
  skip_without_ranks();
  const std::string head = "[model]\nwidth = 16\nlayers = 2\ncontext = 16\n";
  const std::string data = "[data]\nsource = \"text.txt\"\ndocument = \"line\"\n";
  std::string run = kRanksRun;
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
  std::string recipe = kSmallModel + kRanksRun;
  recipe.replace(recipe.find("source = \"text.txt\""), 19,
                 "task = \"mqar\"\nvocabulary = 32\npairs = [2, 3]\ntest_examples = 9");
  require_same_numbers(recipe, {1, 2, 4});
}

TEST_CASE("ranks: a run that is killed again and again goes on on 1, 2 and 4 with no bit changed") {
  skip_without_ranks();
  const Folder f;
  std::string recipe = kSmallModel + kRanksRun;
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
