// The models that the lesson on hybrids trains.
#include "train/verbs/lesson_recall.h"

#include "core/parallel.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

TEST_CASE("lesson recall: each pattern is trained, and twice to the same numbers") {
  const int threads = thread_count();
  const std::vector<Recalled> a = trained_recall(2), b = trained_recall(2);
  REQUIRE(a.size() == 4);
  REQUIRE(b.size() == 4);
  for (size_t i = 0; i < a.size(); ++i) {
    INFO(a[i].name);
    CHECK(a[i].step == std::vector<double>{2});
    REQUIRE(a[i].by_pairs.size() == 2);
    CHECK(a[i].by_pairs[0].first == 4);
    CHECK(a[i].by_pairs == b[i].by_pairs);
    CHECK(a[i].right == b[i].right);
  }
  CHECK(thread_count() == threads);
  // What only a layer that sees all keeps grows with the text.
  CHECK(a[2].bytes > 1.9 * static_cast<double>(a[3].bytes));
  CHECK(a[3].bytes > 20 * a[1].bytes);
  CHECK(a[1].bytes < 100'000);
}
