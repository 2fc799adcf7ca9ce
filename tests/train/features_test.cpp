#include "train/workbench/features.h"

#include <cmath>

#include "core/error.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

TEST_CASE("features: the median error falls with the number, and more so at right angles") {
  const auto rows = features({.width = 8, .features = {8, 128}, .pairs = 32, .draws = 32});
  REQUIRE(rows.size() == 8);  // positive, trigonometric; at right angles, by chance; 8, 128
  for (size_t i = 0; i < 8; i += 2) {
    INFO(rows[i].kind << " " << rows[i].orthogonal);
    CHECK(rows[i].features == 8);
    CHECK(rows[i + 1].median < 0.5 * rows[i].median);
  }
  CHECK(rows[0].median < rows[2].median);
  CHECK(rows[4].median < rows[6].median);
  CHECK_THROWS_WITH(features({.width = 0}), ContainsSubstring("--width is 0"));
}

TEST_CASE(
    "features: every setting changes what is measured, and the number of draws is no matter") {
  const FeaturesArguments base{.width = 6, .features = {12}, .pairs = 16, .draws = 8};
  const auto rows = [](FeaturesArguments a, const auto& change) {
    change(a);
    std::vector<double> all;
    for (const FeaturesRow& r : features(a)) all.insert(all.end(), {r.error, r.median, r.bias});
    return all;
  };
  const auto same = [](FeaturesArguments&) {};
  const std::vector<double> first = rows(base, same);
  CHECK(rows(base, same) == first);
  CHECK(rows(base, [](auto& a) { a.width = 7; }) != first);
  CHECK(rows(base, [](auto& a) { a.features = {13}; }) != first);
  CHECK(rows(base, [](auto& a) { a.size = 1.5; }) != first);
  CHECK(rows(base, [](auto& a) { a.pairs = 17; }) != first);
  CHECK(rows(base, [](auto& a) { a.draws = 9; }) != first);
  CHECK(rows(base, [](auto& a) { a.seed = 2; }) != first);
  // Of one pair and one draw all three are the same number, but for the sign.
  for (const FeaturesRow& r : features({.width = 6, .features = {12}, .pairs = 1, .draws = 1})) {
    CHECK(r.error == Approx(std::abs(r.bias)));
    CHECK(r.median == Approx(std::abs(r.bias)));
  }
  const auto many = features({.width = 4, .features = {64}, .size = 0.5, .pairs = 32, .draws = 32});
  for (const FeaturesRow& r : many) {  // estimates without bias
    CHECK(std::abs(r.bias) < 0.03);
    CHECK(r.median < r.error);
    CHECK(std::abs(r.bias) < r.error);
  }
}
