// What a profile holds of several ranks, without a GPU.
#include "train/profile.h"

#include <nlohmann/json.hpp>

#include "tests/catch.h"

using namespace weft::train;

TEST_CASE("profile: bars that a rank sends arrive as they were") {
  const std::vector<TraceBar> bars{{"softmax_rows<true, bf16>", 1'700'000'000'000'000'001, 7, true},
                                   {"a name with spaces", 0, UINT64_MAX, false}};
  const std::vector<TraceBar> back = unpacked(packed(bars));
  REQUIRE(back.size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    CHECK(back[i].name == bars[i].name);
    CHECK(back[i].begin == bars[i].begin);
    CHECK(back[i].end == bars[i].end);
    CHECK(back[i].on_gpu == bars[i].on_gpu);
  }
  CHECK(unpacked(packed({})).empty());
}

TEST_CASE("profile: a trace has a process a rank, and one time for all") {
  const auto trace = nlohmann::json::parse(
      trace_of({{{"matmul", 5000, 9000, true}, {"attention", 4000, 4500, false}},
                {{"matmul", 6000, 8000, true}},
                {}}));
  int bars = 0;
  std::vector<std::string> processes;
  for (const auto& e : trace["traceEvents"]) {
    if (e["name"] == "process_name") processes.push_back(e["args"]["name"]);
    if (e["ph"] != "X") continue;
    ++bars;
    if (e["name"] == "attention") CHECK((e["ts"] == 0.0 && e["tid"] == 0 && e["pid"] == 0));
    if (e["name"] == "matmul")
      CHECK((e["ts"] == (e["pid"] == 0 ? 1.0 : 2.0) && e["dur"] == (e["pid"] == 0 ? 4.0 : 2.0)));
  }
  CHECK(bars == 3);
  CHECK(processes == std::vector<std::string>{"rank 0", "rank 1", "rank 2"});
}
