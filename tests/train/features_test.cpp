#include "train/workbench/features.h"

#include <sstream>

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
