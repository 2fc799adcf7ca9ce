#include "train/pages/matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "core/error.h"
#include "core/units.h"

namespace weft::train {
namespace {

constexpr int kShades = 24;

// From -kShades to kShades; what is too small for a shade has none.
int shade_of(double value, double largest) {
  if (largest <= 0 || !std::isfinite(value)) return 0;
  const double part = std::sqrt(std::min(1.0, std::abs(value) / largest));
  const int shade = static_cast<int>(std::lround(part * kShades));
  return value < 0 ? -shade : shade;
}

// Runs of equal cells along rows, each a horizontal line through the middle of its row.
class Strokes {
 public:
  void add(size_t row, size_t begin, size_t end) {
    path_ += row == row_ && !path_.empty() ? concat("m", begin - at_, " 0")
                                           : concat("M", begin, " ", row);
    path_ += concat("h", end - begin);
    row_ = row;
    at_ = end;
  }
  // The path as an element; empty where there is no cell.
  std::string text(const std::string& look) const {
    return path_.empty() ? "" : concat("<path class=\"cells", look, "\" d=\"", path_, "\"/>\n");
  }

 private:
  std::string path_;
  size_t row_ = 0, at_ = 0;
};

}  // namespace

double largest_of(const std::vector<double>& values) {
  double largest = 0;
  for (const double v : values)
    if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
  return largest;
}

std::string matrix_inside(const std::vector<double>& values, size_t T, double largest) {
  std::array<Strokes, 2 * kShades + 1> strokes;
  Strokes unread;
  for (size_t t = 0; t < T; ++t)
    for (size_t s = 0; s <= t;) {
      const auto key = [&](size_t at) {
        const double v = values[t * T + at];
        return v == 0 ? kShades + 1 : shade_of(v, largest);
      };
      const int shade = key(s);
      size_t end = s + 1;
      while (end <= t && key(end) == shade) ++end;
      if (shade == kShades + 1)
        unread.add(t, s, end);
      else if (shade != 0)
        strokes[static_cast<size_t>(shade + kShades)].add(t, s, end);
      s = end;
    }
  std::string out = concat("<g transform=\"translate(0 .5)\">\n", unread.text(" unread"));
  for (int shade = -kShades; shade <= kShades; ++shade)
    out += strokes[static_cast<size_t>(shade + kShades)].text(
        concat(shade < 0 ? " less" : "", "\" stroke-opacity=\"",
               number_text("%.2g", std::abs(shade) / double(kShades))));
  return out + "</g>\n";
}

std::string packed_cells(const std::vector<double>& values, size_t T, double largest) {
  std::string bytes;
  for (size_t t = 0; t < T; ++t)
    for (size_t s = 0; s <= t; ++s) {
      const double part = largest > 0 ? values[t * T + s] / largest : 0;
      const auto n = static_cast<int16_t>(std::lround(32767 * std::clamp(part, -1.0, 1.0)));
      bytes += static_cast<char>(n & 0xff);
      bytes += static_cast<char>((n >> 8) & 0xff);
    }
  static constexpr char kLetters[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t word = 0;
    for (size_t k = 0; k < 3; ++k)
      word = word << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k)
      out += i + k > bytes.size() ? '=' : kLetters[(word >> (18 - 6 * k)) & 63];
  }
  return out;
}

}  // namespace weft::train
