// Products and transposes of padded scratch matrices, against plain loops on whole numbers.
#include "kernels/tile/tile.h"

#include <cmath>
#include <random>
#include <vector>

#include "tests/catch.h"

using namespace weft::kernels;

namespace {

template <class Real>
struct Matrices {
  std::mt19937 random{7};
  std::vector<std::vector<Real>> memory;

  Tile<Real> make(int64_t rows, int64_t columns) {
    memory.emplace_back(static_cast<size_t>(rows * (columns + kTile)));
    for (Real& x : memory.back()) x = static_cast<Real>(static_cast<int>(random() % 9) - 4);
    return {memory.back().data(), columns + kTile};
  }
};

}  // namespace

TEMPLATE_TEST_CASE("tile: products are the sums that define them", "", float, double) {
  const int64_t m = 32, n = 48, k = 64;
  Matrices<TestType> all;
  const auto a = all.make(m, k), b = all.make(k, n), c = all.make(m, n), before = all.make(m, n);
  const auto turned = all.make(k, m);
  transpose<TestType>(m, k, a, turned);
  for (const bool transposed : {false, true}) {
    std::copy_n(before.data, m * before.stride, c.data);
    if (transposed)
      product_of_transposed<TestType>(m, n, k, turned, b, 2, c);
    else
      product<TestType>(m, n, k, a, b, 2, c);
    bool equal = true;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        TestType sum = 2 * before.row(i)[j];
        for (int64_t l = 0; l < k; ++l) sum += a.row(i)[l] * b.row(l)[j];
        equal = equal && sum == c.row(i)[j];
      }
    CHECK(equal);
  }
}

TEMPLATE_TEST_CASE("tile: a triangular operand needs no look at its other half", "", float,
                   double) {
  const int64_t n = 48, k = 32;
  Matrices<TestType> all;
  const auto a = all.make(n, n), b = all.make(n, k), c = all.make(n, k);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i + 1; j < n; ++j)  // zero in the diagonal block, else never read
      a.row(i)[j] = j / kTile == i / kTile ? TestType(0) : TestType(NAN);
  for (const bool transposed : {false, true}) {
    if (transposed)
      product_of_transposed<TestType>(n, k, n, a, b, 0, c, Band::upper);
    else
      product<TestType>(n, k, n, a, b, 0, c, Band::lower);
    bool equal = true;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j) {
        TestType sum = 0;
        for (int64_t l = 0; l < n; ++l)
          if (transposed ? l >= i : l <= i)
            sum += (transposed ? a.row(l)[i] : a.row(i)[l]) * b.row(l)[j];
        equal = equal && sum == c.row(i)[j];
      }
    CHECK(equal);
  }
}
