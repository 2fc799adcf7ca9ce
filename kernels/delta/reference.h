// The delta rule as it is defined, and token by token; the cases worth testing.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/delta/delta.h"
#include "kernels/tokens/pieces.h"
#include "kernels/tokens/resets.h"

namespace weft::kernels {

template <>
struct Reference<Delta> {
  // The parallel form, without a state: what token i writes along its key is `written`,
  //   w_i = beta_i (v_i - Gamma_i0 S_0' k_i - sum_{j<i} Gamma_ij (k_i . k_j) w_j)
  //   o_i = scale * (Gamma_i0 S_0' q_i + sum_{j<=i} Gamma_ij (q_i . k_j) w_j)
  // with Gamma_ij = exp(g_{j+1} + ... + g_i).
  template <class S>
  static void naive(Inputs<Delta, View<S>> x, const Delta::Options& o, Outputs<Delta, View<S>> y) {
    using std::exp;
    const int64_t H = x.v.size(2), group = H / x.k.size(2), K = x.k.size(3), V = x.v.size(3);
    const Documents docs(o.cu_seqlens, x.v.size(0), x.v.size(1));
    const double scale = o.factor(K);
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = docs.row(n), t0 = docs.begin(n), T = docs.end(n) - t0, kh = h / group;
        const auto dot = [&](const View<S>& a, int64_t i, int64_t j) {  // a_i . k_j
          S sum = 0;
          for (int64_t d = 0; d < K; ++d) sum += a(b, t0 + i, kh, d) * x.k(b, t0 + j, kh, d);
          return sum;
        };
        std::vector<S> written(static_cast<size_t>(T * V));
        for (int64_t i = 0; i < T; ++i) {
          std::vector<S> decay(static_cast<size_t>(i + 2), S(1));  // [j + 1] is Gamma_ij; [0]: S_0
          S log_decay = 0;
          for (int64_t j = i; j >= 0 && x.g; --j) {
            log_decay += x.g(b, t0 + j, h);
            decay[static_cast<size_t>(j)] = exp(log_decay);
          }
          // Gamma_i0 S_0' a_i + sum_{j < end} Gamma_ij (a_i . k_j) w_j, its entry c
          const auto read = [&](const View<S>& a, int64_t end, int64_t c) {
            S sum = 0;
            for (int64_t d = 0; d < K && x.initial_state; ++d)
              sum += decay[0] * x.initial_state(n, h, d, c) * a(b, t0 + i, kh, d);
            for (int64_t j = 0; j < end; ++j)
              sum += decay[static_cast<size_t>(j + 1)] * dot(a, i, j) *
                     written[static_cast<size_t>(j * V + c)];
            return sum;
          };
          for (int64_t c = 0; c < V; ++c)
            written[static_cast<size_t>(i * V + c)] =
                x.beta(b, t0 + i, h) * (x.v(b, t0 + i, h, c) - read(x.k, i, c));
          for (int64_t c = 0; c < V; ++c) y.o(b, t0 + i, h, c) = scale * read(x.q, i + 1, c);
          for (int64_t d = 0; d < K && i == T - 1 && y.final_state; ++d)
            for (int64_t c = 0; c < V; ++c) {
              S sum = x.initial_state ? decay[0] * x.initial_state(n, h, d, c) : S(0);
              for (int64_t j = 0; j < T; ++j)
                sum += decay[static_cast<size_t>(j + 1)] * x.k(b, t0 + j, kh, d) *
                       written[static_cast<size_t>(j * V + c)];
              y.final_state(n, h, d, c) = sum;
            }
        }
      }
  }

