#include "core/child.h"

#include <atomic>
#include <csignal>
#include <stdexcept>

#include "tests/catch.h"

using namespace weft;

TEST_CASE("child: work that returns is done, and changes nothing here") {
  int here = 1;
  const ChildResult result = in_child([&] { here = 2; }, 60);
  CHECK(result.ok());
  CHECK(here == 1);
}

TEST_CASE("child: what work throws is told in its words") {
  const ChildResult result = in_child([] { throw std::runtime_error("a reason"); }, 60);
  CHECK(result.ended_itself);
  CHECK(result.message == "a reason");
  CHECK(!in_child([] { throw std::runtime_error(""); }, 60).ok());
}

TEST_CASE("child: a crash ends the child alone, and is told") {
  for (const int by : {SIGSEGV, SIGABRT, SIGKILL}) {
    const ChildResult result = in_child([&] { std::raise(by); }, 60);
    CHECK(!result.ok());
    CHECK(!result.ended_itself);
    CHECK_THAT(result.message, ContainsSubstring("it crashed: "));
  }
}

TEST_CASE("child: work without an end is ended") {
  std::atomic<int> turns = 0;
  const ChildResult result = in_child(
      [&] {
        while (turns >= 0) turns = (turns + 1) % 1000;
      },
      1);
  CHECK(!result.ended_itself);
  CHECK(result.message == "it came to no end");
}
