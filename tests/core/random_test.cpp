// Philox and what is drawn with it.
#include "core/random.h"

#include "tests/catch.h"

using namespace weft;

TEST_CASE("random: Philox4x32-10 gives the published numbers") {
  // Known answers of the reference implementation (Random123, kat_vectors).
  CHECK(philox({0, 0, 0, 0}, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffffffffffff) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
}

TEST_CASE("random: numbers depend on seed, stream and index alone") {
  const Random a(3, stream_of("w")), b(3, stream_of("w")), c(3, stream_of("v"));
  CHECK(a.normal(17) == b.normal(17));
  CHECK(a.normal(17) != c.normal(17));
  CHECK(a.normal(17) != a.normal(18));
}

TEST_CASE("random: uniform and normal numbers have their moments") {
  const Random r(1);
  double mean = 0, square = 0, uniform = 0;
  constexpr int n = 100000;
  for (uint64_t i = 0; i < n; ++i) {
    mean += r.normal(i) / n;
    square += r.normal(i) * r.normal(i) / n;
    uniform += r.uniform(i) / n;
    REQUIRE(r.below(7, i) < 7);
  }
  CHECK(std::abs(mean) < 0.01);
  CHECK(std::abs(square - 1) < 0.02);
  CHECK(std::abs(uniform - 0.5) < 0.005);
}

TEST_CASE("random: uniform, whole and normal numbers are those that the words of Philox give") {
  // Of the published words 6627e8d5 e169c58d bc57ac4c 9b00dbd8: key and counter are zero.
  const Random zero(0, 0);
  CHECK(zero.words(0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(zero.bits(0) == 0x6627e8d5e169c58d);
  CHECK(zero.uniform(0) == 0x1.989fa35785a70p-2);
  CHECK(zero.below(1000, 0) == 399);
  CHECK(zero.below(1, 0) == 0);
  CHECK(zero.normal(0) == Approx(-0.12151797595308224).epsilon(1e-14));
  // And of 408f276d 41c83b0e a20bc7c6 6d5451fd: both are all ones.
  const Random ones(~uint64_t{0}, ~uint64_t{0});
  CHECK(ones.uniform(~uint64_t{0}) == 0x1.023c9db50720ep-2);
  CHECK(ones.below(7, ~uint64_t{0}) == 1);
  CHECK(ones.normal(~uint64_t{0}) == Approx(-1.1133151005615085).epsilon(1e-14));
}

TEST_CASE("random: every bit of seed, stream and index gives other numbers") {
  const uint64_t first = Random(5, 9).bits(3);
  for (int bit = 0; bit < 64; ++bit) {
    INFO("bit " << bit);
    const uint64_t flip = uint64_t{1} << bit;
    CHECK(Random(5 ^ flip, 9).bits(3) != first);
    CHECK(Random(5, 9 ^ flip).bits(3) != first);
    CHECK(Random(5, 9).bits(3 ^ flip) != first);
  }
}

TEST_CASE("random: a stream's number is FNV-1a of its name") {
  CHECK(stream_of("") == 0xcbf29ce484222325u);
  CHECK(stream_of("a") == 0xaf63dc4c8601ec8cu);
  CHECK(stream_of("foobar") == 0x85944171f73967e8u);
}
