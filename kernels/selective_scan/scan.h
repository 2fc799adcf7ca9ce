// The scan over one piece of a segment for as many channels as a vector holds, forward and
// backward: the equations of README.md ("Chunkwise", "Backward"). Channels lie in the lanes;
// tokens, then states, are walked one by one.
#pragma once

#include <bit>
#include <cmath>
#include <utility>

#include "kernels/tokens/chunk.h"

namespace weft::kernels::selective_scan {

// e^x for x <= 0; below -87, where fp32 ends, 0: the gradient of a step multiplies it by A, however
// large. NaN goes in and comes out.
inline Vector<float> decay(Vector<float> x) {
  using Bits = Vector<int32_t>;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector<float> c = x < -87.0f ? Vector<float>{} - 87.0f : x;
  const Vector<float> shifted = c * 1.44269504f + kRound;
  const Vector<float> n = shifted - kRound;
  const Vector<float> r = (c - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // The low bits of `shifted` are n, and go where the exponent of p stands.
  const auto y = reinterpret_cast<Vector<float>>(reinterpret_cast<Bits>(p) +
                                                 (reinterpret_cast<Bits>(shifted) << 23));
  return x < -87.0f ? Vector<float>{} : y;
}
inline Vector<double> decay(Vector<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// Lane i of the result is the sum of v[i]: each round adds the halves of two vectors and keeps
// both.
template <class Real>
Vector<Real> totals(Vector<Real> (&v)[kLanes<Real>]) {
  constexpr int kWidth = kLanes<Real>;
  using Index = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  const auto round = [&]<int kHalf, int... kLane>(std::integer_sequence<int, kLane...>) {
    constexpr Vector<Index> own = {(kLane & kHalf ? kWidth + kLane : kLane)...};
    constexpr Vector<Index> other = {
        (kLane & kHalf ? kWidth + (kLane ^ kHalf) : (kLane ^ kHalf))...};
    for (int i = 0; i < kWidth; i += 2 * kHalf)
      v[i] =
          __builtin_shuffle(v[i], v[i + kHalf], own) + __builtin_shuffle(v[i], v[i + kHalf], other);
  };
  constexpr auto lane_numbers = std::make_integer_sequence<int, kWidth>{};
  [&]<int... kRound>(std::integer_sequence<int, kRound...>) {
    (round.template operator()<(1 << kRound)>(lane_numbers), ...);
  }
  (std::make_integer_sequence<int, std::countr_zero(static_cast<unsigned>(kWidth))>{});
  return v[0];
}

template <class Real>
struct Group {
  static constexpr int kWidth = kLanes<Real>;

  // Arrays for L tokens and K states.
  Group(Carver<Real>& scratch, int64_t L, int64_t states, bool with_gradients) : K(states) {
    const auto take = [&](int64_t n) { return scratch.row(n * kWidth); };
    A = take(K), D = take(1), bias = take(1);
    raw = take(L), step = take(L), x = take(L), z = take(L), o = take(L);
    h = take(with_gradients ? (L + 1) * K : K);
    if (!with_gradients) return;
    a = take(L * K), dh = take(K), dA = take(K), dD = take(1), dbias = take(1), g = take(L);
  }

  int64_t K;
  Real *A, *D, *bias;            // [K, lanes], [lanes], [lanes]; A = -exp(A_log)
  Real *raw, *step, *x, *z, *o;  // [L, lanes]; step = softplus(raw)
  Real* h;  // [K, lanes]: the state; with gradients [L + 1, K, lanes]: all of them
  Real *a = nullptr, *dh = nullptr, *dA = nullptr, *dD = nullptr, *dbias = nullptr;
  Real* g = nullptr;  // [L, lanes]: gradient of o, then of what silu(z) multiplies

  // raw as it came, x and z are there: o, and h after n tokens. B and C: [n, K].
  void forward(int64_t n, MatrixView<const Real> B, MatrixView<const Real> C, bool gate) {
    steps(n);
    walk<false>(n, B, C);
    if (!gate) return;
#pragma omp simd
    for (int64_t i = 0; i < n * kWidth; ++i) o[i] *= z[i] * vsigmoid(z[i]);
  }

  // The same from h and with dh, the gradient of the state after the piece, and g, that of o. Then
  // x, raw and z hold their gradients, and dh that of the state before. dA, dD and dbias are added
  // to. dB, dC: [n, tiled(K)], set or (if `add`) added to.
  void backward(int64_t n, MatrixView<const Real> B, MatrixView<const Real> C, bool gate, Real* dB,
                Real* dC, int64_t d_stride, bool add) {
    steps(n);
    walk<true>(n, B, C);
    if (gate) {
#pragma omp simd
      for (int64_t i = 0; i < n * kWidth; ++i) {
        const Real open = vsigmoid(z[i]), dout = g[i];
        g[i] = dout * z[i] * open;
        z[i] = dout * o[i] * open * (1 + z[i] * (1 - open));
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < n * kWidth; ++i) raw[i] = vsigmoid(raw[i]);  // softplus'
    for (int64_t t = n - 1; t >= 0; --t)
      token_back(t, B.data + t * B.row, B.column, C.data + t * C.row, C.column, dB + t * d_stride,
                 dC + t * d_stride, add);
  }

 private:
  using Lane = Vector<Real>;

  void steps(int64_t n) {
    for (int64_t t = 0; t < n; ++t) lanes(raw + t * kWidth) += lanes(bias);
#pragma omp simd
    for (int64_t i = 0; i < n * kWidth; ++i) step[i] = vsoftplus(raw[i]);
  }

  template <bool kKeep>
  void walk(int64_t n, MatrixView<const Real> B, MatrixView<const Real> C) {
    for (int64_t t = 0; t < n; ++t) {
      const Real *const b = B.data + t * B.row, *const c = C.data + t * C.row;
      const Real* const before = kKeep ? h + t * K * kWidth : h;
      Real* const after = kKeep ? h + (t + 1) * K * kWidth : h;
      const Lane s = lanes(step + t * kWidth), in = s * lanes(x + t * kWidth);
      Lane sum = lanes(D) * lanes(x + t * kWidth);
      for (int64_t k = 0; k < K; ++k) {
        const Lane by = decay(s * lanes(A + k * kWidth));
        const Lane state = by * lanes(before + k * kWidth) + in * b[k * B.column];
        sum += state * c[k * C.column];
        lanes(after + k * kWidth) = state;
        if (kKeep) lanes(a + (t * K + k) * kWidth) = by;
      }
      lanes(o + t * kWidth) = sum;
    }
  }

  void token_back(int64_t t, const Real* b, int64_t b_stride, const Real* c, int64_t c_stride,
                  Real* dB, Real* dC, bool add) {
    const Real *const before = h + t * K * kWidth, *const after = before + K * kWidth;
    const Real* const by = a + t * K * kWidth;
    const Lane s = lanes(step + t * kWidth), in = lanes(x + t * kWidth),
               out = lanes(g + t * kWidth);
    const Lane written = s * in;
    Lane read = {}, ds = {};
    for (int64_t start = 0; start < K; start += kWidth) {
      Lane to_B[kWidth], to_C[kWidth];
      const int64_t end = std::min<int64_t>(kWidth, K - start);
      for (int64_t i = end; i < kWidth; ++i) to_B[i] = to_C[i] = Lane{};
      for (int64_t i = 0; i < end; ++i) {
        const int64_t k = start + i, at = k * kWidth;
        to_C[i] = out * lanes(after + at);
        const Lane flow = lanes(dh + at) + out * c[k * c_stride];
        to_B[i] = flow * written;
        read += flow * b[k * b_stride];
        const Lane carried = flow * lanes(by + at), w = carried * lanes(before + at);
        ds += w * lanes(A + at);
        lanes(dA + at) += w * s;
        lanes(dh + at) = carried;
      }
      const Lane sum_B = totals<Real>(to_B), sum_C = totals<Real>(to_C);
      lanes(dB + start) = add ? lanes(dB + start) + sum_B : sum_B;
      lanes(dC + start) = add ? lanes(dC + start) + sum_C : sum_C;
    }
    const Lane draw = (ds + in * read) * lanes(raw + t * kWidth);
    lanes(x + t * kWidth) = s * read + lanes(D) * out;
    lanes(raw + t * kWidth) = draw;
    lanes(dD) += out * in;
    lanes(dbias) += draw;
  }
};

}  // namespace weft::kernels::selective_scan