  // One token of one head: S <- the state after it; `error` [V] <- v - Sbar' k, the value it
  // missed.
  template <class Real>
  static void step(const Inputs<Delta, View<Real>>& x, int64_t b, int64_t t, int64_t h, Real* S,
                   Real* error) {
    const int64_t kh = h / (x.v.size(2) / x.k.size(2)), K = x.k.size(3), V = x.v.size(3);
    const Real decay = x.g ? std::exp(x.g(b, t, h)) : Real(1);
    for (int64_t i = 0; i < K * V; ++i) S[i] *= decay;
    for (int64_t c = 0; c < V; ++c) {
      error[c] = x.v(b, t, h, c);
      for (int64_t d = 0; d < K; ++d) error[c] -= S[d * V + c] * x.k(b, t, kh, d);
    }
    for (int64_t d = 0; d < K; ++d)
      for (int64_t c = 0; c < V; ++c) S[d * V + c] += x.beta(b, t, h) * x.k(b, t, kh, d) * error[c];
  }

  template <class Real>
  static std::vector<Real> first_state(const Inputs<Delta, View<Real>>& x, int64_t n, int64_t h) {
    const int64_t K = x.k.size(3), V = x.v.size(3);
    std::vector<Real> S(static_cast<size_t>(K * V), Real(0));
    for (int64_t i = 0; i < K * V && x.initial_state; ++i)
      S[static_cast<size_t>(i)] = x.initial_state(n, h, i / V, i % V);
    return S;
  }

