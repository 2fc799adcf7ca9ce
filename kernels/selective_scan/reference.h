// The selective scan as a sum over the past, and token by token; the cases worth testing.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/selective_scan/selective_scan.h"
#include "kernels/tokens/pieces.h"
#include "kernels/tokens/resets.h"

namespace weft::kernels {

template <>
struct Reference<SelectiveScan> {
  using Scan = SelectiveScan;

  template <class S>
  static S softplus(S x) {
    using std::exp;
    using std::log1p;
    return x > S(20) ? x + log1p(exp(-x)) : log1p(exp(x));
  }
  template <class S>
  static S step(const Inputs<Scan, View<S>>& x, int64_t b, int64_t t, int64_t e) {
    return softplus(x.dt_bias ? x.dt(b, t, e) + x.dt_bias(e) : x.dt(b, t, e));
  }

  // -A. Infinity times a step of nothing has no value: A_log ends where any step forgets all.
  template <class S>
  static S pace(const Inputs<Scan, View<S>>& x, int64_t e, int64_t k) {
    using std::exp;
    const S log = x.A_log(e, k);
    return exp(log > S(Scan::kFastest) ? S(Scan::kFastest) : log);
  }

  // The state unrolled:  h_t = e^{A (s_1 + .. + s_t)} h_0 + sum_{j<=t} e^{A (s_{j+1} + .. + s_t)}
  // s_j x_j B_j
  template <class S>
  static void naive(Inputs<Scan, View<S>> x, const Scan::Options& o, Outputs<Scan, View<S>> y) {
    using std::exp;
    const int64_t E = x.x.size(2), K = x.B.size(2);
    const Documents docs(o.cu_seqlens, x.x.size(0), x.x.size(1));
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t e = 0; e < E; ++e)
        for (int64_t t = docs.begin(n); t < docs.end(n); ++t) {
          const int64_t b = docs.row(n);
          S out = x.D ? x.D(e) * x.x(b, t, e) : S(0);
          for (int64_t k = 0; k < K; ++k) {
            S h = 0, time = 0;
            for (int64_t j = t; j >= docs.begin(n); --j) {
              const S s = step(x, b, j, e);
              h += exp(-pace(x, e, k) * time) * s * x.x(b, j, e) * x.B(b, j, k);
              time += s;
            }
            if (x.initial_state) h += exp(-pace(x, e, k) * time) * x.initial_state(n, e, k);
            out += x.C(b, t, k) * h;
            if (o.return_state && t == docs.end(n) - 1) y.final_state(n, e, k) = h;
          }
          y.o(b, t, e) = x.z ? out * x.z(b, t, e) / (1 + exp(-x.z(b, t, e))) : out;
        }
  }

