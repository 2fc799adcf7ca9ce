// OpenBLAS is told to use one thread: the threads are ours.
#include "kernels/common/blas.h"

#include <cblas.h>

#include <algorithm>

#include "core/parallel.h"
#include "kernels/common/rounding.h"

namespace weft::kernels {
namespace {

int as_int(int64_t n) { return static_cast<int>(n); }

void call(int m, int n, int k, float alpha, Matrix<const float> a, Matrix<const float> b,
          float beta, Matrix<float> c) {
  cblas_sgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans,
              b.transposed ? CblasTrans : CblasNoTrans, m, n, k, alpha, a.data, as_int(a.stride),
              b.data, as_int(b.stride), beta, c.data, as_int(c.stride));
}

void call(int m, int n, int k, double alpha, Matrix<const double> a, Matrix<const double> b,
          double beta, Matrix<double> c) {
  cblas_dgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans,
              b.transposed ? CblasTrans : CblasNoTrans, m, n, k, alpha, a.data, as_int(a.stride),
              b.data, as_int(b.stride), beta, c.data, as_int(c.stride));
}

// While it lives, OpenBLAS uses the calling thread alone. Its OpenMP build asks OpenMP how many threads
// there are, unless inside a parallel region, and openblas_set_num_threads() there would set that number
// for all our loops; any other build is told once.
class OneThread {
 public:
  OneThread() {
    constexpr int kOpenMp = 2;
    static const bool openmp = openblas_get_parallel() == kOpenMp;
    static const bool told = (openmp || (openblas_set_num_threads(1), true));
    (void)told;
    if (!openmp || omp_in_parallel() || thread_count() == 1) return;
    before_ = thread_count();
    omp_set_num_threads(1);
  }
  ~OneThread() {
    if (before_ > 0) omp_set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_ = 0;
};

}  // namespace

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, T alpha, Matrix<const T> a, Matrix<const T> b, T beta,
          Matrix<T> c) {
  if (m == 0 || n == 0) return;
  std::vector<T> rounded_a, rounded_b;
  if (rounds_operands<T>()) [[unlikely]] {
    const auto round = [](Matrix<const T>& x, int64_t rows, int64_t columns, std::vector<T>& to) {
      if (x.transposed) std::swap(rows, columns);
      to = rounded_operand(rows, columns, x.data, x.stride);
      x = {to.data(), std::max<int64_t>(1, columns), x.transposed};
    };
    round(a, m, k, rounded_a);
    round(b, k, n, rounded_b);
  }
  const OneThread one;
  call(as_int(m), as_int(n), as_int(k), alpha, a, b, beta, c);
}

template <class T>
void parallel_gemm(int64_t m, int64_t n, int64_t k, T alpha, Matrix<const T> a, Matrix<const T> b,
                   T beta, Matrix<T> c) {
  // Panels of the longer side of c. A panel packs the other operand again, so it must not be thin.
  constexpr int64_t kPanel = 192;
  const bool rows = m >= n;
  const int64_t length = rows ? m : n;
  if (length < 2 * kPanel / 3 || m * n * k < 64 * 64 * 64)
    return gemm(m, n, k, alpha, a, b, beta, c);
  // Even in number, so that two threads have the same to do.
  const int64_t panels = (length + 2 * kPanel - 1) / (2 * kPanel) * 2;
  const int64_t width = ((length + panels - 1) / panels + 15) / 16 * 16;
  parallel_for((length + width - 1) / width, [&](int64_t i) {
    const int64_t at = i * width, size = std::min(width, length - at);
    if (rows) {
      const Matrix<const T> part{a.data + (a.transposed ? at : at * a.stride), a.stride,
                                 a.transposed};
      gemm(size, n, k, alpha, part, b, beta, Matrix<T>{c.data + at * c.stride, c.stride});
    } else {
      const Matrix<const T> part{b.data + (b.transposed ? at * b.stride : at), b.stride,
                                 b.transposed};
      gemm(m, size, k, alpha, a, part, beta, Matrix<T>{c.data + at, c.stride});
    }
  });
}

const char* blas_core_name() { return openblas_get_corename(); }

template void gemm(int64_t, int64_t, int64_t, float, Matrix<const float>, Matrix<const float>,
                   float, Matrix<float>);
template void gemm(int64_t, int64_t, int64_t, double, Matrix<const double>, Matrix<const double>,
                   double, Matrix<double>);
template void parallel_gemm(int64_t, int64_t, int64_t, float, Matrix<const float>,
                            Matrix<const float>, float, Matrix<float>);
template void parallel_gemm(int64_t, int64_t, int64_t, double, Matrix<const double>,
                            Matrix<const double>, double, Matrix<double>);

}  // namespace weft::kernels
