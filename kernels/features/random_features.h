// Random features of the softmax kernel (FAVOR+). With u = scale x and rows w_1 .. w_M of a
// projection, one projection a head:
//   positive        y_i = M^-1/2 exp(w_i.u - |u|^2 / 2 - shift)
//   trigonometric   y_i = M^-1/2 exp(|u|^2 / 2 - shift) cos(w_i.u), and y_{M+i} with sin
// Over w ~ N(0, 1) the mean of y(q).y(k) is exp(scale^2 q.k), but for the shifts. The projection is
// a constant: it has no gradient. Source: arXiv:2009.14794.
#pragma once

#include "kernels/contract/mechanism.h"

namespace weft::kernels {

// Features that the CPU makes at a time.
inline constexpr int64_t kFeatureBlock = 64;

struct RandomFeatures {
  static constexpr std::string_view name = "random_features";

  template <class X>
  struct Inputs {
    X x, shift;
    auto fields() { return std::tie(x, shift); }
  };
  static constexpr Field kInputs[] = {{"x", "[B, T, H, K]"},
                                      {"shift", "[B, T, H]", /*optional=*/true, /*wide=*/true}};

  // 2 M features where they are trigonometric.
  template <class X>
  struct Outputs {
    X y;
    auto fields() { return std::tie(y); }
  };
  static constexpr Field kOutputs[] = {{"y", "[B, T, H, M]"}};

  struct Options {
    std::string kind = "positive";
    double scale = 0;
    Tensor projection;  // [H, M, K], of any float type, on the device of x
    template <class F>
    void each(F&& f) {
      f("kind", kind, "positive or trigonometric");
      f("scale", scale, "factor on x; 0 stands for K^-1/4");
      f("projection", projection, "[H, M, K]");
    }
  };
  // Backward makes the exponents again.
  struct Saved {};

  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);

  // The scale that o stands for, at a width of K.
  static double scale_of(const Options& o, int64_t K);
  static bool trigonometric(const Options& o) { return o.kind == "trigonometric"; }
};

// The largest exponent of each row, max_i w_i.u - |u|^2 / 2: [B, T, H], f64 for f64 and else f32.
// It is what `shift` should be of a query. x [B, T, H, K], projection [H, M, K], `scale` as above.
Tensor largest_exponents(const Tensor& x, const Tensor& projection, double scale);
void cuda_largest_exponents(const Tensor& x, const Tensor& projection, double scale,
                            const Tensor& largest);

// What `shift` should be of keys that are summed up: the largest exponent of this key and of those
// before it, so that no later key is seen.
struct RunningShift {
  Tensor shift;  // [B, T, H]
  Tensor g;      // [B, T, H * group]: the log of the factor by which the sum so far is to shrink
  Tensor last;   // [N, H], to go on from
};
// Of exponents [B, T, H]; `group` value heads share a head. The documents of cu_seqlens, as in
// kernels/README.md, start from `initial` [N, H], else anew, and then with g = 0.
RunningShift running_shift(const Tensor& exponents, const Tensor& initial, const Tensor& cu_seqlens,
                           int64_t group);
void cuda_running_shift(const Tensor& exponents, const Tensor& initial, const Tensor& cu_seqlens,
                        int64_t group, const RunningShift& out);

}  // namespace weft::kernels
