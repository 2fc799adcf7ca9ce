#include "core/parallel.h"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "tests/catch.h"

using namespace weft;

TEST_CASE("parallel: each number of a loop comes once") {
  for (const int64_t n : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> times(static_cast<size_t>(n));
    parallel_for(n, [&](int64_t i) { ++times[static_cast<size_t>(i)]; });
    for (const auto& t : times) CHECK(t == 1);
  }
}

TEST_CASE("parallel: what any number of a loop throws reaches the caller, the others done") {
  for (const int64_t bad : {0, 1, 57, 99}) {
    std::atomic<int> done = 0;
    CHECK_THROWS_WITH(parallel_for(100,
                                   [&](int64_t i) {
                                     if (i == bad) throw std::runtime_error("of one number");
                                     ++done;
                                   }),
                      "of one number");
    if (thread_count() > 1) CHECK(done == 99);
  }
  CHECK_THROWS_WITH(parallel_for(1, [](int64_t) { throw std::runtime_error("alone"); }), "alone");
  CHECK_THROWS_WITH(
      parallel_ranges(10, 3, [](int64_t, int64_t) { throw std::runtime_error("of a range"); }),
      "of a range");
}

TEST_CASE("parallel: ranges cover all numbers once, and the last is what is left") {
  for (const int64_t n : {0, 1, 4, 5, 8, 9, 17}) {
    std::vector<std::atomic<int>> times(static_cast<size_t>(n));
    std::atomic<int64_t> longest = 0;
    parallel_ranges(n, 4, [&](int64_t begin, int64_t end) {
      CHECK(begin % 4 == 0);
      CHECK(begin < end);
      if (end - begin > longest) longest = end - begin;
      for (int64_t i = begin; i < end; ++i) ++times[static_cast<size_t>(i)];
    });
    for (const auto& t : times) CHECK(t == 1);
    CHECK(longest == std::min<int64_t>(n, 4));
  }
}

TEST_CASE("parallel: a loop within a loop runs in the thread that reaches it") {
  std::atomic<int> others = 0, times = 0;
  parallel_for(8, [&](int64_t) {
    const int thread = thread_index();
    parallel_for(5, [&](int64_t) {
      others += thread_index() != thread;
      ++times;
    });
  });
  CHECK(times == 40);
  CHECK(others == 0);
}
