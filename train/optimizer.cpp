#include "train/optimizer.h"

#include <cmath>
#include <numbers>

#include "core/parallel.h"

namespace weft::train {
namespace {

constexpr int64_t kPiece = 1 << 14;  // elements a thread takes at a time

}  // namespace

double schedule_factor(const ScheduleSettings& s, int64_t step, int64_t steps) {
  if (step < s.warmup) return static_cast<double>(step + 1) / static_cast<double>(s.warmup);
  const auto from = [&](double begin) {
    const double length = std::max(1.0, static_cast<double>(steps) - begin);
    return std::clamp((static_cast<double>(step) - begin) / length, 0.0, 1.0);
  };
  if (s.type == "cosine") {
    const double part = from(static_cast<double>(s.warmup));
    return s.final + (1 - s.final) * 0.5 * (1 + std::cos(std::numbers::pi * part));
  }
  if (s.type == "wsd") {
    const double begin = static_cast<double>(steps) * (1 - s.decay);
    return 1 - (1 - s.final) * from(std::max(begin, static_cast<double>(s.warmup)));
  }
  return 1;
}

AdamW::AdamW(const OptimizerSettings& settings, const std::vector<layers::Parameter>& parameters)
    : settings_(settings), parameters_(parameters) {
  const OwnerScope owner("optimizer");
  for (const layers::Parameter& p : parameters_)
    moments_.push_back({zeros_like(p.var.value()), zeros_like(p.var.value())});
}

double AdamW::gradient_norm() const {
  double total = 0;
  std::vector<double> partial;
  for (const layers::Parameter& p : parameters_) {
    const Tensor& g = p.var.grad();
    if (g.is_meta()) continue;
    for_real(g.dtype(), [&]<class T>() {
      const T* const x = g.data<T>();
      partial.assign(static_cast<size_t>((g.numel() + kPiece - 1) / kPiece), 0.0);
      parallel_ranges(g.numel(), kPiece, [&](int64_t begin, int64_t end) {
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; ++i)
          sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        partial[static_cast<size_t>(begin / kPiece)] = sum;
      });
      for (const double s : partial) total += s;
    });
  }
  return std::sqrt(total);
}

void AdamW::step(int64_t step, double lr, double factor) {
  const double correct_m = 1 - std::pow(settings_.beta1, static_cast<double>(step));
  const double correct_v = 1 - std::pow(settings_.beta2, static_cast<double>(step));
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const layers::Parameter& parameter = parameters_[i];
    const Tensor &value = parameter.var.value(), &grad = parameter.var.grad();
    value.mark_written();
    if (value.is_meta()) continue;
    for_real(value.dtype(), [&]<class T>() {
      const T b1 = static_cast<T>(settings_.beta1), b2 = static_cast<T>(settings_.beta2);
      const T rate = static_cast<T>(lr / correct_m), scale = static_cast<T>(factor);
      const T root = static_cast<T>(1 / std::sqrt(correct_v)), eps = static_cast<T>(settings_.eps);
      const T keep = static_cast<T>(1 - (parameter.decay ? lr * settings_.weight_decay : 0.0));
      T* const p = value.data<T>();
      T* const m = moments_[i].m.data<T>();
      T* const v = moments_[i].v.data<T>();
      const T* const g = grad.data<T>();
      parallel_ranges(value.numel(), kPiece, [&](int64_t begin, int64_t end) {
#pragma omp simd
        for (int64_t j = begin; j < end; ++j) {
          const T d = g[j] * scale;
          m[j] = b1 * m[j] + (1 - b1) * d;
          v[j] = b2 * v[j] + (1 - b2) * d * d;
          p[j] = keep * p[j] - rate * m[j] / (std::sqrt(v[j]) * root + eps);
        }
      });
    });
  }
}

}  // namespace weft::train
