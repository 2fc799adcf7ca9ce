// Gated linear attention: the definition, the recurrence token by token with its gradient, and the
// cases worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/gated_linear/gated_linear.h"
#include "kernels/tokens/pieces.h"
#include "kernels/tokens/resets.h"

namespace weft::kernels {

template <>
struct Reference<GatedLinear> {
  // o_t = scale * sum_{j <= t} sum_d q_td k_jd e^{g_{j+1,d} + .. + g_td} v_j, in O(T^2).
  template <class S>
  static void naive(Inputs<GatedLinear, View<S>> x, const GatedLinear::Options& o,
                    Outputs<GatedLinear, View<S>> y) {
    using std::exp;
    const int64_t H = x.v.size(2), K = x.q.size(3), V = x.v.size(3), group = H / x.q.size(2);
    const double scale = scale_of(o, K);
    const Documents documents(o.cu_seqlens, x.q.size(0), x.q.size(1));
    for (int64_t n = 0; n < documents.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = documents.row(n), begin = documents.begin(n), hk = h / group;
        for (int64_t t = begin; t < documents.end(n); ++t) {
          std::vector<S> decay(static_cast<size_t>(K), S(0)), sum(static_cast<size_t>(V), S(0));
          for (int64_t j = t; j >= begin; --j) {
            S score = 0;
            for (int64_t d = 0; d < K; ++d) {
              S& log_decay = decay[static_cast<size_t>(d)];
              score += x.q(b, t, hk, d) * x.k(b, j, hk, d) * exp(log_decay);
              log_decay += x.g(b, j, h, d);
            }
            for (int64_t e = 0; e < V; ++e) sum[static_cast<size_t>(e)] += score * x.v(b, j, h, e);
          }
          for (int64_t e = 0; e < V; ++e) {
            S& total = sum[static_cast<size_t>(e)];
            for (int64_t d = 0; d < K && x.initial_state; ++d)
              total += x.q(b, t, hk, d) * exp(decay[static_cast<size_t>(d)]) *
                       x.initial_state(n, h, d, e);
            y.o(b, t, h, e) = scale * total;
          }
        }
        if (y.final_state) naive_state(x, n, b, h, begin, documents.end(n), y.final_state);
      }
  }

  template <class Real>
  static void recurrent(Inputs<GatedLinear, View<Real>> x, const GatedLinear::Options& o,
                        Outputs<GatedLinear, View<Real>> y) {
    const int64_t H = x.v.size(2), K = x.q.size(3), V = x.v.size(3), group = H / x.q.size(2);
    const Real scale = static_cast<Real>(scale_of(o, K));
    const Documents documents(o.cu_seqlens, x.q.size(0), x.q.size(1));
    for (int64_t n = 0; n < documents.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = documents.row(n);
        std::vector<Real> s = start(x.initial_state, n, h, K, V);
        for (int64_t t = documents.begin(n); t < documents.end(n); ++t) {
          step(x, b, t, h, s);
          for (int64_t e = 0; e < V; ++e) {
            Real sum = 0;
            for (int64_t d = 0; d < K; ++d)
              sum += x.q(b, t, h / group, d) * s[static_cast<size_t>(d * V + e)];
            y.o(b, t, h, e) = scale * sum;
          }
        }
        for (int64_t i = 0; i < K * V && y.final_state; ++i)
          y.final_state(n, h, i / V, i % V) = s[static_cast<size_t>(i)];
      }
  }

