#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/tape.h"

namespace weft::train {
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
    moments_.push_back({zeros_like(p.master), zeros_like(p.master)});
}

std::vector<kernels::AdamwTensor> AdamW::tensors() const {
  std::vector<kernels::AdamwTensor> list;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const layers::Parameter& p = parameters_[i];
    const Tensor copy = p.var.value().shares_memory(p.master) ? Tensor() : p.var.value();
    list.push_back({p.master, moments_[i].m, moments_[i].v, p.var.grad(), copy, p.decay});
  }
  return list;
}

kernels::AdamwSettings AdamW::settings() const {
  return {settings_.beta1, settings_.beta2, settings_.eps, settings_.weight_decay, settings_.clip};
}

std::string AdamW::not_finite() const {
  const auto of = [](const char* kind, const std::string& name, const Tensor& t) {
    if (autograd::all_finite(t)) return std::string();
    const std::vector<double> x = to_doubles(t);
    const auto bad =
        std::count_if(x.begin(), x.end(), [](double value) { return !std::isfinite(value); });
    const bool number = std::none_of(x.begin(), x.end(), [](double v) { return std::isnan(v); });
    return concat(kind, " ", name, number ? " is infinite" : " is not a number", " in ", bad,
                  " of its ", x.size(), " values");
  };
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const std::string& name = parameters_[i].name;
    for (const std::string& found : {of("the parameter", name, parameters_[i].master),
                                     of("the first moment of", name, moments_[i].m),
                                     of("the second moment of", name, moments_[i].v)})
      if (!found.empty()) return found;
  }
  return "";
}

double AdamW::rate(int64_t step, int64_t steps, const ScheduleSettings& schedule) const {
  return settings_.lr * schedule_factor(schedule, step, steps);
}

}  // namespace weft::train
