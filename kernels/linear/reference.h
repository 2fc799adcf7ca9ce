// Linear attention: the definition, the recurrence token by token with its gradient, and the cases
// worth testing.
#pragma once

#include "kernels/contract/gpu_shapes.h"
#include "kernels/contract/reference.h"
#include "kernels/linear/linear.h"
#include "kernels/tokens/pieces.h"
#include "kernels/tokens/resets.h"

namespace weft::kernels {

template <>
struct Reference<Linear> {
  // o_t = scale * sum_{j <= t} e^{a_{j+1} + .. + a_t} (q_t . k_j) v_j, in O(T^2).
  template <class S>
  static void naive(Inputs<Linear, View<S>> x, const Linear::Options& o,
                    Outputs<Linear, View<S>> y) {
    using std::exp;
    const int64_t H = x.v.size(2), K = x.q.size(3), V = x.v.size(3), group = H / x.q.size(2);
    const double scale = scale_of(o, K);
    const Documents documents(o.cu_seqlens, x.q.size(0), x.q.size(1));
    for (int64_t n = 0; n < documents.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = documents.row(n), begin = documents.begin(n), hk = h / group;
        for (int64_t t = begin; t < documents.end(n); ++t) {
          S decay = 0, denominator = o.eps;
          std::vector<S> sum(static_cast<size_t>(V), S(0));
          const auto add = [&](const S& weight, const auto& value) {
            for (int64_t e = 0; e < V; ++e) sum[static_cast<size_t>(e)] += weight * value(e);
          };
          for (int64_t j = t; j >= begin; --j) {
            S score = 0;
            for (int64_t d = 0; d < K; ++d) score += x.q(b, t, hk, d) * x.k(b, j, hk, d);
            score *= scale * exp(decay);
            add(score, [&](int64_t e) { return x.v(b, j, h, e); });
            denominator += score;
            decay += gate(x, b, j, h);
          }
          for (int64_t d = 0; d < K; ++d) {
            const S weight = scale * exp(decay) * x.q(b, t, hk, d);
            if (x.initial_state)
              add(weight, [&](int64_t e) { return x.initial_state(n, h, d, e); });
            if (x.initial_z) denominator += weight * x.initial_z(n, h, d);
          }
          for (int64_t e = 0; e < V; ++e)
            y.o(b, t, h, e) = sum[static_cast<size_t>(e)] / (o.normalize ? denominator : S(1));
        }
        naive_state(x, n, b, h, begin, documents.end(n), y);
      }
  }

  template <class Real>
  static void recurrent(Inputs<Linear, View<Real>> x, const Linear::Options& o,
                        Outputs<Linear, View<Real>> y) {
    const int64_t H = x.v.size(2), K = x.q.size(3), V = x.v.size(3), group = H / x.q.size(2);
    const Real scale = static_cast<Real>(scale_of(o, K));
    const Documents documents(o.cu_seqlens, x.q.size(0), x.q.size(1));
    for (int64_t n = 0; n < documents.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = documents.row(n), hk = h / group;
        State<Real> s(K, V);
        s.start(x, n, h);
        for (int64_t t = documents.begin(n); t < documents.end(n); ++t) {
          s.step(x, b, t, h, hk);
          const Real by =
              o.normalize ? 1 / (scale * s.norm(x, b, t, hk) + static_cast<Real>(o.eps)) : 1;
          for (int64_t e = 0; e < V; ++e) y.o(b, t, h, e) = scale * s.read(x, b, t, hk, e) * by;
        }
        for (int64_t d = 0; d < K; ++d) {
          if (y.final_z) y.final_z(n, h, d) = s.z_at(d);
          for (int64_t e = 0; e < V && y.final_state; ++e) y.final_state(n, h, d, e) = s.at(d, e);
        }
      }
  }

