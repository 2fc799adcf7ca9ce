// How several ranks end where one of them hangs, is missing, or meets an error.
#include <arpa/inet.h>
#include <sys/socket.h>

#include <chrono>

#include "tests/train/rank_runs.h"

using namespace weft;
using namespace weft::tests;

namespace {

std::string endless() {
  std::string recipe = kSmallModel + kRanksRun;
  recipe.replace(recipe.find("steps = 6"), 9, "steps = 100000");
  return recipe;
}

std::string free_port(int number) { return std::to_string(20000 + (getpid() + number) % 12000); }

// One rank of two, as torchrun starts it, for run_shell.
std::string rank_of_two(int rank, const std::string& port, const std::string& more = "") {
  return concat("RANK=", rank, " WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=", port, " ", more,
                " $WEFT train recipe.toml");
}

double seconds_of(const std::function<void()>& work) {
  const auto begun = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

}  // namespace

TEST_CASE("rank faults: a rank that hangs is named within 30 s, and the last checkpoint is told") {
  skip_without_ranks();
  const Folder f;
  write_run(f, endless());
  Running run(f, words("run", 2));
  REQUIRE(run.says("step 4/"));
  const std::vector<int> ranks = processes_of(run.process());
  REQUIRE(ranks.size() == 2);
  kill(ranks[1], SIGSTOP);
  int status = 0;
  CHECK(seconds_of([&] { status = run.end(); }) < 30);
  CHECK(status == 1);
  CHECK_THAT(run.text(), ContainsSubstring("rank 1 of 2 (process " + std::to_string(ranks[1])) &&
                             ContainsSubstring("no sign of life") &&
                             ContainsSubstring("checkpoint: run/checkpoints/step-"));
  CHECK(kill(ranks[1], 0) != 0);  // nothing is left behind
}

TEST_CASE("rank faults: a rank that does not come is named after the time to wait") {
  skip_without_ranks();
  const Folder f;
  write_run(f, kSmallModel + kRanksRun);
  const Ran ran = run_shell(f, rank_of_two(0, free_port(1), "WEFT_RANKS_WAIT=1"));
  INFO(ran.text);
  CHECK(ran.status != 0);
  CHECK_THAT(ran.text, ContainsSubstring("rank 1") && ContainsSubstring("WEFT_RANKS_WAIT"));
  const Ran second = run_shell(f, rank_of_two(1, free_port(2), "WEFT_RANKS_WAIT=1"));
  INFO(second.text);
  CHECK(second.status != 0);
  CHECK_THAT(second.text, ContainsSubstring("rank 0") && ContainsSubstring("127.0.0.1"));
  CHECK(!std::filesystem::exists(f / "run"));
}

TEST_CASE("rank faults: a port that another program holds is told, with its number") {
  skip_without_ranks();
  const Folder f;
  write_run(f, kSmallModel + kRanksRun);
  const int holder = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  REQUIRE(::bind(holder, reinterpret_cast<sockaddr*>(&address), size) == 0);
  REQUIRE(::listen(holder, 1) == 0);
  REQUIRE(::getsockname(holder, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  const Ran ran = run_shell(f, rank_of_two(0, port, "WEFT_RANKS_WAIT=2"));
  ::close(holder);
  INFO(ran.text);
  CHECK(ran.status != 0);
  CHECK_THAT(ran.text, ContainsSubstring(port));
}

TEST_CASE("rank faults: what one rank cannot read ends all, with that rank's name") {
  skip_without_ranks();
  const Folder f;
  write_run(f, kSmallModel + kRanksRun);
  std::filesystem::create_directory(f / "elsewhere");  // no text lies there
  std::filesystem::copy(f / "recipe.toml", f / "elsewhere/recipe.toml");
  const std::string port = free_port(3);
  const Ran ran = run_shell(f, "(cd elsewhere; " + rank_of_two(1, port) + ") & " +
                                   rank_of_two(0, port) + "; s=$?; wait; exit $s");
  INFO(ran.text);
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("rank 1 of 2"));
  CHECK(!std::filesystem::exists(f / "run/checkpoints"));
}
