// The delta rule with a gate a key channel as it is defined, and token by token; the cases worth
// testing.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/kda/kda.h"
#include "kernels/tokens/pieces.h"
#include "kernels/tokens/resets.h"

namespace weft::kernels {

template <>
struct Reference<Kda> {
  // The parallel form, without a state: what token i writes along its key is w_i,
  //   w_i = beta_i (v_i - S_0' (Gamma_i0 . k_i) - sum_{j<i} <k_i, Gamma_ij . k_j> w_j)
  //   o_i = scale * (S_0' (Gamma_i0 . q_i) + sum_{j<=i} <q_i, Gamma_ij . k_j> w_j)
  // with Gamma_ij = exp(g_{j+1} + ... + g_i), a vector over key channels.
  template <class S>
  static void naive(Inputs<Kda, View<S>> x, const Kda::Options& o, Outputs<Kda, View<S>> y) {
    using std::exp;
    const int64_t H = x.v.size(2), group = H / x.k.size(2), K = x.k.size(3), V = x.v.size(3);
    const Documents docs(o.cu_seqlens, x.v.size(0), x.v.size(1));
    const double scale = o.factor(K);
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = docs.row(n), begin = docs.begin(n), hk = h / group;
        std::vector<std::vector<S>> w;  // of the tokens so far
        for (int64_t i = begin; i < docs.end(n); ++i) {
          std::vector<S> log_decay(static_cast<size_t>(K), S(0)), q_k, k_k;  // scores, j = i first
          for (int64_t j = i; j >= begin; --j) {
            S with_q = 0, with_k = 0;
            for (int64_t d = 0; d < K; ++d) {
              S& sum = log_decay[static_cast<size_t>(d)];
              const S faded = exp(sum) * x.k(b, j, hk, d);
              with_q += x.q(b, i, hk, d) * faded;
              with_k += x.k(b, i, hk, d) * faded;
              sum += x.g(b, j, h, d);
            }
            q_k.push_back(with_q);
            k_k.push_back(with_k);
          }
          w.emplace_back(static_cast<size_t>(V));
          for (size_t c = 0; c < static_cast<size_t>(V); ++c) {
            S read = 0, missed = x.v(b, i, h, static_cast<int64_t>(c));
            for (int64_t d = 0; d < K && x.initial_state; ++d) {
              const S held = exp(log_decay[static_cast<size_t>(d)]) *
                             x.initial_state(n, h, d, static_cast<int64_t>(c));
              read += x.q(b, i, hk, d) * held;
              missed -= x.k(b, i, hk, d) * held;
            }
            for (size_t back = 1; back < w.size(); ++back) {
              read += q_k[back] * w[w.size() - 1 - back][c];
              missed -= k_k[back] * w[w.size() - 1 - back][c];
            }
            w.back()[c] = x.beta(b, i, h) * missed;
            y.o(b, i, h, static_cast<int64_t>(c)) = scale * (read + q_k[0] * w.back()[c]);
          }
        }
        if (y.final_state) naive_state(x, n, b, h, begin, w, y.final_state);
      }
  }

