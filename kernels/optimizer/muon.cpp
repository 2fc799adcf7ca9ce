#include "kernels/optimizer/muon.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "kernels/rows/cuts.h"
#include "kernels/tile/cpu_gemm.h"

namespace weft::kernels {
namespace {

constexpr int64_t kPiece = cuts::kAdamwPiece;
constexpr int kRounds = 5;
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315, kLeast = 1e-7;

// f(i) for each number of n, in pieces; the sums of f over the pieces, added in their order.
template <class F>
double sum_of(int64_t n, const F& f) {
  std::vector<double> sums(static_cast<size_t>((n + kPiece - 1) / kPiece));
  parallel_ranges(n, kPiece, [&](int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += f(i);
    sums[static_cast<size_t>(begin / kPiece)] = sum;
  });
  double all = 0;
  for (const double sum : sums) all += sum;
  return all;
}

// One matrix [rows, columns], and room for its step: x and y of its size, a and b of the smaller
// side squared.
template <class Real>
class Orthogonal {
 public:
  Orthogonal(int64_t rows, int64_t columns, Real* room)
      : rows_(rows),
        columns_(columns),
        small_(std::min(rows, columns)),
        large_(std::max(rows, columns)),
        x_(room),
        y_(x_ + rows * columns),
        a_(y_ + rows * columns),
        b_(a_ + small_ * small_) {}

  // Where u of (row, column) is put before finish().
  Real& at(int64_t i) {
    return rows_ <= columns_ ? x_[i] : x_[i % columns_ * rows_ + i / columns_];
  }

  void finish() {
    const int64_t n = rows_ * columns_;
    const double norm = std::sqrt(sum_of(
        n, [&](int64_t i) { return static_cast<double>(x_[i]) * static_cast<double>(x_[i]); }));
    const Real shrink = static_cast<Real>(1 / std::max(norm, kLeast));
    parallel_ranges(n, kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) x_[i] *= shrink;
    });
    for (int round = 0; round < kRounds; ++round) once();
  }

 private:
  void once() {
    using M = Matrix<const Real>;
    const int64_t r = small_, c = large_;
    parallel_gemm<Real>(r, r, c, Real(1), M{x_, c}, M{x_, c, true}, Real(0), {a_, r});
    std::copy(a_, a_ + r * r, b_);
    parallel_gemm<Real>(r, r, r, Real(kC), M{a_, r}, M{a_, r}, Real(kB), {b_, r});
    std::copy(x_, x_ + r * c, y_);
    parallel_gemm<Real>(r, c, r, Real(1), M{b_, r}, M{x_, c}, Real(kA), {y_, c});
    std::copy(y_, y_ + r * c, x_);
  }

  int64_t rows_, columns_, small_, large_;
  Real *x_, *y_, *a_, *b_;
};

int64_t rows_of(const MuonTensor& t) { return t.master.size(-2); }
int64_t columns_of(const MuonTensor& t) { return t.master.size(-1); }

double scale_of(const MuonTensor& t, const MuonSettings& s) {
  const auto r = static_cast<double>(rows_of(t)), c = static_cast<double>(columns_of(t));
  return s.like_adamw ? 0.2 * std::sqrt(std::max(r, c)) : std::sqrt(std::max(1.0, r / c));
}

// Returns whether what it left is finite.
template <class Real>
bool step(const MuonTensor& t, const MuonSettings& s, double lr, double factor, Real* room) {
  const int64_t R = rows_of(t), C = columns_of(t), n = R * C;
  const Real mu = static_cast<Real>(s.momentum), f = static_cast<Real>(factor);
  const Real keep = static_cast<Real>(1 - lr * s.weight_decay);
  const Real rate = static_cast<Real>(lr * scale_of(t, s));
  bool good = true;
  for (int64_t i = 0; n > 0 && i < t.master.numel() / n; ++i) {
    Real* const p = t.master.data<Real>() + i * n;
    Real* const m = t.m.data<Real>() + i * n;
    const Real* const g = t.grad.data<Real>() + i * n;
    Orthogonal<Real> x(R, C, room);
    parallel_ranges(n, kPiece, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const Real d = (1 - mu) * (g[j] * f);
        m[j] = mu * m[j] + d;
        x.at(j) = mu * m[j] + d;
      }
    });
    x.finish();
    const double left = sum_of(n, [&](int64_t j) {
      p[j] = keep * p[j] - rate * x.at(j);
      return static_cast<double>((p[j] - p[j]) + (m[j] - m[j]));  // 0 of what is finite
    });
    good = good && left == 0;
  }
  return good;
}

}  // namespace

int64_t muon_room(const std::vector<MuonTensor>& list) {
  int64_t most = 0;
  for (const MuonTensor& t : list) {
    const int64_t small = std::min(rows_of(t), columns_of(t));
    most = std::max(most, 2 * (rows_of(t) * columns_of(t) + small * small));
  }
  return most;
}

bool muon(const std::vector<MuonTensor>& list, const MuonSettings& s, double lr, double factor,
          const Tensor& room) {
  bool good = true;
  for (const MuonTensor& t : list) {
    t.master.mark_written();
    if (t.master.is_meta()) continue;
    for_real(t.master.dtype(),
             [&]<class Real>() { good = step(t, s, lr, factor, room.data<Real>()) && good; });
  }
  return good;
}

}  // namespace weft::kernels
