#include "core/units.h"

#include <cmath>
#include <cstdint>
#include <cstdio>

namespace weft {

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return "?";
  const auto s = static_cast<int64_t>(seconds + 0.5);
  char text[64];
  if (s >= 3600)
    std::snprintf(text, sizeof text, "%ldh %02ldm", static_cast<long>(s / 3600),
                  static_cast<long>(s % 3600 / 60));
  else if (s >= 60)
    std::snprintf(text, sizeof text, "%ldm %02lds", static_cast<long>(s / 60),
                  static_cast<long>(s % 60));
  else
    std::snprintf(text, sizeof text, "%lds", static_cast<long>(s));
  return text;
}

std::string bytes_text(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return number_text(unit == 0 ? "%.0f " : "%.2f ", bytes) + units[unit];
}

std::string count_text(double count) {
  if (count >= 1e9) return number_text("%.2fG", count / 1e9);
  if (count >= 1e6) return number_text("%.2fM", count / 1e6);
  if (count >= 1e3) return number_text("%.1fk", count / 1e3);
  return number_text("%.0f", count);
}

std::string number_text(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace weft
