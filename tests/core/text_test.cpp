#include "core/text.h"

#include "tests/catch.h"

using namespace weft;

TEST_CASE("text: the nearest name is the one with the fewest letters to change") {
  CHECK(nearest_name("retenton", {"attention", "retention", "delta"}) == "retention");
  CHECK(nearest_name("x", {}).empty());
}

TEST_CASE("text: an unknown name is told with the nearest and the list") {
  CHECK(unknown_name("mixer", "delat", {"attention", "delta"}) ==
        "unknown mixer \"delat\"; did you mean \"delta\"? known: attention, delta");
  CHECK(unknown_name("mixer", "delat", {}) == "unknown mixer \"delat\"; none is known");
}

TEST_CASE("text: a list contains its names and no others") {
  CHECK(contains({"a", "b"}, "b"));
  CHECK_FALSE(contains({"a", "b"}, "ab"));
  CHECK(joined({"a", "b", "c"}) == "a, b, c");
}
