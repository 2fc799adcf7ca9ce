// Log gates that forget all, as the cases of mechanisms have them.
#pragma once

#include <limits>

#include "core/tensor.h"

namespace weft::kernels {

inline constexpr double kReset = -std::numeric_limits<double>::infinity();

// Writes `value` into f64 numbers [1, T, ...] of tokens, every place behind T by a rule of its own,
// in turn: at the ends of chunks of 64 and of the row, in runs and at the ends of chunks of 32, at
// every token of the first 64, nowhere.
inline void put_resets(const Tensor& g, double value = kReset) {
  const int64_t T = g.size(1), width = g.numel() / T;
  const auto resets = [T](int64_t rule, int64_t t) {
    if (rule == 0) return t == 0 || t == 34 || t == 63 || t == 64 || t == T - 1;
    if (rule == 1) return (t >= 5 && t < 10) || t == 31 || t == 32;
    return rule == 2 && t < 64;
  };
  for (int64_t i = 0; i < g.numel(); ++i)
    if (resets(i % width % 4, i / width)) g.data<double>()[i] = value;
}

// Resets where documents end and begin, by turns; other gates 0, -30, -10000, -infinity or as they
// are.
inline void put_resets_and_extremes(const Tensor& g, const std::vector<int32_t>& cu) {
  const int64_t T = g.size(1), width = g.numel() / T;
  for (int64_t i = 0; i < g.numel(); ++i) {
    const double kinds[] = {0, -30, -1e4, kReset};
    if (const int64_t kind = i * 7 % 9; kind < 4) g.data<double>()[i] = kinds[kind];
  }
  for (size_t n = 0; n + 1 < cu.size(); ++n)
    for (int64_t at = 0; at < width; ++at)
      g.data<double>()[(at % 2 ? cu[n + 1] - 1 : cu[n]) * width + at] = kReset;
}

}  // namespace weft::kernels
