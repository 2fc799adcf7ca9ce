// Elementary functions for inner loops. The float forms have no branch and no call, so that the
// compiler turns a loop over them into vector instructions (always inlined: a loop with a call left
// in it stays scalar); errors are a few units in the last place.
// The double forms are the standard library's: fp64 is for truth, not for speed.
// NaN goes in and comes out.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace weft::kernels {

// e^x. Below -87.3 it is 0, above 88.7 infinity; -infinity gives exactly 0.
[[gnu::always_inline]] inline float vexp(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float low = x < -87.3f ? -87.3f : x;
  const float c = low > 88.7f ? 88.7f : low;
  const float shifted = c * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors, since n = 128 has no float of its own.
  const auto e =
      static_cast<int32_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound));
  const int32_t half = e >> 1;
  const float a = std::bit_cast<float>((half + 127) << 23);
  const float b = std::bit_cast<float>((e - half + 127) << 23);
  const float y = p * a * b;
  const float small = x < -87.3f ? 0.0f : y;
  return x > 88.72f ? INFINITY : small;
}
inline double vexp(double x) { return std::exp(x); }

// 1 / (1 + e^-x)
[[gnu::always_inline]] inline float vsigmoid(float x) { return 1.0f / (1.0f + vexp(-x)); }
inline double vsigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

[[gnu::always_inline]] inline float vtanh(float x) {
  const float s = x * x;
  // Near 0 the odd series, elsewhere by the exponential, which would cancel near 0.
  float p = -5.70498872745e-3f;
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const float near = x + x * s * p;
  const float far = 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f);
  return s < 0.390625f ? near : far;
}
inline double vtanh(double x) { return std::tanh(x); }

// log(1 + u) for 0 <= u <= 1, by the series of 2 artanh(u / (2 + u)).
[[gnu::always_inline]] inline float vlog1p_unit(float u) {
  const float s = u / (2.0f + u), q = s * s;
  float p = 2.0f / 15;
  p = p * q + 2.0f / 13;
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return s * p;
}

// log(1 + e^x), by the identity beyond 20, as is its derivative: softplus'(x) = vsigmoid(x).
[[gnu::always_inline]] inline float vsoftplus(float x) {
  const float a = x < 0 ? x : -x;
  const float y = (x > 0 ? x : 0.0f) + vlog1p_unit(vexp(a));
  return x != x ? x : y;
}
inline double vsoftplus(double x) { return x > 20 ? x + std::exp(-x) : std::log1p(std::exp(x)); }

}  // namespace weft::kernels
