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
