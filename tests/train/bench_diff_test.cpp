// `weft bench --diff`: two saved benchmarks side by side.
#include "train/workbench/bench_diff.h"

#include <sstream>

#include "tests/catch.h"
#include "tests/folder.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::train;

namespace {

std::string diff(const tests::Folder& f, bool json = false) {
  std::ostringstream out;
  CHECK(run_bench_diff(f / "a", f / "b", json, out) == 0);
  return out.str();
}

const std::string kRow =
    "{\"name\":\"delta\",\"T\":64,\"both_ms\":4.0,\"least_ms\":1,"
    "\"memory_bytes\":2048,\"time_ratio\":2}\n";

}  // namespace

TEST_CASE("bench diff: rows meet by name and length, and measures are compared") {
  const tests::Folder f;
  f.write("a", "{\"name\":\"machine\",\"threads\":2}\n" + kRow +
                   "{\"name\":\"delta\",\"T\":128,\"both_ms\":9}\n");
  f.write("b",
          "{\"name\":\"machine\",\"threads\":4}\n"
          "{\"name\":\"kda\",\"T\":64,\"both_ms\":1}\n"
          "{\"name\":\"delta\",\"T\":64,\"both_ms\":3.0,\"least_ms\":1,\"memory_bytes\":4096}\n");
  CHECK(diff(f, true) ==
        "{\"name\":\"delta, T 64\",\"measure\":\"both_ms\",\"before\":4.0,\"after\":3.0,"
        "\"ratio\":0.75}\n{\"name\":\"delta, T 64\",\"measure\":\"memory_bytes\",\"before\":2048.0,"
        "\"after\":4096.0,\"ratio\":2.0}\n");
  const std::string text = diff(f);
  CHECK_THAT(text, ContainsSubstring("0.750") && ContainsSubstring("4.00 KiB"));
  CHECK_THAT(text, ContainsSubstring("delta, T 128: in ") && ContainsSubstring("kda, T 64: in "));
  CHECK_THAT(text, ContainsSubstring("the machines differ"));
}

TEST_CASE("bench diff: what is no saved benchmark is refused with its place") {
  const tests::Folder f;
  std::ostringstream out;
  f.write("a", kRow);
  f.write("b", kRow + "delta 64 3.0\n");
  CHECK_THROWS_WITH(run_bench_diff(f / "a", f / "b", false, out),
                    ContainsSubstring("b:2: is no line of `weft bench --json`"));
  f.write("b", "");
  CHECK_THROWS_WITH(run_bench_diff(f / "a", f / "b", false, out),
                    ContainsSubstring("holds no row"));
  f.write("b", "{\"name\":\"kda\",\"both_ms\":1}\n");
  CHECK_THROWS_WITH(run_bench_diff(f / "a", f / "b", false, out),
                    ContainsSubstring("no row of one"));
  CHECK_THROWS_WITH(run_bench_diff(f / "a", f / "c", false, out), ContainsSubstring("c: "));
}

TEST_CASE("bench diff: the verb compares files and times nothing") {
  const tests::Folder f;
  f.write("a", kRow);
  const tests::Ran same = tests::run_weft(f, {"bench", "--diff", "a", "a"});
  INFO(same.text);
  CHECK(same.status == 0);
  CHECK_THAT(same.text, ContainsSubstring("1.000"));
  const tests::Ran named = tests::run_weft(f, {"bench", "delta", "--diff", "a", "a"});
  CHECK(named.status == 2);
  CHECK_THAT(named.text, ContainsSubstring("times nothing"));
}
