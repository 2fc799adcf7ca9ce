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

TEST_CASE("text: a name that is far from all is told with the list alone") {
  CHECK(nearest_name("nothing", {"state", "window", "linear"}).empty());
  CHECK(nearest_name("rsm", {"layer", "rms"}) == "rms");  // two letters that changed places
  CHECK(nearest_name("b", {"a"}).empty());
  CHECK(nearest_name("", {"a", "ab"}).empty());
  CHECK(unknown_name("lesson", "nothing", {"state", "window"}) ==
        "unknown lesson \"nothing\"; known: state, window");
  CHECK(nearest_name("block", {"flower_of", "block_sparse"}) == "block_sparse");
  CHECK(nearest_name("weights", {"x", "w"}) == "w");
}

TEST_CASE("text: a list contains its names and no others") {
  CHECK(contains({"a", "b"}, "b"));
  CHECK_FALSE(contains({"a", "b"}, "ab"));
  CHECK(joined({"a", "b", "c"}) == "a, b, c");
}

TEST_CASE("text: what is UTF-8 is told to the byte") {
  for (const std::string text :
       {"", "a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"})
    CHECK(first_not_utf8("x" + text + "y") == std::string::npos);
  for (const std::string bad : {"\xe9", "\x80", "\xc0\x80", "\xc3", "\xe2\x82", "\xed\xa0\x80",
                                "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xff"}) {
    CHECK(first_not_utf8("\xc3\xa9" + bad) == 2);
    CHECK(first_not_utf8("ab" + bad + "c") == 2);
  }
}

TEST_CASE("text: bytes that are not UTF-8 are spelled, others stay") {
  CHECK(as_utf8("caf\xe9.txt") == "caf\\xE9.txt");
  CHECK(as_utf8("caf\xc3\xa9 \\") == "caf\xc3\xa9 \\");
  CHECK(as_utf8("\xff\xfe") == "\\xFF\\xFE");
}
