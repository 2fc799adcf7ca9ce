// A number that remembers how it was made, so that the machine differentiates a naive form exactly.
// Reverse mode on a flat list of steps: each holds its (at most two) operands and the derivative by
// each. This is what the hand-derived backward passes are held to; it shares no line with them.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace weft::kernels {

class Traced {
 public:
  Traced() = default;
  Traced(double value) : value_(value) {}  // NOLINT: constants mix freely with traced numbers

  // An input: its gradient can be asked for after backward.
  static Traced input(double value) {
    Traced t(value);
    t.step_ = push({});
    return t;
  }

  double value() const { return value_; }
  explicit operator double() const { return value_; }

  // Forgets all steps. Traced numbers made before are constants no longer valid to differentiate.
  static void reset() { steps().clear(); }
  // Adds `gradient` to what flows into t; call for each output, then run().
  static void seed(const Traced& t, double gradient) {
    if (t.step_ >= 0) flow(t.step_) += gradient;
  }
  // Carries all seeds back to the inputs.
  static void run() {
    for (auto i = static_cast<int64_t>(steps().size()) - 1; i >= 0; --i) {
      const Step s = steps()[static_cast<size_t>(i)];
      if (s.a >= 0) flow(s.a) += s.by_a * s.flow;
      if (s.b >= 0) flow(s.b) += s.by_b * s.flow;
    }
  }
  double gradient() const { return step_ < 0 ? 0 : flow(step_); }

  friend Traced operator+(Traced x, Traced y) { return of(x.value_ + y.value_, x, 1, y, 1); }
  friend Traced operator-(Traced x, Traced y) { return of(x.value_ - y.value_, x, 1, y, -1); }
  friend Traced operator*(Traced x, Traced y) {
    return of(x.value_ * y.value_, x, y.value_, y, x.value_);
  }
  friend Traced operator/(Traced x, Traced y) {
    const double q = x.value_ / y.value_;
    return of(q, x, 1 / y.value_, y, -q / y.value_);
  }
  friend Traced operator-(Traced x) { return of(-x.value_, x, -1); }
  Traced& operator+=(Traced y) { return *this = *this + y; }
  Traced& operator-=(Traced y) { return *this = *this - y; }
  Traced& operator*=(Traced y) { return *this = *this * y; }
  Traced& operator/=(Traced y) { return *this = *this / y; }

  friend bool operator<(Traced x, Traced y) { return x.value_ < y.value_; }
  friend bool operator>(Traced x, Traced y) { return x.value_ > y.value_; }
  friend bool operator<=(Traced x, Traced y) { return x.value_ <= y.value_; }
  friend bool operator>=(Traced x, Traced y) { return x.value_ >= y.value_; }
  friend bool operator==(Traced x, Traced y) { return x.value_ == y.value_; }

  friend Traced exp(Traced x) {
    const double e = std::exp(x.value_);
    return of(e, x, e);
  }
  friend Traced log(Traced x) { return of(std::log(x.value_), x, 1 / x.value_); }
  friend Traced log1p(Traced x) { return of(std::log1p(x.value_), x, 1 / (1 + x.value_)); }
  friend Traced expm1(Traced x) { return of(std::expm1(x.value_), x, std::exp(x.value_)); }
  friend Traced sqrt(Traced x) {
    const double r = std::sqrt(x.value_);
    return of(r, x, 0.5 / r);
  }
  friend Traced tanh(Traced x) {
    const double t = std::tanh(x.value_);
    return of(t, x, 1 - t * t);
  }
  friend Traced erf(Traced x) {
    return of(std::erf(x.value_), x, 2 / std::sqrt(M_PI) * std::exp(-x.value_ * x.value_));
  }
  friend Traced sin(Traced x) { return of(std::sin(x.value_), x, std::cos(x.value_)); }
  friend Traced cos(Traced x) { return of(std::cos(x.value_), x, -std::sin(x.value_)); }

 private:
  struct Step {
    int64_t a = -1, b = -1;
    double by_a = 0, by_b = 0, flow = 0;
  };
  static std::vector<Step>& steps() {
    static thread_local std::vector<Step> all;
    return all;
  }
  static double& flow(int64_t step) { return steps()[static_cast<size_t>(step)].flow; }
  static int64_t push(const Step& s) {
    steps().push_back(s);
    return static_cast<int64_t>(steps().size()) - 1;
  }
  static Traced of(double value, Traced x, double by_x) { return of(value, x, by_x, 0.0, 0); }
  static Traced of(double value, Traced x, double by_x, Traced y, double by_y) {
    Traced t(value);
    if (x.step_ >= 0 || y.step_ >= 0)
      t.step_ = push({.a = x.step_, .b = y.step_, .by_a = by_x, .by_b = by_y});
    return t;
  }

  double value_ = 0;
  int64_t step_ = -1;
};

}  // namespace weft::kernels
