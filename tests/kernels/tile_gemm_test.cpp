// Products of small tiles, against plain loops on whole numbers. softmax.h and tiles.h,
// which are built on them, are tested through attention and block_sparse.
#include "kernels/tile/tile_gemm.h"

#include <vector>

#include "core/random.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

template <class Real>
std::vector<Real> whole_numbers(int64_t n, uint64_t stream) {
  std::vector<Real> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<Real>(Random(1, stream).below(9, i)) - Real(4);
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("tile_gemm: products of any size are the sums that define them", "", float,
                   double) {
  using T = TestType;
  for (const int64_t m : {1, 2, 3, 7, 13, 64})
    for (const int64_t n : {1, 2, 3, 5, 9, 17, 31, 64})
      for (const int64_t k : {0, 1, 5, 64})
        for (const bool transposed : {false, true})
          for (const bool add : {false, true}) {
            const int64_t ldb = n + 3, ldc = n + 1;
            const std::vector<T> a = whole_numbers<T>(m * k + 1, 1);
            const std::vector<T> b = whole_numbers<T>(k * ldb + 1, 2);
            const std::vector<T> before = whole_numbers<T>(m * ldc, 3);
            std::vector<T> c = before, expected = before;
            const Strided<T> left{a.data(), transposed ? 1 : k, transposed ? m : 1};
            for (int64_t i = 0; i < m; ++i)
              for (int64_t j = 0; j < n; ++j) {
                T sum = add ? before[static_cast<size_t>(i * ldc + j)] : T(0);
                for (int64_t p = 0; p < k; ++p)
                  sum += left.data[i * left.row + p * left.column] *
                         b[static_cast<size_t>(p * ldb + j)];
                expected[static_cast<size_t>(i * ldc + j)] = sum;
              }
            tile_gemm<T>(m, n, k, left, b.data(), ldb, c.data(), ldc, add);
            INFO(m << " x " << n << " x " << k);
            CHECK(c == expected);  // what lies between the rows included
          }
}
