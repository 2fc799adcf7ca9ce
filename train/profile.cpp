// What a profile holds, for people. Recording it is in profile.cu.
#include "train/profile.h"

#include <algorithm>
#include <cstdio>

namespace weft::train {

std::string text(const GpuUse& u, size_t rows) {
  char line[200];
  std::snprintf(line, sizeof line, "GPU: %.2f ms, idle %.2f %%, %ld kernels and copies",
                1e3 * u.seconds, u.seconds > 0 ? 100 * (1 - u.busy / u.seconds) : 0.0,
                static_cast<long>(u.kernels));
  std::string all = line;
  for (size_t i = 0; i < std::min(rows, u.parts.size()); ++i) {
    std::snprintf(line, sizeof line, "\n  %6.2f %%  %9.3f ms  %6ld x  %.100s",
                  100 * u.parts[i].seconds / u.seconds, 1e3 * u.parts[i].seconds,
                  static_cast<long>(u.parts[i].count), u.parts[i].name.c_str());
    all += line;
  }
  return all;
}

}  // namespace weft::train