  // Backwards in time, with dS the gradient of S_t and dz that of z_t.
  template <class Real>
  static void recurrent_backward(Inputs<Linear, View<Real>> x, const Linear::Options& o,
                                 Outputs<Linear, View<Real>> dy, Inputs<Linear, View<Real>> dx) {
    const int64_t H = x.v.size(2), K = x.q.size(3), V = x.v.size(3), group = H / x.q.size(2);
    const Real scale = static_cast<Real>(scale_of(o, K));
    const Documents documents(o.cu_seqlens, x.q.size(0), x.q.size(1));
    std::vector<Real> dnum(static_cast<size_t>(V));
    for (int64_t n = 0; n < documents.count(); ++n)
      for (int64_t h = 0; h < H; ++h) {
        const int64_t b = documents.row(n), begin = documents.begin(n), hk = h / group;
        std::vector<State<Real>> states(1, State<Real>(K, V));  // before token begin + i
        states[0].start(x, n, h);
        for (int64_t t = begin; t < documents.end(n); ++t) {
          states.push_back(states.back());
          states.back().step(x, b, t, h, hk);
        }
        State<Real> d(K, V);
        d.start_from(dy.final_state, dy.final_z, n, h);
        for (int64_t t = documents.end(n) - 1; t >= begin; --t) {
          const State<Real>& s = states[static_cast<size_t>(t - begin) + 1];
          const State<Real>& before = states[static_cast<size_t>(t - begin)];
          const Real den =
              o.normalize ? scale * s.norm(x, b, t, hk) + static_cast<Real>(o.eps) : Real(1);
          Real dden = 0;
          for (int64_t e = 0; e < V; ++e) {
            const Real flow = dy.o(b, t, h, e);
            dnum[static_cast<size_t>(e)] = flow / den;
            if (o.normalize) dden -= flow * scale * s.read(x, b, t, hk, e) / (den * den);
          }
          const Real decay = std::exp(gate(x, b, t, h));
          Real dgate = 0;
          for (int64_t i = 0; i < K; ++i) {
            const Real q = x.q(b, t, hk, i), k = x.k(b, t, hk, i);
            Real dq = dden * s.z_at(i), dk = d.z_at(i) += scale * q * dden;
            dgate += d.z_at(i) * decay * before.z_at(i);
            d.z_at(i) *= decay;
            for (int64_t e = 0; e < V; ++e) {
              Real& ds = d.at(i, e) += scale * q * dnum[static_cast<size_t>(e)];
              dq += s.at(i, e) * dnum[static_cast<size_t>(e)];
              dk += ds * x.v(b, t, h, e);
              dx.v(b, t, h, e) += ds * k;
              dgate += ds * decay * before.at(i, e);
              ds *= decay;
            }
            dx.q(b, t, hk, i) += scale * dq;
            dx.k(b, t, hk, i) += dk;
          }
          if (dx.g) dx.g(b, t, h) += dgate;
          if (dx.log_gamma) dx.log_gamma(h) += dgate;
        }
        for (int64_t i = 0; i < K; ++i) {
          if (dx.initial_z) dx.initial_z(n, h, i) = d.z_at(i);
          for (int64_t e = 0; e < V && dx.initial_state; ++e)
            dx.initial_state(n, h, i, e) = d.at(i, e);
        }
      }
  }

  struct Sizes {
    int64_t B = 2, T = 9, Hk = 2, H = 2, K = 4, V = 3;
  };

  static Case<Linear> make(const char* name, const Sizes& s) {
    return {name,
            {.q = normal({s.B, s.T, s.Hk, s.K}, 1, "q"),
             .k = normal({s.B, s.T, s.Hk, s.K}, 1, "k"),
             .v = normal({s.B, s.T, s.H, s.V}, 1, "v")},
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
      const int64_t kind = i * 7 % 10;
      if (kind < 5) g.data<double>()[i] = 0;
      if (kind == 5) g.data<double>()[i] = -30;
      if (kind == 6) g.data<double>()[i] = -1000;
    }
    return g;
  }
  static void add_states(Case<Linear>& c, int64_t N) {
    const int64_t H = c.x.v.size(2), K = c.x.q.size(3), V = c.x.v.size(3);
    c.x.initial_state = normal({N, H, K, V}, 1, "initial_state");
    if (c.o.normalize) c.x.initial_z = log_decays({N, H, K}, -1);
  }
  // Positive keys and queries, as a feature map makes them.
  static void normalise(Case<Linear>& c) {
    c.o.normalize = true;
    for (const Tensor& t : {c.x.q, c.x.k})
      for (int64_t i = 0; i < t.numel(); ++i)
        t.data<double>()[i] = std::abs(t.data<double>()[i]) + 0.1;
  }

