// How dense each layer is for each domain, as SVG: a row for each layer, a column for each domain,
// and in each cell a bar as long as the part of the keys that is seen.
#pragma once

#include <string>
#include <vector>

namespace weft::train {

struct DensityRow {
  std::string name;
  std::vector<double> density;  // 0 to 1, of each column; what is more fills the cell
};

struct Drawing {
  double width = 0, height = 0;
  std::string inside;  // of an SVG
};
Drawing density_drawing(const std::vector<std::string>& columns,
                        const std::vector<DensityRow>& rows);

}  // namespace weft::train