  template <class Real>
  static void recurrent(Inputs<Delta, View<Real>> x, const Delta::Options& o,
                        Outputs<Delta, View<Real>> y) {
    const int64_t H = x.v.size(2), group = H / x.k.size(2), K = x.k.size(3), V = x.v.size(3);
    const Documents docs(o.cu_seqlens, x.v.size(0), x.v.size(1));
    const Real scale = static_cast<Real>(o.factor(K));
    std::vector<Real> error(static_cast<size_t>(V));
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = docs.row(n);
        std::vector<Real> S = first_state(x, n, h);
        for (int64_t t = docs.begin(n); t < docs.end(n); ++t) {
          step(x, b, t, h, S.data(), error.data());
          for (int64_t c = 0; c < V; ++c) {
            Real sum = 0;
            for (int64_t d = 0; d < K; ++d)
              sum += S[static_cast<size_t>(d * V + c)] * x.q(b, t, h / group, d);
            y.o(b, t, h, c) = scale * sum;
          }
        }
        for (int64_t i = 0; i < K * V && y.final_state; ++i)
          y.final_state(n, h, i / V, i % V) = S[static_cast<size_t>(i)];
      }
  }

  // Time backwards over kept states, dS being the gradient of the state after token t:
  //   dq = s S do;  dS += s q do';  du = dS' k;  dv = beta du;  dbeta = du . e
  // where e is the value that was missed.
  //   dk = dS beta e - beta Sbar du;  dSbar = dS - beta k du';  dg = <dSbar, Sbar>;  dS = e^g dSbar
  template <class Real>
  static void recurrent_backward(Inputs<Delta, View<Real>> x, const Delta::Options& o,
                                 Outputs<Delta, View<Real>> dy, Inputs<Delta, View<Real>> dx) {
    const int64_t H = x.v.size(2), group = H / x.k.size(2), K = x.k.size(3), V = x.v.size(3);
    const Documents docs(o.cu_seqlens, x.v.size(0), x.v.size(1));
    const Real scale = static_cast<Real>(o.factor(K));
    std::vector<Real> dS(static_cast<size_t>(K * V)), du(static_cast<size_t>(V));
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = docs.row(n), begin = docs.begin(n), end = docs.end(n), kh = h / group;
        std::vector<std::vector<Real>> states = {first_state(x, n, h)}, errors;
        for (int64_t t = begin; t < end; ++t) {
          states.push_back(states.back());
          errors.emplace_back(static_cast<size_t>(V));
          step(x, b, t, h, states.back().data(), errors.back().data());
        }
        for (int64_t i = 0; i < K * V; ++i)
          dS[static_cast<size_t>(i)] =
              dy.final_state ? dy.final_state(n, h, i / V, i % V) : Real(0);
        for (int64_t t = end - 1; t >= begin; --t) {
          const Real* const S = states[static_cast<size_t>(t - begin + 1)].data();
          const Real* const before = states[static_cast<size_t>(t - begin)].data();
          const Real* const error = errors[static_cast<size_t>(t - begin)].data();
          const Real beta = x.beta(b, t, h), decay = x.g ? std::exp(x.g(b, t, h)) : Real(1);
          for (int64_t c = 0; c < V; ++c) {
            du[static_cast<size_t>(c)] = 0;
            for (int64_t d = 0; d < K; ++d) {
              Real& flow = dS[static_cast<size_t>(d * V + c)];
              dx.q(b, t, kh, d) += scale * S[d * V + c] * dy.o(b, t, h, c);
              flow += scale * x.q(b, t, kh, d) * dy.o(b, t, h, c);
              du[static_cast<size_t>(c)] += flow * x.k(b, t, kh, d);
            }
            dx.v(b, t, h, c) = beta * du[static_cast<size_t>(c)];
            dx.beta(b, t, h) += du[static_cast<size_t>(c)] * error[c];
          }
          Real dg = 0;
          for (int64_t d = 0; d < K; ++d)
            for (int64_t c = 0; c < V; ++c) {
              Real& flow = dS[static_cast<size_t>(d * V + c)];
              const Real decayed = decay * before[d * V + c], u = du[static_cast<size_t>(c)];
              dx.k(b, t, kh, d) += beta * (flow * error[c] - decayed * u);
              flow -= beta * x.k(b, t, kh, d) * u;
              dg += flow * decayed;
              flow *= decay;
            }
          if (dx.g) dx.g(b, t, h) = dg;
        }
        for (int64_t i = 0; i < K * V && dx.initial_state; ++i)
          dx.initial_state(n, h, i / V, i % V) = dS[static_cast<size_t>(i)];
      }
  }

  struct Sizes {
    int64_t B, T, H, Hk, K, V;
  };
  // Inputs in the legal range: keys of length 1, beta in (0, 2), gates mild where there are any.
  static Case<Delta> sample(const char* name, Sizes s, bool gate, bool state,
                            const std::vector<int32_t>& cu = {}) {
    Case<Delta> c{name, {}, {}};
    c.x.q = unit({s.B, s.T, s.Hk, s.K}, "q");
    c.x.k = unit({s.B, s.T, s.Hk, s.K}, "k");
    c.x.v = normal({s.B, s.T, s.H, s.V}, 1, "v");
    c.x.beta = mapped({s.B, s.T, s.H}, "beta", [](double u) { return 2 / (1 + std::exp(-u)); });
    if (gate)
      c.x.g = mapped({s.B, s.T, s.H}, "g", [](double u) { return -0.3 * std::log1p(std::exp(u)); });
    if (!cu.empty()) c.o.cu_seqlens = tensor_of(cu);
    const int64_t N = document_count(c.o.cu_seqlens, s.B);
    if (state) c.x.initial_state = normal({N, s.H, s.K, s.V}, 1, "initial_state", 0.5);
    return c;
  }

  static std::vector<Case<Delta>> cases() {
    std::vector<Case<Delta>> list = {
        sample("one token", {2, 1, 2, 1, 4, 3}, true, false),
        sample("one token with a state", {2, 1, 2, 2, 4, 3}, true, true),
        sample("below a chunk", {2, 17, 2, 1, 5, 3}, true, true),
        sample("off the chunk", {1, 67, 2, 2, 6, 4}, true, true),
        sample("no gate", {2, 35, 2, 1, 4, 6}, false, true),
        sample("no gate, no state", {1, 33, 1, 1, 3, 1}, false, false),
        sample("keys shared by groups", {1, 40, 4, 2, 4, 3}, true, true),
        sample("packed", {1, 29, 2, 1, 4, 3}, true, true, {0, 1, 9, 10, 22, 29}),
        sample("packed across chunks", {1, 70, 2, 2, 3, 4}, true, true, {0, 31, 33, 64, 65, 70}),
        sample("packed, no gate, no state", {1, 40, 1, 1, 4, 4}, false, false, {0, 32, 40}),
        sample("scaled", {1, 9, 2, 2, 4, 3}, true, false)};
    list.back().o.scale = 0.3;
    list.push_back(sample("no state returned", {1, 34, 2, 1, 4, 3}, true, true));
    list.back().o.return_state = false;

    list.push_back(sample("gates 0, -30 and -1000", {1, 41, 2, 2, 4, 3}, true, true));
    for (int64_t t = 0; t < 41; ++t)
      for (int64_t h = 0; h < 2; ++h) {
        double& g = list.back().x.g.data<double>()[t * 2 + h];
        const int64_t kind = (3 * t + h) % 10;
        g = kind < 5 ? 0 : kind == 5 ? -1000 : kind == 6 ? -30 : g;
      }
    list.push_back(sample("one token that forgets all", {2, 1, 2, 1, 4, 3}, true, true));
    list.back().x.g.fill(kReset);
    list.push_back(sample("gates of -infinity", {1, 70, 4, 1, 3, 2}, true, true));
    put_resets(list.back().x.g);
    const std::vector<int32_t> cu = {0, 1, 31, 64, 65, 70};
    list.push_back(sample("gates of -infinity, packed", {1, 70, 2, 1, 3, 2}, true, true, cu));
    put_resets_and_extremes(list.back().x.g, cu);
    list.push_back(sample("beta 0, 1 and 2", {1, 37, 2, 1, 4, 3}, true, true));
    for (int64_t i = 0; i < 74; ++i) list.back().x.beta.data<double>()[i] = i % 3;
    list.push_back(sample("one key for all", {1, 37, 1, 1, 4, 3}, true, true));
    for (int64_t t = 1; t < 37; ++t)
      std::copy_n(list.back().x.k.data<double>(), 4, list.back().x.k.data<double>() + 4 * t);
    list.push_back(sample("rows of zeros", {1, 20, 1, 1, 4, 3}, true, false));
    for (int64_t t = 3; t < 20; t += 4) {
      std::fill_n(list.back().x.k.data<double>() + 4 * t, 4, 0.0);
      std::fill_n(list.back().x.q.data<double>() + 4 * t - 4, 4, 0.0);
    }
    return list;
  }

  static Bench<Delta> bench(int64_t T) {
    constexpr int64_t kHeads = 4, kWidth = 64;
    const Case<Delta> c = sample("", {1, T, kHeads, kHeads, kWidth, kWidth}, true, false);
    return {c.x, c.o, static_cast<double>(T * kHeads) * Delta::flops(kWidth, kWidth)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    const Flops each = Delta::flops(128, 128);
    std::vector<GpuShape> list = {heads_shape("delta", {}, each, {"beta"}),
                                  heads_shape("gated_delta", {}, each, {"beta", "g"})};
    for (GpuShape& shape : list) shape.deviations["k"] = 1 / std::sqrt(128.0);  // length one
    return list;
  }

 private:
  static Tensor unit(const Shape& shape, const char* name) {
    const Tensor t = normal(shape, 1, name);
    const int64_t K = shape[-1];
    for (double* p = t.data<double>(); p != t.data<double>() + t.numel(); p += K) {
      double sum = 0;
      for (int64_t d = 0; d < K; ++d) sum += p[d] * p[d];
      for (int64_t d = 0; d < K; ++d) p[d] /= std::sqrt(sum);
    }
    return t;
  }
  template <class F>
  static Tensor mapped(const Shape& shape, const char* name, const F& f) {
    const Tensor t = normal(shape, 1, name);
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = f(t.data<double>()[i]);
    return t;
  }
};

}  // namespace weft::kernels