  template <class Real>
  static void recurrent(Inputs<Scan, View<Real>> x, const Scan::Options& o,
                        Outputs<Scan, View<Real>> y) {
    const int64_t E = x.x.size(2), K = x.B.size(2);
    const Documents docs(o.cu_seqlens, x.x.size(0), x.x.size(1));
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t e = 0; e < E; ++e) {
        const int64_t b = docs.row(n);
        std::vector<Real> state(static_cast<size_t>(K), Real(0));
        for (int64_t k = 0; k < K && x.initial_state; ++k)
          state[static_cast<size_t>(k)] = x.initial_state(n, e, k);
        for (int64_t t = docs.begin(n); t < docs.end(n); ++t) {
          const Real s = step(x, b, t, e);
          Real out = x.D ? x.D(e) * x.x(b, t, e) : Real(0);
          for (int64_t k = 0; k < K; ++k) {
            Real& h = state[static_cast<size_t>(k)];
            h = std::exp(-pace(x, e, k) * s) * h + s * x.x(b, t, e) * x.B(b, t, k);
            out += x.C(b, t, k) * h;
          }
          y.o(b, t, e) = x.z ? out * x.z(b, t, e) / (1 + std::exp(-x.z(b, t, e))) : out;
        }
        for (int64_t k = 0; k < K && o.return_state; ++k)
          y.final_state(n, e, k) = state[static_cast<size_t>(k)];
      }
  }

  // Time backwards over kept states, dh being the gradient of the state after token t:
  //   dC = g h;  dh += g C;  w = dh a h_before  (a = e^{s A}; w is the gradient of s A)
  //   dB = dh s x;  dx = s dh.B + D g;  ds = w.A + x dh.B;  dA += s w;  dh <- a dh
  template <class Real>
  static void recurrent_backward(Inputs<Scan, View<Real>> x, const Scan::Options& o,
                                 Outputs<Scan, View<Real>> dy, Inputs<Scan, View<Real>> dx) {
    const int64_t E = x.x.size(2), K = x.B.size(2);
    const auto width = static_cast<size_t>(K);
    const Documents docs(o.cu_seqlens, x.x.size(0), x.x.size(1));
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t e = 0; e < E; ++e) {
        const int64_t b = docs.row(n), begin = docs.begin(n), end = docs.end(n);
        std::vector<std::vector<Real>> states(1, std::vector<Real>(width, Real(0))), decays;
        for (size_t k = 0; k < width && x.initial_state; ++k)
          states[0][k] = x.initial_state(n, e, k);
        for (int64_t t = begin; t < end; ++t) {
          const Real s = step(x, b, t, e);
          decays.emplace_back(width);
          states.emplace_back(states.back());
          for (size_t k = 0; k < width; ++k) {
            decays.back()[k] = std::exp(-pace(x, e, k) * s);
            states.back()[k] =
                decays.back()[k] * states.back()[k] + s * x.x(b, t, e) * x.B(b, t, k);
          }
        }
        std::vector<Real> dh(width);
        for (size_t k = 0; k < width && o.return_state; ++k) dh[k] = dy.final_state(n, e, k);
        for (int64_t t = end - 1; t >= begin; --t) {
          const auto i = static_cast<size_t>(t - begin);
          const Real s = step(x, b, t, e), in = x.x(b, t, e);
          Real g = dy.o(b, t, e), read = 0, ds = 0;
          if (x.z) {
            Real out = x.D ? x.D(e) * in : Real(0);
            for (size_t k = 0; k < width; ++k) out += x.C(b, t, k) * states[i + 1][k];
            const Real z = x.z(b, t, e), open = 1 / (1 + std::exp(-z));
            dx.z(b, t, e) = g * out * open * (1 + z * (1 - open));
            g *= z * open;
          }
          for (size_t k = 0; k < width; ++k) {
            const Real A = -pace(x, e, k);
            dx.C(b, t, k) += g * states[i + 1][k];
            dh[k] += g * x.C(b, t, k);
            dx.B(b, t, k) += dh[k] * s * in;
            read += dh[k] * x.B(b, t, k);
            dh[k] *= decays[i][k];
            ds += dh[k] * states[i][k] * A;
            dx.A_log(e, k) += dh[k] * states[i][k] * s * A;
          }
          ds += in * read;
          dx.x(b, t, e) = s * read + (x.D ? x.D(e) * g : Real(0));
          const Real raw = x.dt_bias ? x.dt(b, t, e) + x.dt_bias(e) : x.dt(b, t, e);
          dx.dt(b, t, e) = ds / (1 + std::exp(-raw));
          if (x.D) dx.D(e) += g * in;
          if (x.dt_bias) dx.dt_bias(e) += dx.dt(b, t, e);
        }
        for (size_t k = 0; k < width && x.initial_state; ++k) dx.initial_state(n, e, k) = dh[k];
      }
  }

  struct Sizes {
    int64_t B, T, E, K;
  };
  enum Parts { kBare = 0, kD = 1, kZ = 2, kBias = 4, kState = 8, kAll = 15 };

  // Inputs in the legal range: steps of 0.001 to 1 or so, decays as they are at initialisation.
  static Case<Scan> sample(const char* name, Sizes s, int parts,
                           const std::vector<int32_t>& cu = {}) {
    Case<Scan> c{name, {}, {}};
    c.x.x = normal({s.B, s.T, s.E}, 1, "x");
    c.x.dt = normal({s.B, s.T, s.E}, 1, "dt");
    c.x.A_log = normal({s.E, s.K}, 1, "A_log", 0.1);
    for (int64_t i = 0; i < s.E * s.K; ++i)
      c.x.A_log.data<double>()[i] += std::log(static_cast<double>(i % s.K + 1));
    c.x.B = normal({s.B, s.T, s.K}, 1, "B");
    c.x.C = normal({s.B, s.T, s.K}, 1, "C");
    if (parts & kD) c.x.D = normal({s.E}, 1, "D");
    if (parts & kZ) c.x.z = normal({s.B, s.T, s.E}, 1, "z");
    if (parts & kBias) {
      c.x.dt_bias = normal({s.E}, 1, "dt_bias");
      for (int64_t e = 0; e < s.E; ++e) c.x.dt_bias.data<double>()[e] -= 2;
    }
    if (!cu.empty()) c.o.cu_seqlens = tensor_of(cu);
    const int64_t N = document_count(c.o.cu_seqlens, s.B);
    if (parts & kState) c.x.initial_state = normal({N, s.E, s.K}, 1, "initial_state");
    return c;
  }

  static std::vector<Case<Scan>> cases() {
    std::vector<Case<Scan>> list = {
        sample("one token", {2, 1, 4, 3}, kD | kZ | kBias),
        sample("one token with a state", {2, 1, 4, 3}, kAll),
        sample("below a segment", {2, 17, 5, 3}, kAll),
        sample("off the segment", {1, 67, 3, 2}, kAll),
        sample("bare", {2, 20, 4, 3}, kBare),
        sample("without z", {1, 20, 4, 3}, kD | kBias | kState),
        sample("without D and dt_bias", {1, 20, 4, 3}, kZ | kState),
        sample("many channels", {1, 6, 70, 3}, kAll),
        sample("many states", {1, 6, 3, 19}, kAll),
        sample("packed", {1, 29, 4, 3}, kAll, {0, 1, 9, 10, 22, 29}),
        sample("packed across segments", {1, 70, 2, 3}, kAll, {0, 63, 64, 66, 70}),
        sample("packed, no state", {1, 40, 3, 2}, kD | kZ | kBias, {0, 32, 40})};

    // Steps of nothing, steps that forget all, and beyond where softplus is the identity.
    list.push_back(sample("steps from 0 to 40", {1, 33, 3, 3}, kAll));
    for (int64_t i = 0; i < 99; ++i) {
      double& dt = list.back().x.dt.data<double>()[i];
      if (i % 5 < 3) dt = i % 5 == 0 ? -30 : i % 5 == 1 ? 12 : 40;
    }
    list.push_back(sample("no state returned", {1, 34, 3, 2}, kAll));
    list.back().o.return_state = false;
    list.push_back(sample("dt_bias of 10 and -10", {1, 20, 2, 3}, kAll));
    list.back().x.dt_bias.data<double>()[0] = 10;
    list.back().x.dt_bias.data<double>()[1] = -10;
    list.push_back(sample("slow and fast states", {1, 20, 2, 3}, kAll));
    for (int64_t i = 0; i < 6; ++i)
      list.back().x.A_log.data<double>()[i] = i % 2 ? std::log(1e-2) : std::log(16.0);
    list.push_back(sample("states that forget all", {1, 70, 2, 3}, kAll));
    for (int64_t i = 0; i < 6; ++i)
      list.back().x.A_log.data<double>()[i] = i % 3 == 0 ? -kReset : i % 3 == 1 ? 90 : 0.3;
    list.push_back(sample("steps of -infinity, of no time", {1, 70, 4, 3}, kAll));
    put_resets(list.back().x.dt);
    list.back().x.A_log.data<double>()[0] = list.back().x.A_log.data<double>()[4] = -kReset;
    list.push_back(sample("rows of zeros", {1, 20, 3, 2}, kAll));
    for (int64_t t = 3; t < 20; t += 4) {
      std::fill_n(list.back().x.x.data<double>() + 3 * t, 3, 0.0);
      std::fill_n(list.back().x.z.data<double>() + 3 * t - 3, 3, 0.0);
      std::fill_n(list.back().x.B.data<double>() + 2 * t - 4, 2, 0.0);
    }
    return list;
  }

  static Bench<Scan> bench(int64_t T) {
    constexpr int64_t kChannels = 256, kStates = 16;
    const Case<Scan> c = sample("", {1, T, kChannels, kStates}, kD | kZ | kBias);
    return {c.x, c.o, static_cast<double>(T * kChannels) * Scan::flops(kStates)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    constexpr int64_t B = 4, T = 4096, E = 4096, K = 16;
    return {{.name = sized_name("selective_scan", {{"B", B}, {"T", T}, {"E", E}, {"K", K}}),
             .sizes = {{"B", B}, {"T", T}, {"E", E}, {"K", K}, {"N", B}},
             .with = {"D", "z", "dt_bias"},
             .settings = {{"return_state", "false"}},
             .flops = static_cast<double>(B * T * E) * Scan::flops(K),
             .uniform = {{"A_log", {0, 2.7}}, {"dt_bias", {-6, -2}}}}};
  }
};

}  // namespace weft::kernels
