// `weft bench` runs and adds up; how long anything takes is no matter of tests.
#include "train/workbench/bench.h"

#include <sstream>

#include "core/error.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

TEST_CASE("bench: rows have times, memory and ratios, and attention to compare with") {
  const BenchArguments a{.names = {"linear"}, .lengths = {64, 32}, .budget = 0};
  const std::vector<BenchRow> rows = bench(a, {.flops = 1e9, .bytes = 1e9}, nullptr);
  REQUIRE(rows.size() == 6);
  CHECK(rows[0].name == "attention");
  CHECK(rows[2].name == "linear without g");
  for (const BenchRow& r : rows) {
    CHECK(r.forward > 0);
    CHECK(r.both > 0);
    CHECK(r.memory > 0);
    CHECK(r.least > 0);
    CHECK((r.time_ratio > 0) == (r.length == 64));
    CHECK((r.attention_ratio > 0) == (r.name != "attention"));
  }
}

TEST_CASE("bench: options of the operation make a variant of their own") {
  std::ostringstream out;
  CHECK(run_bench({.names = {"attention"},
                   .lengths = {64},
                   .set = {"window=16"},
                   .budget = 0,
                   .json = true},
                  out) == 0);
  CHECK_THAT(out.str(), ContainsSubstring("\"name\":\"attention window=16\",\"T\":64") &&
                            ContainsSubstring("\"gflops\":"));
}

TEST_CASE("bench: says what it does not know") {
  const auto refused = [](const BenchArguments& a, const std::string& part) {
    std::ostringstream out;
    CHECK_THROWS_WITH(run_bench(a, out), ContainsSubstring(part));
  };
  refused({.names = {"linaer"}}, "did you mean \"linear\"");
  refused({.set = {"window=2"}}, "need the name");
  refused({.names = {"attention"}, .set = {"window"}}, "OPTION=VALUE");
  refused({.names = {"attention"}, .lengths = {8}, .set = {"windows=4"}, .budget = 0},
          "unknown option");
  refused({.names = {"linear"}, .lengths = {8}, .without = {"w"}, .budget = 0}, "no input \"w\"");
  refused({.names = {"linear"}, .lengths = {-8}, .budget = 0}, "not a length");
}
