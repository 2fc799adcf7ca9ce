// Ranks on two hosts, which network namespaces stand for: each has an address of its own, and one
// cable joins them.
#include "tests/train/rank_runs.h"

using namespace weft;
using namespace weft::tests;

namespace {

class TwoHosts {
 public:
  explicit TwoHosts(const Folder& f) : f_(f) {
    const std::string make = concat(
        "ip netns add ", name(0), " && ip netns add ", name(1), " && ip link add ", end(0),
        " type veth peer name ", end(1), " && ip link set ", end(0), " netns ", name(0),
        " && ip link set ", end(1), " netns ", name(1), " && for i in 0 1; do ip -n ", "weft-h$i-",
        getpid(), " addr add 10.77.0.$((i + 1))/24 dev wv$i-", getpid() % 100000,
        " && ip -n weft-h$i-", getpid(), " link set wv$i-", getpid() % 100000,
        " up && ip -n weft-h$i-", getpid(), " link set lo up || exit 1; done");
    made_ = run_shell(f, make);
  }
  ~TwoHosts() {
    for (const int host : {0, 1}) run_shell(f_, "ip netns del " + name(host));
  }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  // Why there are none; empty where there are.
  std::string why_not() const {
    return made_.status == 0 ? "" : "no network namespaces can be made here: " + made_.text;
  }
  // A line of sh that runs a rank of each host, the second in the background, and ends with the
  // status of the first. `variables` has @ where the rank's number belongs.
  std::string both(const std::string& variables, const std::string& words) const {
    return of(1, variables, words) + " & " + of(0, variables, words) + "; s=$?; wait; exit $s";
  }
  std::string cut() const { return "ip -n " + name(0) + " link set " + end(0) + " down"; }

 private:
  static std::string name(int host) { return concat("weft-h", host, "-", getpid()); }
  static std::string end(int host) { return concat("wv", host, "-", getpid() % 100000); }
  static std::string of(int rank, std::string variables, const std::string& words) {
    for (size_t at; (at = variables.find('@')) != std::string::npos;)
      variables.replace(at, 1, std::to_string(rank));
    return "env " + variables + " ip netns exec " + name(rank) + " $WEFT " + words;
  }

  const Folder& f_;
  Ran made_;
};

const char* const kTorchrun =
    "RANK=@ WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=10.77.0.1 MASTER_PORT=29400";
const char* const kSlurm =
    "SLURM_PROCID=@ SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 SLURM_JOB_ID=9 "
    "SLURM_JOB_NODELIST=weft-a[1-2] MASTER_ADDR=10.77.0.1 MASTER_PORT=29401";

}  // namespace

TEST_CASE(
    "hosts: ranks of two hosts meet by torchrun's and Slurm's variables, with the same bits") {
  skip_without_ranks();
  const Folder f;
  const TwoHosts hosts(f);
  if (const std::string why = hosts.why_not(); !why.empty()) SKIP(why);
  write_run(f, kSmallModel + kRanksRun);
  REQUIRE(run_weft(f, words("one", 1)).status == 0);
  for (const auto& [name, variables] :
       {std::pair{"torchrun", kTorchrun}, std::pair{"slurm", kSlurm}}) {
    const Ran ran =
        run_shell(f, hosts.both(variables, concat("train recipe.toml --set train.out=", name)));
    INFO(name << ": " << ran.text);
    REQUIRE(ran.status == 0);
    CHECK(numbers_of(f, name) == numbers_of(f, "one"));
  }
}

TEST_CASE("hosts: a cable that is cut is told within 30 s, on either side") {
  skip_without_ranks();
  const Folder f;
  const TwoHosts hosts(f);
  if (const std::string why = hosts.why_not(); !why.empty()) SKIP(why);
  write_run(f, kSmallModel + kRanksRun);
  const std::string line =
      "(" + hosts.both(kTorchrun, "train recipe.toml --set train.steps=1000000") +
      ") > said 2>&1 & pid=$!; for i in $(seq 300); do grep -q 'step 4/' said && break; sleep 0.1; "
      "done; " +
      hosts.cut() + "; from=$(date +%s); wait $pid; s=$?; cat said; " +
      "echo \"after $(($(date +%s) - from)) s\"; exit $s";
  const Ran ran = run_shell(f, line);
  INFO(ran.text);
  CHECK(ran.status == 1);
  for (const int rank : {0, 1})
    CHECK_THAT(ran.text, ContainsSubstring(concat("rank ", rank, " of 2 (process")));
  CHECK_THAT(ran.text, ContainsSubstring("no sign of life"));
  const size_t at = ran.text.rfind("after ");
  REQUIRE(at != std::string::npos);
  CHECK(std::stoi(ran.text.substr(at + 6)) <= 30);
  CHECK(std::filesystem::exists(f / "run/checkpoints"));
}
