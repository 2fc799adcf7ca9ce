// The definition of the forget gate, and the cases worth testing.
#pragma once

#include "kernels/contract/reference.h"
#include "kernels/features/forget_gate.h"

namespace weft::kernels {

template <>
struct Reference<ForgetGate> {
  // sigmoid and its logarithm, without overflow on either side.
  template <class S>
  static S sigmoid(S x) {
    using std::exp;
    if (x > S(0)) return S(1) / (S(1) + exp(-x));
    const S e = exp(x);
    return e / (S(1) + e);
  }
  template <class S>
  static S log_sigmoid(S x) {
    using std::exp, std::log1p;
    return x > S(0) ? -log1p(exp(-x)) : x - log1p(exp(x));
  }

  template <class S>
  static void naive(Inputs<ForgetGate, View<S>> x, const ForgetGate::Options& o,
                    Outputs<ForgetGate, View<S>> y) {
    using std::log, std::log1p;
    for (int64_t r = 0; r < x.x.size(0); ++r)
      for (int64_t d = 0; d < x.x.size(1); ++d) {
        const S u = x.x(r, d), k = S(1 - o.bound) * sigmoid(-u);
        y.k(r, d) = k;
        if (o.bound == 0)
          y.g(r, d) = log_sigmoid(u);
        else if (k < S(0.5))
          y.g(r, d) = log1p(-k);
        else
          y.g(r, d) = log(S(o.bound) + S(1 - o.bound) * sigmoid(u));
      }
  }

  static std::vector<Case<ForgetGate>> cases() {
    const auto make = [](const char* name, const Shape& shape, double bound) {
      return Case<ForgetGate>{name, {normal(shape, 1, "x", 2)}, {bound}};
    };
    std::vector<Case<ForgetGate>> list = {make("no bound", {5, 7}, 0), make("bound", {5, 7}, 0.4),
                                          make("one number", {1, 1}, 0.9),
                                          make("no rows", {0, 4}, 0.5)};
    for (const double bound : {0.0, 1e-6, 0.75}) {
      auto& c = list.emplace_back(make("far out", {2, 6}, bound));
      c.name = concat("far out, bound ", bound);
      const double far[] = {-300, -60, -9, 9, 60, 300};
      for (int64_t i = 0; i < 6; ++i) c.x.x.data<double>()[i] = far[i];
    }
    list.emplace_back(make("transposed", {5, 3}, 0.2)).x.x =
        normal({3, 7}, 1, "x").slice(1, 1, 6).transpose(0, 1);
    return list;
  }

  static Bench<ForgetGate> bench(int64_t T) {
    return {{normal({T, 1024}, 1, "x")}, {0.5}, rows_flops(8.0 * static_cast<double>(T * 1024))};
  }
};

}  // namespace weft::kernels