  static std::vector<Case<Linear>> cases() {
    std::vector<Case<Linear>> list;
    const auto add = [&](const char* name, const Sizes& s) -> Case<Linear>& {
      return list.emplace_back(make(name, s));
    };
    add("no decay", {});
    add("scale", {.B = 1, .T = 5}).o.scale = 0.3;
    add("one token", {.B = 2, .T = 1});
    {
      auto& c = add("one token, gate, state", {.B = 2, .T = 1, .V = 17});
      c.x.g = log_decays({2, 1, 2}, 1);
      add_states(c, 2);
    }
    add("fixed decay, off the chunk", {.B = 1, .T = 67}).x.log_gamma = log_decays({2}, 0.05);
    {
      auto& c = add("gate and fixed decay, states", {.B = 2, .T = 19, .K = 5, .V = 18});
      c.x.g = log_decays({2, 19, 2}, 0.5);
      c.x.log_gamma = log_decays({2}, 0.1);
      add_states(c, 2);
    }
    add("gates at 0, -30, -1000", {.B = 1, .T = 70}).x.g = extreme_decays({1, 70, 2});
    {
      auto& c = add("one token that forgets all", {.B = 2, .T = 1});
      c.x.g = full({2, 1, 2}, kReset, Dtype::f64);
      add_states(c, 2);
    }
    {
      auto& c = add("gates of -infinity", {.B = 1, .T = 70, .Hk = 1, .H = 4});
      c.x.g = log_decays({1, 70, 4}, 0.1);
      put_resets(c.x.g);
      add_states(c, 1);
    }
    {
      auto& c = add("gates of -infinity, packed, normalised", {.B = 1, .T = 70});
      const std::vector<int32_t> cu{0, 1, 31, 64, 65, 70};
      c.o.cu_seqlens = tensor_of(cu);
      c.x.g = log_decays({1, 70, 2}, 0.1);
      put_resets_and_extremes(c.x.g, cu);
      normalise(c);
      add_states(c, 5);
    }
    {
      auto& c = add("a fixed decay of -infinity", {.B = 1, .T = 67});
      c.x.log_gamma = log_decays({2}, 0.05);
      c.x.log_gamma.data<double>()[1] = kReset;
      add_states(c, 1);
    }
    {
      auto& c = add("shared keys", {.B = 1, .T = 20, .Hk = 2, .H = 4});
      c.x.g = log_decays({1, 20, 4}, 0.5);
      add_states(c, 1);
    }
    add("one key head", {.B = 1, .T = 18, .Hk = 1, .H = 3}).x.g = log_decays({1, 18, 3}, 0.5);
    {
      auto& c = add("packed", {.B = 1, .T = 29});
      c.o.cu_seqlens = tensor_of<int32_t>({0, 1, 9, 10, 22, 29});
      c.x.g = log_decays({1, 29, 2}, 0.5);
      add_states(c, 5);
    }
    {
      auto& c = add("packed over chunks, normalised", {.B = 1, .T = 70, .H = 4, .K = 3});
      c.o.cu_seqlens = tensor_of<int32_t>({0, 3, 66, 70});
      c.x.g = log_decays({1, 70, 4}, 0.2);
      normalise(c);
    }
    normalise(add("normalised", {.T = 21}));
    {
      auto& c = add("normalised, gate, states", {.B = 2, .T = 18, .Hk = 1});
      c.x.g = log_decays({2, 18, 2}, 0.3);
      normalise(c);
      c.o.eps = 0.1;
      add_states(c, 2);
    }
    {
      auto& c = add("no state returned", {.B = 1, .T = 7});
      c.o.return_state = false;
    }
    {
      auto& c = add("strided views", {.B = 2, .T = 6, .H = 2, .K = 4, .V = 4});
      c.x.q = normal({2, 2, 4, 6}, 1, "q").transpose(1, 3).transpose(2, 3);
      c.x.v = normal({2, 6, 2, 9}, 1, "v").slice(3, 1, 5);
      c.x.g = log_decays({2, 2, 6}, 0.5).transpose(1, 2);
    }
    // Rows of 16 bytes and no states: what the scans of a GPU take.
    add("whole rows", {.B = 2, .T = 67, .K = 8, .V = 16}).o.return_state = false;
    {
      auto& c = add("whole rows, gates", {.B = 2, .T = 129, .K = 72, .V = 8});
      c.x.g = log_decays({2, 129, 2}, 0.2);
      c.o.return_state = false;
    }
    {
      auto& c = add("whole rows, shared keys, gates of -infinity",
                    {.B = 1, .T = 65, .Hk = 2, .H = 6, .K = 8, .V = 24});
      c.x.g = log_decays({1, 65, 6}, 0.1);
      put_resets(c.x.g);
      c.o.return_state = false;
    }
    return list;
  }

  static Bench<Linear> bench(int64_t T) {
    constexpr int64_t H = 4, K = 64, V = 64;
    Case<Linear> c = make("", {.B = 1, .T = T, .Hk = H, .H = H, .K = K, .V = V});
    c.x.g = log_decays({1, T, H}, 0.1);
    return {c.x, c.o, static_cast<double>(T * H) * Linear::flops(K, V)};
  }

