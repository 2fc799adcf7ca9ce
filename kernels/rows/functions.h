// The functions of one number that `activation` and the gates know, with their derivatives, for
// loops that are to become vector instructions.
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/text.h"
#include "kernels/tile/vmath.h"

namespace weft::kernels {

// erf by a quotient of polynomials on [-4, 4], beyond which it is +-1 in float; off by a few units
// in the last place. The double form is the standard library's.
[[gnu::always_inline]] inline float verf(float x) {
  const float low = x < -4.0f ? -4.0f : x;
  const float c = low > 4.0f ? 4.0f : low;
  const float s = c * c;
  float p = -2.72614225801306e-10f;
  p = p * s + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * s - 2.13374055278905e-04f;
  q = q * s - 1.68282697438203e-03f;
  q = q * s - 7.37332916720468e-03f;
  q = q * s - 1.42647390514189e-02f;
  return c * p / q;
}
inline double verf(double x) { return std::erf(x); }

struct Silu {
  static constexpr std::string_view kind = "silu";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return x * vsigmoid(x);
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    const Real s = vsigmoid(x);
    return s * (Real(1) + x * (Real(1) - s));
  }
};

struct Gelu {
  static constexpr std::string_view kind = "gelu";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return Real(0.5) * x * (Real(1) + verf(x * Real(M_SQRT1_2)));
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    const Real density = Real(0.3989422804014327) * vexp(Real(-0.5) * x * x);  // 1 / sqrt(2 pi)
    return Real(0.5) * (Real(1) + verf(x * Real(M_SQRT1_2))) + x * density;
  }
};

// 0.5 x (1 + tanh(u)) is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  static constexpr std::string_view kind = "gelu_tanh";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return x * vsigmoid(Real(1.5957691216057308) * x * (Real(1) + Real(0.044715) * x * x));
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    // Beyond +-9 it is 0 or 1, and the polynomials would overflow.
    const Real low = x < Real(-9) ? Real(-9) : x;
    const Real c = low > Real(9) ? Real(9) : low;
    const Real e = vexp(Real(-1.5957691216057308) * c * (Real(1) + Real(0.044715) * c * c));
    const Real s = Real(1) / (Real(1) + e);
    const Real du = Real(1.5957691216057308) * (Real(1) + Real(0.134145) * c * c);
    return s + c * du * s * (e * s);  // e s is 1 - s without the cancellation
  }
};

struct Relu {
  static constexpr std::string_view kind = "relu";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return x > 0 ? x : x * Real(0);  // NaN stays
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    return x > 0 ? Real(1) : Real(0);
  }
};

struct Sigmoid {
  static constexpr std::string_view kind = "sigmoid";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return vsigmoid(x);
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    const Real s = vsigmoid(x);
    return s * (Real(1) - s);
  }
};

struct Tanh {
  static constexpr std::string_view kind = "tanh";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return vtanh(x);
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    const Real t = vtanh(x);
    return Real(1) - t * t;
  }
};

struct Softplus {
  static constexpr std::string_view kind = "softplus";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return vsoftplus(x);
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    return vsigmoid(x);
  }
};

struct LogSigmoid {
  static constexpr std::string_view kind = "logsigmoid";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return -vsoftplus(-x);
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    return vsigmoid(-x);
  }
};

struct Elu1 {
  static constexpr std::string_view kind = "elu1";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    const Real e = vexp(x);
    return x > 0 ? x + Real(1) : e;
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    const Real e = vexp(x);
    return x > 0 ? Real(1) : e;
  }
};

struct Exp {
  static constexpr std::string_view kind = "exp";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return vexp(x);
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    return vexp(x);
  }
};

struct SquareRelu {
  static constexpr std::string_view kind = "square_relu";
  template <class Real>
  [[gnu::always_inline]] static Real value(Real x) {
    return Relu::value(x) * Relu::value(x);
  }
  template <class Real>
  [[gnu::always_inline]] static Real slope(Real x) {
    return Real(2) * Relu::value(x);
  }
};

template <class... Functions>
struct FunctionList {
  static std::vector<std::string> names() { return {std::string(Functions::kind)...}; }

  // Throws Error that lists the kinds. `what` is "activation: kind".
  static void check(std::string_view what, const std::string& kind) {
    if (((kind == Functions::kind) || ...)) return;
    fail(what, " is \"", kind, "\"; ", suggestion(kind, names()));
  }

  // Calls f.template operator()<Silu>() for "silu", and so on.
  template <class F>
  static void call(const std::string& kind, const F& f) {
    ((kind == Functions::kind ? (f.template operator()<Functions>(), true) : false) || ...);
  }
};

using Activations = FunctionList<Silu, Gelu, GeluTanh, Relu, Sigmoid, Tanh, Softplus, LogSigmoid,
                                 Elu1, Exp, SquareRelu>;
using Gates = FunctionList<Silu, Sigmoid>;

}  // namespace weft::kernels
