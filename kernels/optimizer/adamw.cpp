#include "kernels/optimizer/adamw.h"

#include <atomic>
#include <cmath>

#include "core/parallel.h"
#include "kernels/rows/cuts.h"

namespace weft::kernels {
namespace {

constexpr int64_t kPiece = cuts::kAdamwPiece;
static_assert(kAdamwCut % kPiece == 0);

// Is every value finite? The difference of a number from itself is 0, that of infinity or NaN is
// not.
template <class Real>
bool finite(const Real* x, int64_t begin, int64_t end) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = begin; i < end; ++i) sum += x[i] - x[i];
  return sum == 0;
}

}  // namespace

std::vector<double> gradient_squares(const std::vector<AdamwTensor>& list) {
  std::vector<double> squares;
  for (const AdamwTensor& t : list) {
    if (t.grad.is_meta()) continue;
    for_real(t.grad.dtype(), [&]<class Real>() {
      const Real* const x = t.grad.data<Real>();
      const size_t before = squares.size();
      squares.resize(before + static_cast<size_t>((t.grad.numel() + kPiece - 1) / kPiece));
      parallel_ranges(t.grad.numel(), kPiece, [&](int64_t begin, int64_t end) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; ++i)
          sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        squares[before + static_cast<size_t>(begin / kPiece)] = sum;
      });
    });
  }
  return squares;
}

double gradient_norm(const std::vector<AdamwTensor>& list) {
  double total = 0;
  for (const double square : gradient_squares(list)) total += square;
  return std::sqrt(total);
}

bool adamw(const std::vector<AdamwTensor>& list, const AdamwSettings& s, int64_t step, double lr,
           double factor) {
  const double correct_m = 1 - std::pow(s.beta1, static_cast<double>(step));
  const double correct_v = 1 - std::pow(s.beta2, static_cast<double>(step));
  std::atomic<bool> good{true};
  for (const AdamwTensor& t : list) {
    t.master.mark_written();
    if (t.master.is_meta()) continue;
    for_real(t.master.dtype(), [&]<class Real>() {
      const Real b1 = static_cast<Real>(s.beta1), b2 = static_cast<Real>(s.beta2);
      const Real rate = static_cast<Real>(lr / correct_m), scale = static_cast<Real>(factor);
      const Real root = static_cast<Real>(1 / std::sqrt(correct_v)), eps = static_cast<Real>(s.eps);
      const Real keep = static_cast<Real>(1 - (t.decay ? lr * s.weight_decay : 0.0));
      Real* const p = t.master.data<Real>();
      Real* const m = t.m.data<Real>();
      Real* const v = t.v.data<Real>();
      const Real* const g = t.grad.data<Real>();
      parallel_ranges(t.master.numel(), kPiece, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) {
          const Real d = g[j] * scale;
          m[j] = b1 * m[j] + (1 - b1) * d;
          v[j] = b2 * v[j] + (1 - b2) * d * d;
          p[j] = keep * p[j] - rate * m[j] / (std::sqrt(v[j]) * root + eps);
        }
        // While the piece is in the cache.
        if (!finite(p, begin, end) || !finite(m, begin, end) || !finite(v, begin, end))
          good = false;
      });
    });
    if (t.value) t.value.copy_from(t.master);
  }
  return good;
}

StepNumbers step_numbers(const AdamwSettings& s, int64_t step, double lr) {
  const auto n = static_cast<double>(step);
  StepNumbers x;
  x.rate = static_cast<float>(lr / (1 - std::pow(s.beta1, n)));
  x.root = static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, n)));
  x.decay = static_cast<float>(lr * s.weight_decay);
  x.step = static_cast<float>(step);
  return x;
}

}  // namespace weft::kernels