  // Backwards in time, with dS the gradient of S_t.
  template <class Real>
  static void recurrent_backward(Inputs<GatedLinear, View<Real>> x, const GatedLinear::Options& o,
                                 Outputs<GatedLinear, View<Real>> dy,
                                 Inputs<GatedLinear, View<Real>> dx) {
    const int64_t H = x.v.size(2), K = x.q.size(3), V = x.v.size(3), group = H / x.q.size(2);
    const Real scale = static_cast<Real>(scale_of(o, K));
    const Documents documents(o.cu_seqlens, x.q.size(0), x.q.size(1));
    for (int64_t n = 0; n < documents.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = documents.row(n), begin = documents.begin(n), hk = h / group;
        std::vector<std::vector<Real>> states{start(x.initial_state, n, h, K, V)};
        for (int64_t t = begin; t < documents.end(n); ++t) {
          states.push_back(states.back());
          step(x, b, t, h, states.back());
        }
        std::vector<Real> ds = start(dy.final_state, n, h, K, V);
        for (int64_t t = documents.end(n) - 1; t >= begin; --t) {
          const std::vector<Real>& before = states[static_cast<size_t>(t - begin)];
          const std::vector<Real>& after = states[static_cast<size_t>(t - begin) + 1];
          for (int64_t d = 0; d < K; ++d) {
            const Real q = x.q(b, t, hk, d), k = x.k(b, t, hk, d),
                       decay = std::exp(x.g(b, t, h, d));
            Real dq = 0, dk = 0, dg = 0;
            for (int64_t e = 0; e < V; ++e) {
              const auto i = static_cast<size_t>(d * V + e);
              ds[i] += scale * q * dy.o(b, t, h, e);
              dq += scale * after[i] * dy.o(b, t, h, e);
              dk += ds[i] * x.v(b, t, h, e);
              dx.v(b, t, h, e) += ds[i] * k;
              dg += ds[i] * decay * before[i];
              ds[i] *= decay;
            }
            dx.q(b, t, hk, d) += dq;
            dx.k(b, t, hk, d) += dk;
            dx.g(b, t, h, d) += dg;
          }
        }
        for (int64_t i = 0; i < K * V && dx.initial_state; ++i)
          dx.initial_state(n, h, i / V, i % V) = ds[static_cast<size_t>(i)];
      }
  }

  struct Sizes {
    int64_t B = 2, T = 9, Hk = 2, H = 2, K = 4, V = 3;
  };

  static Case<GatedLinear> make(const char* name, const Sizes& s, double strength = 0.5) {
    return {name,
            {.q = normal({s.B, s.T, s.Hk, s.K}, 1, "q"),
             .k = normal({s.B, s.T, s.Hk, s.K}, 1, "k"),
             .v = normal({s.B, s.T, s.H, s.V}, 1, "v"),
             .g = log_decays({s.B, s.T, s.H, s.K}, strength)},
            {}};
  }
  // -|x| * strength, x standard normal.
  static Tensor log_decays(const Shape& shape, double strength) {
    const Tensor g = normal(shape, 1, "g", strength);
    for (int64_t i = 0; i < g.numel(); ++i) g.data<double>()[i] = -std::abs(g.data<double>()[i]);
    return g;
  }
  // Half of the gates 0, others -30, -1000 or small.
  static Tensor extreme_decays(const Shape& shape) {
    const Tensor g = log_decays(shape, 0.5);
    for (int64_t i = 0; i < g.numel(); ++i) {
      const int64_t kind = i * 7 % 11;
      if (kind < 5) g.data<double>()[i] = 0;
      if (kind == 5) g.data<double>()[i] = -30;
      if (kind == 6) g.data<double>()[i] = -1000;
    }
    return g;
  }

