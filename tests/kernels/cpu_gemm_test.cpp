// Products against three loops, at sizes on both sides of every cut, and against themselves: an
// element keeps its bits whatever stands beside it.
#include "kernels/tile/cpu_gemm.h"

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

namespace {

Tensor filled(const Shape& shape, Dtype dtype) {
  const Tensor t = empty(shape, dtype);
  t.fill(1);
  return t;
}

// Rows i0 .. and columns j0 .. of a product, computed alone, are what they are in the whole.
template <class Real>
void check_part(const Tensor& a, const Tensor& b, const Tensor& whole, bool ta, bool tb, int64_t i0,
                int64_t m, int64_t j0, int64_t n, double beta) {
  const int64_t k = ta ? a.size(0) : a.size(1);
  const Tensor part = filled({m, n}, a.dtype());
  const Real* const left = a.data<Real>() + (ta ? i0 : i0 * a.size(1));
  const Real* const right = b.data<Real>() + (tb ? j0 * b.size(1) : j0);
  gemm<Real>(m, n, k, Real(0.5), {left, a.size(1), ta}, {right, b.size(1), tb}, Real(beta),
             {part.data<Real>(), n});
  INFO(a.dtype() << " " << ta << tb << ", rows " << i0 << " + " << m << ", columns " << j0 << " + "
                 << n << ", k " << k);
  CHECK(same_bits(part, whole.slice(0, i0, i0 + m).slice(1, j0, j0 + n).contiguous()));
}

template <class Real>
void check_parts(Dtype dtype, int64_t k, bool ta, bool tb) {
  constexpr int64_t kM = 401,
                    kN = 70;  // rows and columns beyond each block, none a whole number of them
  const Tensor a = normal(ta ? Shape{k, kM} : Shape{kM, k}, 1, "a").to(dtype);
  const Tensor b = normal(tb ? Shape{kN, k} : Shape{k, kN}, 1, "b").to(dtype);
  for (const double beta : {0.0, 0.75}) {
    const Tensor whole = filled({kM, kN}, dtype);
    parallel_gemm<Real>(kM, kN, k, Real(0.5), {a.data<Real>(), a.size(1), ta},
                        {b.data<Real>(), b.size(1), tb}, Real(beta), {whole.data<Real>(), kN});
    for (const auto& [i0, m] :
         {std::pair<int64_t, int64_t>{0, 1}, {5, 3}, {188, 13}, {400, 1}, {1, 400}})
      check_part<Real>(a, b, whole, ta, tb, i0, m, 0, kN, beta);
    for (const auto& [j0, n] : {std::pair<int64_t, int64_t>{0, 1}, {31, 2}, {65, 5}, {3, 67}})
      check_part<Real>(a, b, whole, ta, tb, 190, 9, j0, n, beta);
  }
}

}  // namespace

TEST_CASE("gemm: an element has the same bits whichever rows and columns stand beside it") {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const int64_t more : {-1, 0, 1, 40}) {
        check_parts<float>(Dtype::f32, kSumPart<float> + more, ta, tb);
        check_parts<double>(Dtype::f64, kSumPart<double> + more, ta, tb);
      }
}

TEST_CASE("gemm: NaN in one row or column reaches no other") {
  const Tensor a = f32({30, 50}, "a"), b = f32({50, 40}, "b");
  const auto product = [&] {
    const Tensor c = empty({30, 40}, Dtype::f32);
    gemm<float>(30, 40, 50, 1, {a.data<float>(), 50}, {b.data<float>(), 40}, 0,
                {c.data<float>(), 40});
    return c;
  };
  const Tensor clean = product();
  a.slice(0, 28, 29).fill(NAN);
  b.slice(1, 37, 38).fill(NAN);
  const Tensor c = product();
  for (const auto& [i0, i1] : {std::pair<int64_t, int64_t>{0, 28}, {29, 30}})
    for (const auto& [j0, j1] : {std::pair<int64_t, int64_t>{0, 37}, {38, 40}})
      CHECK(same_bits(c.slice(0, i0, i1).slice(1, j0, j1).contiguous(),
                      clean.slice(0, i0, i1).slice(1, j0, j1).contiguous()));
}