  template <class Real>
  static void recurrent(Inputs<Kda, View<Real>> x, const Kda::Options& o,
                        Outputs<Kda, View<Real>> y) {
    const int64_t H = x.v.size(2), group = H / x.k.size(2), K = x.k.size(3), V = x.v.size(3);
    const Documents docs(o.cu_seqlens, x.v.size(0), x.v.size(1));
    const Real scale = static_cast<Real>(o.factor(K));
    std::vector<Real> error(static_cast<size_t>(V));
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = docs.row(n);
        std::vector<Real> S = start(x.initial_state, n, h, K, V);
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
  //   dk = dS beta e - beta Sbar du;  dSbar = dS - beta k du';  dg = rowsum(dSbar . Sbar);
  //   dS = diag(e^g) dSbar
  template <class Real>
  static void recurrent_backward(Inputs<Kda, View<Real>> x, const Kda::Options& o,
                                 Outputs<Kda, View<Real>> dy, Inputs<Kda, View<Real>> dx) {
    const int64_t H = x.v.size(2), group = H / x.k.size(2), K = x.k.size(3), V = x.v.size(3);
    const Documents docs(o.cu_seqlens, x.v.size(0), x.v.size(1));
    const Real scale = static_cast<Real>(o.factor(K));
    std::vector<Real> du(static_cast<size_t>(V));
    for (int64_t n = 0; n < docs.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = docs.row(n), begin = docs.begin(n), end = docs.end(n), hk = h / group;
        std::vector<std::vector<Real>> states = {start(x.initial_state, n, h, K, V)}, errors;
        for (int64_t t = begin; t < end; ++t) {
          states.push_back(states.back());
          errors.emplace_back(static_cast<size_t>(V));
          step(x, b, t, h, states.back().data(), errors.back().data());
        }
        std::vector<Real> dS = start(dy.final_state, n, h, K, V);
        for (int64_t t = end - 1; t >= begin; --t) {
          const Real* const S = states[static_cast<size_t>(t - begin + 1)].data();
          const Real* const before = states[static_cast<size_t>(t - begin)].data();
          const Real* const error = errors[static_cast<size_t>(t - begin)].data();
          const Real beta = x.beta(b, t, h);
          for (int64_t c = 0; c < V; ++c) {
            Real& sum = du[static_cast<size_t>(c)] = 0;
            for (int64_t d = 0; d < K; ++d) {
              Real& flow = dS[static_cast<size_t>(d * V + c)];
              dx.q(b, t, hk, d) += scale * S[d * V + c] * dy.o(b, t, h, c);
              flow += scale * x.q(b, t, hk, d) * dy.o(b, t, h, c);
              sum += flow * x.k(b, t, hk, d);
            }
            dx.v(b, t, h, c) = beta * sum;
            dx.beta(b, t, h) += sum * error[c];
          }
          for (int64_t d = 0; d < K; ++d) {
            const Real decay = std::exp(x.g(b, t, h, d));
            for (int64_t c = 0; c < V; ++c) {
              Real& flow = dS[static_cast<size_t>(d * V + c)];
              const Real decayed = decay * before[d * V + c], u = du[static_cast<size_t>(c)];
              dx.k(b, t, hk, d) += beta * (flow * error[c] - decayed * u);
              flow -= beta * x.k(b, t, hk, d) * u;
              dx.g(b, t, h, d) += flow * decayed;
              flow *= decay;
            }
          }
        }
        for (int64_t i = 0; i < K * V && dx.initial_state; ++i)
          dx.initial_state(n, h, i / V, i % V) = dS[static_cast<size_t>(i)];
      }
  }

  struct Sizes {
    int64_t B = 1, T = 17, H = 2, Hk = 1, K = 4, V = 3;
  };
  // Inputs in the legal range: keys of length 1, beta in (0, 2), mild gates.
  static Case<Kda> sample(const char* name, const Sizes& s, bool state,
                          const std::vector<int32_t>& cu = {}) {
    Case<Kda> c{name, {}, {}};
    c.x.q = unit({s.B, s.T, s.Hk, s.K}, "q");
    c.x.k = unit({s.B, s.T, s.Hk, s.K}, "k");
    c.x.v = normal({s.B, s.T, s.H, s.V}, 1, "v");
    c.x.beta = mapped({s.B, s.T, s.H}, "beta", [](double u) { return 2 / (1 + std::exp(-u)); });
    c.x.g =
        mapped({s.B, s.T, s.H, s.K}, "g", [](double u) { return -0.3 * std::log1p(std::exp(u)); });
    if (!cu.empty()) c.o.cu_seqlens = tensor_of(cu);
    const int64_t N = document_count(c.o.cu_seqlens, s.B);
    if (state) c.x.initial_state = normal({N, s.H, s.K, s.V}, 1, "initial_state", 0.5);
    return c;
  }
  // Half of the gates 0, some -30 and -1000, the rest as they were.
  static void make_extreme(const Tensor& g) {
    for (int64_t i = 0; i < g.numel(); ++i) {
      const int64_t kind = i * 7 % 11;
      if (kind < 5) g.data<double>()[i] = 0;
      if (kind == 5) g.data<double>()[i] = -30;
      if (kind == 6) g.data<double>()[i] = -1000;
    }
  }

  static std::vector<Case<Kda>> cases() {
    std::vector<Case<Kda>> list = {
        sample("one token", {.B = 2, .T = 1}, false),
        sample("one token with a state", {.B = 2, .T = 1, .Hk = 2, .V = 17}, true),
        sample("a sub-chunk and a token", {.B = 2, .T = 17, .K = 5}, true),
        sample("off the chunk", {.T = 67, .Hk = 2, .K = 3, .V = 2}, true),
        sample("more channels than a tile", {.T = 35, .H = 1, .K = 18, .V = 3}, true),
        sample("no state", {.T = 33, .H = 1, .K = 3, .V = 1}, false),
        sample("keys shared by groups", {.T = 20, .H = 4, .Hk = 2}, true),
        sample("packed", {.T = 29}, true, {0, 1, 9, 10, 22, 29}),
        sample("packed over chunks", {.T = 70, .Hk = 2, .K = 3}, false, {0, 3, 66, 70}),
        sample("scaled", {.T = 9}, false),
        sample("no state returned", {.T = 21}, true),
        sample("gates 0, -30 and -1000", {.T = 41, .H = 1}, true),
        sample("all gates -1000", {.T = 18, .H = 1}, false),
        sample("one token that forgets all", {.B = 2, .T = 1}, true),
        sample("gates of -infinity", {.T = 70, .H = 1}, true),
        sample("gates of -infinity, packed", {.T = 70, .K = 3}, true, {0, 1, 31, 64, 65, 70}),
        sample("beta 0, 1 and 2", {.T = 21}, true),
        sample("one key for all", {.T = 21, .H = 1}, true),
        sample("rows of zeros", {.T = 20, .H = 1}, false),
        sample("strided views", {.B = 2, .T = 6, .Hk = 2}, true)};
    const auto of = [&](const std::string& name) -> Case<Kda>& {
      return *std::find_if(list.begin(), list.end(), [&](auto& c) { return c.name == name; });
    };
    of("scaled").o.scale = 0.3;
    of("no state returned").o.return_state = false;
    make_extreme(of("gates 0, -30 and -1000").x.g);
    of("all gates -1000").x.g.fill(-1000);
    of("one token that forgets all").x.g.fill(kReset);
    put_resets(of("gates of -infinity").x.g);
    put_resets_and_extremes(of("gates of -infinity, packed").x.g, {0, 1, 31, 64, 65, 70});
    const Tensor beta = of("beta 0, 1 and 2").x.beta;
    for (int64_t i = 0; i < beta.numel(); ++i) beta.data<double>()[i] = static_cast<double>(i % 3);
    const Tensor same = of("one key for all").x.k;
    for (int64_t t = 1; t < 21; ++t) same.select(1, t).copy_from(same.select(1, 0));
    const Case<Kda>& zeros = of("rows of zeros");
    for (int64_t t = 3; t < 20; t += 4) {
      zeros.x.k.select(1, t).zero();
      zeros.x.q.select(1, t - 1).zero();
    }
    Inputs<Kda>& x = of("strided views").x;
    x.q = normal({2, 2, 4, 6}, 1, "q").transpose(1, 3).transpose(2, 3);
    x.v = normal({2, 6, 2, 9}, 1, "v").slice(3, 1, 4);
    x.g = x.g.transpose(1, 3).contiguous().transpose(1, 3);
    return list;
  }

  static Bench<Kda> bench(int64_t T) {
    constexpr int64_t kHeads = 4, kWidth = 64;
    const Case<Kda> c =
        sample("", {.T = T, .H = kHeads, .Hk = kHeads, .K = kWidth, .V = kWidth}, false);
    return {c.x, c.o, static_cast<double>(T * kHeads) * Kda::flops(kWidth, kWidth)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    GpuShape shape = heads_shape("kda", {}, Kda::flops(128, 128), {"beta", "g"});
    shape.deviations["k"] = 1 / std::sqrt(128.0);  // keys of length one
    return {shape};
  }

 private:
  // S_T = diag(e^{g_1 + .. + g_T}) S_0 + sum_j (e^{g_{j+1} + .. + g_T} . k_j) w_j'.
  template <class S>
  static void naive_state(const Inputs<Kda, View<S>>& x, int64_t n, int64_t b, int64_t h,
                          int64_t begin, const std::vector<std::vector<S>>& w,
                          const View<S>& final_state) {
    using std::exp;
    const int64_t K = x.k.size(3), V = x.v.size(3), hk = h / (x.v.size(2) / x.k.size(2));
    for (int64_t d = 0; d < K; ++d)
      for (int64_t c = 0; c < V; ++c) {
        S log_decay = 0, sum = 0;
        for (auto j = static_cast<int64_t>(w.size()) - 1; j >= 0; --j) {
          sum += exp(log_decay) * x.k(b, begin + j, hk, d) *
                 w[static_cast<size_t>(j)][static_cast<size_t>(c)];
          log_decay += x.g(b, begin + j, h, d);
        }
        if (x.initial_state) sum += exp(log_decay) * x.initial_state(n, h, d, c);
        final_state(n, h, d, c) = sum;
      }
  }

  // A state of one head, row by row; zeros where it is absent.
  template <class Real>
  static std::vector<Real> start(const View<Real>& state, int64_t n, int64_t h, int64_t K,
                                 int64_t V) {
    std::vector<Real> S(static_cast<size_t>(K * V), Real(0));
    for (int64_t i = 0; i < K * V && state; ++i)
      S[static_cast<size_t>(i)] = state(n, h, i / V, i % V);
    return S;
  }

  // One token of one head: S <- the state after it; `error` [V] <- v - Sbar' k, the value it
  // missed.
  template <class Real>
  static void step(const Inputs<Kda, View<Real>>& x, int64_t b, int64_t t, int64_t h, Real* S,
                   Real* error) {
    const int64_t hk = h / (x.v.size(2) / x.k.size(2)), K = x.k.size(3), V = x.v.size(3);
    for (int64_t c = 0; c < V; ++c) error[c] = x.v(b, t, h, c);
    for (int64_t d = 0; d < K; ++d) {
      const Real decay = std::exp(x.g(b, t, h, d));
      for (int64_t c = 0; c < V; ++c) {
        S[d * V + c] *= decay;
        error[c] -= S[d * V + c] * x.k(b, t, hk, d);
      }
    }
    for (int64_t d = 0; d < K; ++d)
      for (int64_t c = 0; c < V; ++c) S[d * V + c] += x.beta(b, t, h) * x.k(b, t, hk, d) * error[c];
  }

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