  static std::vector<GpuShape> gpu_shapes() {
    const Flops each = Linear::flops(128, 128);
    GpuShape retention = heads_shape("retention", {}, each, {"log_gamma"});
    retention.constants = {"log_gamma"};  // fixed rates, in layers and in peers
    return {heads_shape("linear", {}, each), retention, heads_shape("simple_gla", {}, each, {"g"}),
            heads_shape("mamba2", {.H = 64, .Hk = 1, .V = 64}, Linear::flops(128, 64), {"g"})};
  }

 private:
  static double scale_of(const Linear::Options& o, int64_t K) {
    return o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(K));
  }
  template <class S>
  static S gate(const Inputs<Linear, View<S>>& x, int64_t b, int64_t t, int64_t h) {
    S a = 0;
    if (x.g) a += x.g(b, t, h);
    if (x.log_gamma) a += x.log_gamma(h);
    return a;
  }

  // S_T = e^{a_1 + .. + a_T} S_0 + sum_j e^{a_{j+1} + .. + a_T} k_j v_j', and z_T alike.
  template <class S>
  static void naive_state(Inputs<Linear, View<S>>& x, int64_t n, int64_t b, int64_t h,
                          int64_t begin, int64_t end, Outputs<Linear, View<S>>& y) {
    using std::exp;
    if (!y.final_state) return;
    const int64_t K = x.q.size(3), V = x.v.size(3), hk = h / (x.v.size(2) / x.q.size(2));
    for (int64_t d = 0; d < K; ++d) {
      S decay = 0, z = 0;
      std::vector<S> row(static_cast<size_t>(V), S(0));
      for (int64_t j = end - 1; j >= begin; --j) {
        const S k = exp(decay) * x.k(b, j, hk, d);
        z += k;
        for (int64_t e = 0; e < V; ++e) row[static_cast<size_t>(e)] += k * x.v(b, j, h, e);
        decay += gate(x, b, j, h);
      }
      if (x.initial_z) z += exp(decay) * x.initial_z(n, h, d);
      if (y.final_z) y.final_z(n, h, d) = z;
      for (int64_t e = 0; e < V; ++e) {
        S s = row[static_cast<size_t>(e)];
        if (x.initial_state) s += exp(decay) * x.initial_state(n, h, d, e);
        y.final_state(n, h, d, e) = s;
      }
    }
  }

  // S and z of one head.
  template <class Real>
  class State {
   public:
    State(int64_t K, int64_t V)
        : K_(K), V_(V), s_(size_t(K * V), Real(0)), z_(size_t(K), Real(0)) {}
    Real& at(int64_t d, int64_t e) { return s_[static_cast<size_t>(d * V_ + e)]; }
    Real at(int64_t d, int64_t e) const { return s_[static_cast<size_t>(d * V_ + e)]; }
    Real& z_at(int64_t d) { return z_[static_cast<size_t>(d)]; }
    Real z_at(int64_t d) const { return z_[static_cast<size_t>(d)]; }

    void start_from(const View<Real>& state, const View<Real>& z, int64_t n, int64_t h) {
      for (int64_t d = 0; d < K_; ++d) {
        if (z) z_at(d) = z(n, h, d);
        for (int64_t e = 0; e < V_ && state; ++e) at(d, e) = state(n, h, d, e);
      }
    }
    void start(const Inputs<Linear, View<Real>>& x, int64_t n, int64_t h) {
      start_from(x.initial_state, x.initial_z, n, h);
    }
    void step(const Inputs<Linear, View<Real>>& x, int64_t b, int64_t t, int64_t h, int64_t hk) {
      const Real decay = std::exp(gate(x, b, t, h));
      for (int64_t d = 0; d < K_; ++d) {
        const Real k = x.k(b, t, hk, d);
        z_at(d) = decay * z_at(d) + k;
        for (int64_t e = 0; e < V_; ++e) at(d, e) = decay * at(d, e) + k * x.v(b, t, h, e);
      }
    }
    Real norm(const Inputs<Linear, View<Real>>& x, int64_t b, int64_t t, int64_t hk) const {
      Real sum = 0;
      for (int64_t d = 0; d < K_; ++d) sum += x.q(b, t, hk, d) * z_at(d);
      return sum;
    }
    Real read(const Inputs<Linear, View<Real>>& x, int64_t b, int64_t t, int64_t hk,
              int64_t e) const {
      Real sum = 0;
      for (int64_t d = 0; d < K_; ++d) sum += x.q(b, t, hk, d) * at(d, e);
      return sum;
    }

   private:
    int64_t K_, V_;
    std::vector<Real> s_, z_;
  };
};

}  // namespace weft::kernels
