// The definitions of the activations, and the cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/rows/activation.h"

namespace weft::kernels {

namespace definition {

template <class S>
S sigmoid(S x) {
  using std::exp;
  if (x > S(0)) return S(1) / (S(1) + exp(-x));
  const S e = exp(x);
  return e / (S(1) + e);
}

template <class S>
S softplus(S x) {
  using std::exp, std::log1p;
  return x > S(0) ? x + log1p(exp(-x)) : log1p(exp(x));
}

template <class S>
S activation(const std::string& kind, S x) {
  using std::exp, std::erf, std::tanh, std::sqrt;
  const S positive = x <= S(0) ? S(0) : x;
  if (kind == "silu") return x * sigmoid(x);
  if (kind == "gelu") return S(0.5) * x * (S(1) + erf(x / sqrt(S(2))));
  if (kind == "gelu_tanh")
    return S(0.5) * x * (S(1) + tanh(S(std::sqrt(2 / M_PI)) * (x + S(0.044715) * x * x * x)));
  if (kind == "relu") return positive;
  if (kind == "sigmoid") return sigmoid(x);
  if (kind == "tanh") return tanh(x);
  if (kind == "softplus") return softplus(x);
  if (kind == "logsigmoid") return -softplus(-x);
  if (kind == "elu1") return x > S(0) ? x + S(1) : exp(x);
  if (kind == "exp") return exp(x);
  return positive * positive;  // square_relu
}

// Numbers of both signs, some far out; none at zero, where some kinds have a kink.
inline Tensor spread(int64_t R, int64_t D, const std::string& stream, double most) {
  const Tensor t = normal({R, D}, 3, stream, 2);
  const double far[] = {-most, most, -0.3 * most, 0.3 * most, 1e-3, -1e-3};
  for (int64_t i = 0; i < std::min<int64_t>(6, t.numel()); ++i) t.data<double>()[i] = far[i];
  return t;
}

}  // namespace definition

template <>
struct Reference<Activation> {
  template <class S>
  static void naive(Inputs<Activation, View<S>> x, const Activation::Options& o,
                    Outputs<Activation, View<S>> y) {
    for (int64_t r = 0; r < x.x.size(0); ++r)
      for (int64_t d = 0; d < x.x.size(1); ++d)
        y.y(r, d) = definition::activation(o.kind, x.x(r, d));
  }

  static std::vector<Case<Activation>> cases() {
    std::vector<Case<Activation>> list;
    for (const char* kind : {"silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh", "softplus",
                             "logsigmoid", "elu1", "exp", "square_relu"}) {
      const double most = kind == std::string("exp") ? 8 : 30;
      list.push_back({kind, {definition::spread(3, 17, "x", most)}, {kind}});
    }
    list.push_back({"no rows", {normal({0, 5}, 1, "x")}, {}});
    list.push_back(
        {"columns of a wider matrix", {normal({5, 9}, 1, "x").slice(1, 2, 6)}, {"gelu"}});
    list.push_back({"transposed", {normal({4, 6}, 1, "x").transpose(0, 1)}, {"tanh"}});
    return list;
  }

  static Bench<Activation> bench(int64_t T) {
    return {{normal({T, 2048}, 1, "x")}, {}, rows_flops(4.0 * static_cast<double>(T * 2048))};
  }

  static std::vector<GpuShape> gpu_shapes() {
    return {rows_shape("activation", 32768, 3072, {}, {{"kind", "gelu"}})};
  }
};

template <>
struct Reference<GatedActivation> {
  template <class S>
  static void naive(Inputs<GatedActivation, View<S>> x, const GatedActivation::Options& o,
                    Outputs<GatedActivation, View<S>> y) {
    for (int64_t r = 0; r < x.a.size(0); ++r)
      for (int64_t d = 0; d < x.a.size(1); ++d)
        y.y(r, d) = definition::activation(o.kind, x.a(r, d)) * x.b(r, d);
  }

  static std::vector<Case<GatedActivation>> cases() {
    std::vector<Case<GatedActivation>> list;
    for (const char* kind : {"silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh", "softplus",
                             "logsigmoid", "elu1", "exp", "square_relu"}) {
      const double most = kind == std::string("exp") ? 8 : 30;
      list.push_back(
          {kind, {definition::spread(3, 17, "a", most), normal({3, 17}, 1, "b")}, {kind}});
    }
    const Tensor both = normal({5, 14}, 1, "both");
    list.push_back({"halves of one matrix", {both.slice(1, 0, 7), both.slice(1, 7, 14)}, {}});
    list.push_back({"no rows", {normal({0, 5}, 1, "a"), normal({0, 5}, 1, "b")}, {}});
    return list;
  }

  static Bench<GatedActivation> bench(int64_t T) {
    return {{normal({T, 2048}, 1, "a"), normal({T, 2048}, 1, "b")},
            {},
            rows_flops(5.0 * static_cast<double>(T * 2048))};
  }

  static std::vector<GpuShape> gpu_shapes() {
    return {rows_shape("gated_activation", 32768, 2048, {}, {{"kind", "silu"}})};
  }
};

}  // namespace weft::kernels
