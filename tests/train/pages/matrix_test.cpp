// Matrices as SVG and as packed numbers.
#include "train/pages/matrix.h"

#include "core/error.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

TEST_CASE("matrix: each cell is drawn in its row and column, shaded by its size and sign") {
  //  t\s   0    1    2
  const std::vector<double> m = {1, 9, 9, -0.25, 0, 9, 1, 1, 0.25};
  const std::string s = matrix_inside(m, 3, largest_of({1, -0.25}));
  CHECK_THAT(s, ContainsSubstring("class=\"cells unread\" d=\"M1 1h1\""));
  CHECK_THAT(s, ContainsSubstring("class=\"cells less\" stroke-opacity=\"0.5\" d=\"M0 1h1\""));
  CHECK_THAT(s, ContainsSubstring("class=\"cells\" stroke-opacity=\"1\" d=\"M0 0h1M0 2h2\""));
  CHECK_THAT(s, ContainsSubstring("class=\"cells\" stroke-opacity=\"0.5\" d=\"M2 2h1\""));
}

TEST_CASE("matrix: packed cells are the lower triangle in 16 bits") {
  CHECK(packed_cells({1, 0, -1, 0.5}, 2, 1) == "/38BgABA");
  CHECK(packed_cells({1}, 1, 1) == "/38=");
  CHECK(packed_cells({0}, 1, 0) == "AAA=");
}
