#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "core/random.h"
#include "kernels/contract/agreement.h"

namespace weft::autograd {
namespace {

// f'(0) of the function s -> loss at displacement s, by five points; h is the step.
double derivative(const std::function<double(double)>& at, double h) {
  return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
}

std::vector<int64_t> index_of(const Shape& shape, int64_t flat) {
  std::vector<int64_t> index(static_cast<size_t>(shape.dims()));
  for (int d = shape.dims() - 1; d >= 0; --d) {
    index[static_cast<size_t>(d)] = flat % shape[d];
    flat /= shape[d];
  }
  return index;
}

struct Worst {
  double scale = 0, abs = 0, analytic = 0, numeric = 0;
  int64_t at = 0;
  void see(int64_t i, double a, double n) {
    const bool finite = std::isfinite(a) && std::isfinite(n);
    const double error = finite ? std::abs(a - n) : std::numeric_limits<double>::infinity();
    if (finite) scale = std::max({scale, std::abs(a), std::abs(n)});
    if (i == 0 || error > abs) {
      abs = error;
      at = i;
      analytic = a;
      numeric = n;
    }
  }
};

}  // namespace

InputReport check_input(const std::string& name, const std::function<double()>& loss,
                        const Tensor& x, const Tensor& gradient, const GradcheckOptions& o) {
  require(x.dtype() == Dtype::f64 && x.is_contiguous(), "gradcheck: input ", name, " is ",
          x.dtype(), ", expected a contiguous f64 tensor");
  require(gradient.shape() == x.shape(), "gradcheck: the gradient of ", name, " has shape ",
          gradient.shape(), ", expected ", x.shape());
  double* const value = x.data<double>();
  const std::vector<double> analytic = to_doubles(gradient);
  const int64_t n = x.numel();
  Worst worst;
  if (o.directions == 0) {
    for (int64_t i = 0; i < n; ++i) {
      const double before = value[i];
      const auto at = [&](double s) {
        value[i] = before + s;
        x.mark_written();
        return loss();
      };
      // An infinity stays where it is, whatever is added to it.
      const double numeric =
          std::isinf(before) ? 0 : derivative(at, o.step * std::max(1.0, std::abs(before)));
      value[i] = before;
      worst.see(i, analytic[static_cast<size_t>(i)], numeric);
    }
  } else {
    const std::vector<double> before(value, value + n);
    for (int d = 0; d < o.directions; ++d) {
      const Random random(o.seed, stream_of(name) + static_cast<uint64_t>(d));
      std::vector<double> direction(before.size());
      double along = 0;
      for (size_t i = 0; i < direction.size(); ++i) {
        direction[i] = random.normal(i);
        along += direction[i] * analytic[i];
      }
      const auto at = [&](double s) {
        for (size_t i = 0; i < before.size(); ++i) value[i] = before[i] + s * direction[i];
        x.mark_written();
        return loss();
      };
      worst.see(d, along, derivative(at, o.step / std::sqrt(static_cast<double>(n) + 1)));
      std::copy(before.begin(), before.end(), value);
    }
  }
  x.mark_written();
  InputReport r;
  r.name = name;
  r.max_abs = worst.abs;
  r.analytic = worst.analytic;
  r.numeric = worst.numeric;
  // A gradient that is zero everywhere is compared with rounding alone.
  r.max_rel = worst.abs == 0 ? 0 : worst.abs / std::max(worst.scale, 1e-3);
  r.at = o.directions ? std::vector<int64_t>{worst.at} : index_of(x.shape(), worst.at);
  r.passed = kernels::within(r.max_rel, o.bound);
  return r;
}

GradcheckReport gradcheck(const std::function<std::vector<Var>(const std::vector<Var>&)>& f,
                          const std::vector<NamedInput>& inputs, const GradcheckOptions& o) {
  std::vector<Var> leaves;
  for (const NamedInput& in : inputs) leaves.push_back(Var::leaf(in.value));
  const std::vector<Var> y = f(leaves);
  std::vector<std::pair<Var, Tensor>> results;
  std::vector<Tensor> weights;
  for (size_t i = 0; i < y.size(); ++i) {
    weights.emplace_back();
    if (!y[i]) continue;
    weights[i] = empty(y[i].shape(), Dtype::f64);
    const Random random(o.seed, stream_of("weight") + i);
    for (int64_t j = 0; j < weights[i].numel(); ++j)
      weights[i].data<double>()[j] = random.normal(static_cast<uint64_t>(j));
    if (y[i].requires_grad()) results.emplace_back(y[i], weights[i].clone());
  }
  backward(results);

  const auto loss = [&] {
    const NoGrad no_grad;
    double total = 0;
    const std::vector<Var> now = f(leaves);
    for (size_t i = 0; i < now.size(); ++i) {
      if (!now[i]) continue;
      const std::vector<double> a = to_doubles(now[i].value()), w = to_doubles(weights[i]);
      for (size_t j = 0; j < a.size(); ++j) total += a[j] * w[j];
    }
    return total;
  };
  GradcheckReport report;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor g = leaves[i].grad() ? leaves[i].grad() : zeros_like(inputs[i].value);
    report.inputs.push_back(check_input(inputs[i].name, loss, inputs[i].value, g, o));
  }
  return report;
}

bool GradcheckReport::passed() const {
  return std::all_of(inputs.begin(), inputs.end(), [](const InputReport& r) { return r.passed; });
}

std::string GradcheckReport::text() const {
  std::string all;
  for (const InputReport& r : inputs) {
    std::string at;
    for (const int64_t i : r.at) at += (at.empty() ? "" : ", ") + std::to_string(i);
    char line[256];
    std::snprintf(line, sizeof line,
                  "%-14s rel %.1e abs %.1e at [%s]: analytic %.12g, numeric %.12g%s\n",
                  r.name.c_str(), r.max_rel, r.max_abs, at.c_str(), r.analytic, r.numeric,
                  r.passed ? "" : "  FAILED");
    all += line;
  }
  return all;
}

}  // namespace weft::autograd
