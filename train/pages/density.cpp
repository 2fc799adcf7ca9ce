#include "train/pages/density.h"

#include <algorithm>

#include "core/error.h"
#include "core/units.h"
#include "train/pages/page.h"

namespace weft::train {
namespace {

constexpr double kRow = 26, kColumn = 130, kBar = 18, kGap = 10, kLetter = 7;

std::string number(double x) { return number_text("%.6g", x); }

std::string text_at(double x, double y, const char* kind, const std::string& text) {
  return concat("<text", kind, " x=\"", number(x), "\" y=\"", number(y), "\">", escaped(text),
                "</text>\n");
}

}  // namespace

Drawing density_drawing(const std::vector<std::string>& columns,
                        const std::vector<DensityRow>& rows) {
  double left = 60;
  for (const DensityRow& row : rows)
    left = std::max(left, kGap + kLetter * static_cast<double>(row.name.size()));
  Drawing d{left + kColumn * static_cast<double>(columns.size()) + kGap,
            kRow * static_cast<double>(rows.size() + 1) + kGap, ""};
  for (size_t i = 0; i < columns.size(); ++i)
    d.inside += text_at(left + kColumn * static_cast<double>(i) + kGap, 17, "", columns[i]);
  for (size_t r = 0; r < rows.size(); ++r) {
    const double y = kRow * static_cast<double>(r + 1);
    d.inside += text_at(kGap, y + 13, " class=\"soft\"", rows[r].name);
    for (size_t i = 0; i < columns.size(); ++i) {
      const double x = left + kColumn * static_cast<double>(i) + kGap, wide = kColumn - 2 * kGap;
      const double part = std::clamp(rows[r].density.at(i), 0.0, 1.0);
      d.inside += concat(
          "<g class=\"c", i % 8, "\"><rect fill=\"currentColor\" fill-opacity=\".45\" x=\"",
          number(x), "\" y=\"", number(y), "\" width=\"", number(wide * part), "\" height=\"",
          number(kBar), "\"/></g><rect class=\"frame\" x=\"", number(x), "\" y=\"", number(y),
          "\" width=\"", number(wide), "\" height=\"", number(kBar), "\"/>\n");
      d.inside += text_at(x + wide - 4, y + 13, " class=\"end\"",
                          number_text("%.1f", 100 * rows[r].density[i]) + " %");
    }
  }
  return d;
}

}  // namespace weft::train
