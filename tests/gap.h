// How far the numbers of two results are apart, for tests that say what bound they need. A maximum
// that is taken by hand loses NaN: every comparison with NaN is false.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/tensor.h"
#include "tests/catch.h"

namespace weft::tests {

struct Gap {
  double widest = 0;  // |got - expected|; infinite where either is NaN or infinite
  double size = 0;    // the largest |expected|

  void see(double got, double expected) {
    const bool finite = std::isfinite(got) && std::isfinite(expected);
    widest = std::max(widest,
                      finite ? std::abs(got - expected) : std::numeric_limits<double>::infinity());
    if (finite) size = std::max(size, std::abs(expected));
  }
  // Relative to the largest |expected|, or to `least` where that is smaller.
  double relative(double least = 0) const {
    return widest == 0 ? 0 : widest / std::max(size, least);
  }
};

// `log_of_sum`: where both are -infinity, the logarithm of an empty sum, they agree.
inline Gap gap(const std::vector<double>& got, const std::vector<double>& expected,
               bool log_of_sum = false) {
  REQUIRE(got.size() == expected.size());
  Gap all;
  for (size_t i = 0; i < got.size(); ++i)
    if (!log_of_sum || got[i] != expected[i] || got[i] != -std::numeric_limits<double>::infinity())
      all.see(got[i], expected[i]);
  return all;
}

inline Gap gap(const Tensor& got, const Tensor& expected, bool log_of_sum = false) {
  REQUIRE(got.shape() == expected.shape());
  return gap(to_doubles(got), to_doubles(expected), log_of_sum);
}

}  // namespace weft::tests
