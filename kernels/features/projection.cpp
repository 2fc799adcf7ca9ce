#include "kernels/features/projection.h"

#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "core/random.h"
#include "core/text.h"

namespace weft::kernels {
namespace {

// The rows at right angles to those before, one by one, each of length one. Twice, for after once
// rounding leaves a part along the others. Normal rows become a random rotation, uniformly.
void make_orthogonal(double* rows, int64_t K) {
  for (int64_t i = 0; i < K; ++i) {
    double* const row = rows + i * K;
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t j = 0; j < i; ++j) {
        const double* const other = rows + j * K;
        double along = 0;
        for (int64_t d = 0; d < K; ++d) along += row[d] * other[d];
        for (int64_t d = 0; d < K; ++d) row[d] -= along * other[d];
      }
      double square = 0;
      for (int64_t d = 0; d < K; ++d) square += row[d] * row[d];
      for (int64_t d = 0; d < K; ++d) row[d] /= std::sqrt(square);
    }
  }
}

double normal_length(const Random& random, int64_t first, int64_t K) {
  double square = 0;
  for (int64_t d = 0; d < K; ++d) {
    const double x = random.normal(static_cast<uint64_t>(first + d));
    square += x * x;
  }
  return std::sqrt(square);
}

}  // namespace

Tensor random_projection(const Projection& p) {
  const int64_t M = p.features, K = p.width, blocks = (M + K - 1) / K;
  require(p.heads > 0 && M > 0 && K > 0, "random_projection: ", p.heads, " heads, ", M,
          " features, width ", K, "; expected at least 1 of each");
  const Tensor w = empty({p.heads, M, K}, Dtype::f64);
  std::vector<double> all(static_cast<size_t>(p.heads * blocks * K * K));
  parallel_for(p.heads, [&](int64_t h) {
    const Random random(p.seed, stream_of(concat("projection of layer ", p.layer, ", head ", h,
                                                 ", draw ", p.draw)));
    double* const rows = all.data() + h * blocks * K * K;
    const int64_t n = blocks * K * K;
    for (int64_t i = 0; i < n; ++i) rows[i] = random.normal(static_cast<uint64_t>(i));
    for (int64_t b = 0; p.orthogonal && b < blocks; ++b) make_orthogonal(rows + b * K * K, K);
    for (int64_t i = 0; i < M; ++i) {
      const double length = p.orthogonal ? normal_length(random, n + i * K, K) : 1;
      for (int64_t d = 0; d < K; ++d)
        w.data<double>()[(h * M + i) * K + d] = length * rows[i * K + d];
    }
  });
  return w;
}

}  // namespace weft::kernels