  static std::vector<Case<GatedLinear>> cases() {
    std::vector<Case<GatedLinear>> list;
    const auto add = [&](const char* name, const Sizes& s,
                         double strength = 0.5) -> Case<GatedLinear>& {
      return list.emplace_back(make(name, s, strength));
    };
    const auto add_state = [](Case<GatedLinear>& c, int64_t N) {
      c.x.initial_state =
          normal({N, c.x.v.size(2), c.x.q.size(3), c.x.v.size(3)}, 1, "initial_state");
    };
    add("small", {});
    add("scale", {.B = 1, .T = 5}).o.scale = 0.3;
    add("one token", {.B = 2, .T = 1});
    add_state(add("one token, state", {.B = 2, .T = 1, .V = 17}), 2);
    add("off the chunk", {.B = 1, .T = 67, .Hk = 1, .H = 1, .K = 3}, 0.05);
    add_state(add("states", {.B = 2, .T = 19, .K = 5, .V = 18}), 2);
    add_state(add("more channels than a tile", {.B = 1, .T = 35, .Hk = 1, .H = 1, .K = 18}), 1);
    {
      auto& c = add("gates at 0, -30, -1000", {.B = 1, .T = 70, .Hk = 1, .H = 1});
      c.x.g = extreme_decays({1, 70, 1, 4});
      add_state(c, 1);
    }
    {
      auto& c = add("one token that forgets all", {.B = 2, .T = 1});
      c.x.g.fill(kReset);
      add_state(c, 2);
    }
    {
      auto& c = add("gates of -infinity", {.B = 1, .T = 70, .Hk = 1, .H = 1}, 0.1);
      put_resets(c.x.g);
      add_state(c, 1);
    }
    {
      auto& c = add("gates of -infinity, packed", {.B = 1, .T = 70, .Hk = 1, .H = 2, .K = 3});
      const std::vector<int32_t> cu{0, 1, 31, 64, 65, 70};
      c.o.cu_seqlens = tensor_of(cu);
      put_resets_and_extremes(c.x.g, cu);
      add_state(c, 5);
    }
    add("all gates at -1000", {.B = 1, .T = 18, .Hk = 1, .H = 1}).x.g =
        full({1, 18, 1, 4}, -1000, Dtype::f64);
    add_state(add("shared keys", {.B = 1, .T = 20, .Hk = 2, .H = 4}), 1);
    add("one key head", {.B = 1, .T = 18, .Hk = 1, .H = 3});
    {
      auto& c = add("packed", {.B = 1, .T = 29});
      c.o.cu_seqlens = tensor_of<int32_t>({0, 1, 9, 10, 22, 29});
      add_state(c, 5);
    }
    add("packed over chunks", {.B = 1, .T = 70, .Hk = 1, .H = 2, .K = 3}).o.cu_seqlens =
        tensor_of<int32_t>({0, 3, 66, 70});
    add("no state returned", {.B = 1, .T = 7}).o.return_state = false;
    {
      auto& c = add("strided views", {.B = 2, .T = 6, .K = 4, .V = 4});
      c.x.q = normal({2, 2, 4, 6}, 1, "q").transpose(1, 3).transpose(2, 3);
      c.x.v = normal({2, 6, 2, 9}, 1, "v").slice(3, 1, 5);
      c.x.g = log_decays({2, 4, 6, 2}, 0.5).transpose(1, 3).transpose(1, 2);
    }
    return list;
  }

  static Bench<GatedLinear> bench(int64_t T) {
    constexpr int64_t H = 4, K = 64, V = 64;
    const Case<GatedLinear> c = make("", {.B = 1, .T = T, .Hk = H, .H = H, .K = K, .V = V}, 0.1);
    return {c.x, c.o, static_cast<double>(T * H) * GatedLinear::flops(K, V)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    return {heads_shape("gated_linear", {}, GatedLinear::flops(128, 128), {"g"})};
  }

 private:
  static double scale_of(const GatedLinear::Options& o, int64_t K) {
    return o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(K));
  }

  // S_T = diag(e^{g_1 + .. + g_T}) S_0 + sum_j (e^{g_{j+1} + .. + g_T} . k_j) v_j'.
  template <class S>
  static void naive_state(Inputs<GatedLinear, View<S>>& x, int64_t n, int64_t b, int64_t h,
                          int64_t begin, int64_t end, View<S>& final_state) {
    using std::exp;
    const int64_t K = x.q.size(3), V = x.v.size(3), hk = h / (x.v.size(2) / x.q.size(2));
    for (int64_t d = 0; d < K; ++d)
      for (int64_t e = 0; e < V; ++e) {
        S decay = 0, sum = 0;
        for (int64_t j = end - 1; j >= begin; --j) {
          sum += exp(decay) * x.k(b, j, hk, d) * x.v(b, j, h, e);
          decay += x.g(b, j, h, d);
        }
        if (x.initial_state) sum += exp(decay) * x.initial_state(n, h, d, e);
        final_state(n, h, d, e) = sum;
      }
  }

  // A state of one head, row by row.
  template <class Real>
  static std::vector<Real> start(const View<Real>& state, int64_t n, int64_t h, int64_t K,
                                 int64_t V) {
    std::vector<Real> s(static_cast<size_t>(K * V), Real(0));
    for (int64_t i = 0; i < K * V && state; ++i)
      s[static_cast<size_t>(i)] = state(n, h, i / V, i % V);
    return s;
  }
  template <class Real>
  static void step(const Inputs<GatedLinear, View<Real>>& x, int64_t b, int64_t t, int64_t h,
                   std::vector<Real>& s) {
    const int64_t K = x.q.size(3), V = x.v.size(3), hk = h / (x.v.size(2) / x.q.size(2));
    for (int64_t d = 0; d < K; ++d) {
      const Real decay = std::exp(x.g(b, t, h, d)), k = x.k(b, t, hk, d);
      for (int64_t e = 0; e < V; ++e) {
        Real& at = s[static_cast<size_t>(d * V + e)];
        at = decay * at + k * x.v(b, t, h, e);
      }
    }
  }
};

}  // namespace weft::kernels
