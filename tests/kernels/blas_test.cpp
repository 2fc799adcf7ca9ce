// parallel_gemm against three loops, at sizes on both sides of every cut.
#include "kernels/common/blas.h"

#include "tests/kernels/basic_helpers.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::basic;

namespace {

double at(const Matrix<const double>& m, int64_t i, int64_t j) {
  return m.data[m.transposed ? j * m.stride + i : i * m.stride + j];
}

Matrix<const double> matrix(const Tensor& t, bool transposed) {
  return {t.data<double>(), t.size(1), transposed};
}

}  // namespace

TEST_CASE("gemm: leaves the number of threads as it was, and does not depend on it") {
  const int before = thread_count();
  const Tensor a = f32({300, 200}, "a"), b = f32({200, 260}, "b");
  std::vector<Tensor> results;
  for (const int threads : {1, 2, 3}) {
    omp_set_num_threads(threads);
    const Tensor c = empty({300, 260}, Dtype::f32);
    gemm<float>(300, 260, 200, 1, {a.data<float>(), 200}, {b.data<float>(), 260}, 0,
                {c.data<float>(), 260});
    CHECK(thread_count() == threads);
    results.push_back(c);
  }
  omp_set_num_threads(before);
  CHECK(same_bits(results[0], results[1]));
  CHECK(same_bits(results[0], results[2]));
}

TEST_CASE("parallel_gemm: equals three loops in every orientation, added to or not") {
  struct Size {
    int64_t m, n, k;
  };
  for (const Size s : {Size{1, 1, 1}, Size{3, 500, 7}, Size{400, 5, 9}, Size{129, 130, 65},
                       Size{200, 33, 300}, Size{70, 70, 600}, Size{300, 290, 3}, Size{5, 4, 0}})
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const double beta : {0.0, 1.0}) {
          INFO(s.m << " x " << s.n << " x " << s.k << ", " << ta << tb << ", beta " << beta);
          const Tensor a = normal(ta ? Shape{s.k, s.m} : Shape{s.m, s.k}, 1, "a");
          const Tensor b = normal(tb ? Shape{s.n, s.k} : Shape{s.k, s.n}, 1, "b");
          const Tensor c = normal({s.m, s.n}, 1, "c"), expected = c.clone();
          if (beta == 0) c.fill(NAN);
          for (int64_t i = 0; i < s.m; ++i)
            for (int64_t j = 0; j < s.n; ++j) {
              double sum = 0;
              for (int64_t p = 0; p < s.k; ++p)
                sum += at(matrix(a, ta), i, p) * at(matrix(b, tb), p, j);
              double& to = expected.data<double>()[i * s.n + j];
              to = 0.5 * sum + (beta != 0 ? beta * to : 0);
            }
          parallel_gemm<double>(s.m, s.n, s.k, 0.5, matrix(a, ta), matrix(b, tb), beta,
                                {c.data<double>(), s.n});
          CHECK(difference(c, expected) < 1e-13);
        }
}
