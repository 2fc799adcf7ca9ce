// The functions of one number of functions.h for device code: accumulating types are fp32, and
// errors a few units in its last place, whatever the dtype of the tensors (the loops around them
// wait for memory).
#pragma once

#include "kernels/rows/functions.h"
#include "kernels/tile/warp.cuh"

namespace weft::kernels::device {

using tile::sigmoid, tile::softplus;

// 1 - 2 / (e^2x + 1) cancels near 0, where the odd series takes over.
__device__ __forceinline__ float tanh_of(float x) {
  const float s = x * x;
  float p = -5.70498872745e-3f;
  p = fmaf(p, s, 2.06390887954e-2f);
  p = fmaf(p, s, -5.37397155531e-2f);
  p = fmaf(p, s, 1.33314422036e-1f);
  p = fmaf(p, s, -3.33332819422e-1f);
  const float near = fmaf(x * s, p, x);
  const float far = 1.0f - __fdividef(2.0f, __expf(2.0f * x) + 1.0f);
  return s < 0.390625f ? near : far;
}

// (1 + erf(x / sqrt(2))) / 2, the part of a normal distribution below x, as the sigmoid of an odd
// polynomial fitted to log(p / (1 - p)): half the work of erff, off by 2e-7 at most in fp32. Beyond
// 6 the polynomial goes on as a line, and the result is 0 or 1.
__device__ __forceinline__ float normal_below(float x) {
  const float s = fminf(x * x, 36.0f);
  float p = 3.61129484e-9f;
  p = fmaf(p, s, -2.66895667e-7f);
  p = fmaf(p, s, 7.93826591e-6f);
  p = fmaf(p, s, -1.10480663e-4f);
  p = fmaf(p, s, -6.62588581e-5f);
  p = fmaf(p, s, 7.26685657e-2f);
  p = fmaf(p, s, 1.59576843f);
  return sigmoid(x * p);
}

struct Silu : kernels::Silu {
  static __device__ float value(float x) { return x * sigmoid(x); }
  static __device__ float slope(float x) {
    const float s = sigmoid(x);
    return s * fmaf(x, 1.0f - s, 1.0f);
  }
};

struct Gelu : kernels::Gelu {
  static __device__ float value(float x) { return x * normal_below(x); }
  static __device__ float slope(float x) {
    const float density = 0.398942280f * __expf(-0.5f * x * x);  // 1 / sqrt(2 pi)
    return fmaf(x, density, normal_below(x));
  }
};

// 0.5 x (1 + tanh(u)) is x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh : kernels::GeluTanh {
  static __device__ float value(float x) {
    return x * sigmoid(1.59576912f * x * fmaf(0.044715f * x, x, 1.0f));
  }
  static __device__ float slope(float x) {
    // Beyond +-9 it is 0 or 1, and the polynomials would overflow.
    const float low = x < -9.0f ? -9.0f : x, c = low > 9.0f ? 9.0f : low;
    const float e = __expf(-1.59576912f * c * fmaf(0.044715f * c, c, 1.0f));
    const float s = __fdividef(1.0f, 1.0f + e);
    const float du = 1.59576912f * fmaf(0.134145f * c, c, 1.0f);
    return fmaf(c * du * s, e * s, s);  // e s is 1 - s without the cancellation
  }
};

struct Relu : kernels::Relu {
  static __device__ float value(float x) { return x > 0 ? x : x * 0.0f; }  // NaN stays
  static __device__ float slope(float x) { return x > 0 ? 1.0f : 0.0f; }
};

struct Sigmoid : kernels::Sigmoid {
  static __device__ float value(float x) { return sigmoid(x); }
  static __device__ float slope(float x) {
    const float s = sigmoid(x);
    return s * (1.0f - s);
  }
};

struct Tanh : kernels::Tanh {
  static __device__ float value(float x) { return tanh_of(x); }
  static __device__ float slope(float x) {
    const float t = tanh_of(x);
    return fmaf(-t, t, 1.0f);
  }
};

struct Softplus : kernels::Softplus {
  static __device__ float value(float x) { return softplus(x); }
  static __device__ float slope(float x) { return sigmoid(x); }
};

struct LogSigmoid : kernels::LogSigmoid {
  static __device__ float value(float x) { return -softplus(-x); }
  static __device__ float slope(float x) { return sigmoid(-x); }
};

struct Elu1 : kernels::Elu1 {
  static __device__ float value(float x) { return x > 0 ? x + 1.0f : expf(x); }
  static __device__ float slope(float x) { return x > 0 ? 1.0f : expf(x); }
};

struct Exp : kernels::Exp {
  static __device__ float value(float x) { return expf(x); }
  static __device__ float slope(float x) { return expf(x); }
};

struct SquareRelu : kernels::SquareRelu {
  static __device__ float value(float x) { return Relu::value(x) * Relu::value(x); }
  static __device__ float slope(float x) { return 2.0f * Relu::value(x); }
};

using Activations = FunctionList<Silu, Gelu, GeluTanh, Relu, Sigmoid, Tanh, Softplus, LogSigmoid,
                                 Elu1, Exp, SquareRelu>;
using Gates = FunctionList<Silu, Sigmoid>;

}  // namespace weft::kernels::device
