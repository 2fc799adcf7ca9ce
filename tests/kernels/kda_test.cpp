// The delta rule with a gate a key channel: its three forms, what it has in common with its
// neighbours, and the inputs that have broken such code before.
#include "kernels/kda/kda.h"

#include "kernels/delta/delta.h"
#include "kernels/gated_linear/gated_linear.h"
#include "kernels/kda/reference.h"
#include "tests/kernels/stateful.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::stateful;

namespace {

using Ref = Reference<Kda>;
using Sizes = Ref::Sizes;

Case<Kda> sample(const Sizes& s, bool state = true, const std::vector<int32_t>& cu = {}) {
  return Ref::sample("sample", s, state, cu);
}

Case<Kda> packed() { return sample({.T = 29}, true, {0, 1, 9, 10, 22, 29}); }

Delta::Inputs<Tensor> as_delta(const Case<Kda>& c, const Tensor& g) {
  return {.q = c.x.q,
          .k = c.x.k,
          .v = c.x.v,
          .beta = c.x.beta,
          .g = g,
          .initial_state = c.x.initial_state};
}

// All that kda has in common with delta, but for the gates.
void check_delta(const Result<Kda>& a, const Result<Delta>& b, double bound) {
  CHECK(difference(a.y.o, b.y.o) < bound);
  CHECK(difference(a.y.final_state, b.y.final_state) < bound);
  CHECK(difference(a.dx.q, b.dx.q) < bound);
  CHECK(difference(a.dx.k, b.dx.k) < bound);
  CHECK(difference(a.dx.v, b.dx.v) < bound);
  CHECK(difference(a.dx.beta, b.dx.beta) < bound);
  CHECK(difference(a.dx.initial_state, b.dx.initial_state) < bound);
}

void check_finite(const Result<Kda>& r) {
  CHECK(autograd::all_finite(r.y.o));
  CHECK(autograd::all_finite(r.y.final_state));
  for_inputs<Kda>(
      [](const std::string& name, bool, const Tensor& t) {
        INFO("gradient of " << name);
        if (t) CHECK(autograd::all_finite(t));
      },
      const_cast<Inputs<Kda>&>(r.dx));
}

Outputs<Kda> narrowed(const Outputs<Kda>& dy) {
  return {dy.o.to(Dtype::f32), dy.final_state.to(Dtype::f32)};
}

}  // namespace

TEST_CASE("kda: naive, recurrent and chunkwise agree") { check_forms<Kda>(); }

TEST_CASE("kda: gradients are those of finite differences") {
  for (const Case<Kda>& c : {sample({.B = 2, .T = 1}), sample({.T = 17, .K = 3, .V = 2}),
                             sample({.T = 34, .H = 1, .K = 2, .V = 2}, false), packed()})
    check_differences<Kda>(c);
}

TEST_CASE("kda: any length agrees with the recurrence") {
  const Operation& op = operation("kda");
  for (const int64_t T : {1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 129, 300})
    for (const bool state : {false, true}) {
      const Case<Kda> c = sample({.T = T, .K = 5, .V = 3}, state);
      INFO("T = " << T);
      Tensors in{{"q", c.x.q}, {"k", c.x.k}, {"v", c.x.v}, {"beta", c.x.beta}, {"g", c.x.g}};
      if (state) in["initial_state"] = c.x.initial_state;
      const Tensors dy{{"dout", normal(c.x.v.shape(), 3, "dout")},
                       {"dfinal_state", normal({1, 2, 5, 3}, 3, "dfinal_state")}};
      const Tensors a = op.backward(Form::chunkwise, in, {}, dy);
      for (const auto& [name, t] : op.backward(Form::recurrent, in, {}, dy)) {
        INFO(name);
        CHECK(difference(a.at(name), t) < 1e-12);
      }
      CHECK(difference(op.forward(Form::chunkwise, in, {}).at("o"),
                       op.forward(Form::recurrent, in, {}).at("o")) < 1e-12);
    }
}

TEST_CASE("kda: equal gates in every channel give the gated delta rule") {
  for (const double strength : {0.1, 1.0, 30.0}) {
    Case<Kda> c = sample({.B = 2, .T = 67, .H = 4, .Hk = 2, .K = 6, .V = 5});
    const Tensor g = c.x.g.select(3, 0).contiguous();
    for (int64_t i = 0; i < g.numel(); ++i) g.data<double>()[i] *= strength;
    c.x.g = g.unsqueeze(3).expand(3, 6);
    const Outputs<Kda> dy = gradients_for<Kda>(c.x, c.o);
    const Result<Kda> a = run<Kda>(c.x, c.o, dy);
    const Result<Delta> b = run<Delta>(as_delta(c, g), {}, {dy.o, dy.final_state});
    check_delta(a, b, 1e-12);
    const Tensor dg = zeros(g.shape(), Dtype::f64);
    for (int64_t d = 0; d < 6; ++d) dg.add_from(a.dx.g.select(3, d));
    CHECK(difference(dg, b.dx.g) < 1e-12);
  }
}

TEST_CASE("kda: gates of zero give the delta rule") {
  Case<Kda> c = sample({.B = 2, .T = 70, .K = 5, .V = 4});
  c.x.g.zero();
  const Outputs<Kda> dy = gradients_for<Kda>(c.x, c.o);
  check_delta(run<Kda>(c.x, c.o, dy), run<Delta>(as_delta(c, {}), {}, {dy.o, dy.final_state}),
              1e-12);
}

TEST_CASE("kda: keys that never meet give gated linear attention of beta v") {
  const int64_t T = 40;  // each token has a key channel of its own: nothing is there to overwrite
  Case<Kda> c = sample({.T = T, .H = 1, .K = T, .V = 3}, false);
  c.x.k.zero();
  for (int64_t t = 0; t < T; ++t) c.x.k.data<double>()[t * T + (7 * t) % T] = 1;
  const Tensor v = c.x.v.clone();
  for (int64_t i = 0; i < v.numel(); ++i) v.data<double>()[i] *= c.x.beta.data<double>()[i / 3];
  const GatedLinear::Inputs<Tensor> x{.q = c.x.q, .k = c.x.k, .v = v, .g = c.x.g};
  CHECK(difference(forward<Kda>(c.x, c.o).o, forward<GatedLinear>(x, {}).o) < 1e-13);
}

TEST_CASE("kda: with beta 1 a unit key returns what was written last") {
  for (const int64_t T : {1, 5, 64, 77}) {
    Case<Kda> c = sample({.T = T, .K = 6, .V = 4});
    c.x.beta.fill(1);
    const View<double> S = view<double>(forward<Kda>(c.x, c.o).final_state);
    const View<double> k = view<double>(c.x.k), v = view<double>(c.x.v);
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t j = 0; j < 4; ++j) {
        double got = 0;
        for (int64_t d = 0; d < 6; ++d) got += S(0, h, d, j) * k(0, T - 1, 0, d);
        CHECK(got == Approx(v(0, T - 1, h, j)).margin(1e-12));
      }
  }
}

TEST_CASE("kda: a closed channel holds its own token alone, an open one the latest of all") {
  Case<Kda> c = sample({.T = 70, .H = 1, .K = 2, .V = 1}, false);
  c.x.k.fill(std::sqrt(0.5));
  c.x.beta.fill(1);
  c.x.v.fill(1);
  c.x.g.select(3, 0).fill(-1000);
  c.x.g.select(3, 1).fill(0);
  // What the open channel holds goes half the way to sqrt(2) with each token.
  const View<double> S = view<double>(forward<Kda>(c.x, c.o).final_state);
  CHECK(S(0, 0, 1, 0) == Approx(std::sqrt(2.0)));
  CHECK(std::abs(S(0, 0, 0, 0)) < 1e-12);
}

TEST_CASE("kda: near-equal keys with beta 2 keep fp32's digits") {
  Case<Kda> c = sample({.T = 256, .H = 1, .K = 64, .V = 32}, false);
  double* const k = c.x.k.data<double>();
  for (int64_t t = 0; t < 256; ++t) {
    double sum = 0;
    for (int64_t d = 0; d < 64; ++d) {
      k[t * 64 + d] = 0.3 * k[t * 64 + d] + (d == 0 ? 1 : 0);  // cosine about 0.95
      sum += k[t * 64 + d] * k[t * 64 + d];
    }
    for (int64_t d = 0; d < 64; ++d) k[t * 64 + d] /= std::sqrt(sum);
  }
  for (int64_t i = 0; i < c.x.g.numel(); ++i) c.x.g.data<double>()[i] *= 0.01;
  for (const double beta : {1.0, 2.0}) {
    c.x.beta.fill(beta);
    const Outputs<Kda> dy = gradients_for<Kda>(c.x, c.o);
    check_close<Kda>(run<Kda>(in_f32<Kda>(c).x, c.o, narrowed(dy)), run<Kda>(c.x, c.o, dy), 3e-4);
  }
}

TEST_CASE("kda: strong gates everywhere leave each token to itself") {
  for (const double g : {-80.0, -1000.0}) {
    Case<Kda> c = in_f32<Kda>(sample({.T = 67, .Hk = 2, .K = 5, .V = 3}));
    c.x.g.fill(g);
    const Result<Kda> r = run<Kda>(c.x, c.o, gradients_for<Kda>(c.x, c.o));
    check_finite(r);
    const View<float> q = view<float>(c.x.q), k = view<float>(c.x.k), v = view<float>(c.x.v),
                      beta = view<float>(c.x.beta), o = view<float>(r.y.o);
    for (int64_t t = 0; t < 67; ++t)
      for (int64_t h = 0; h < 2; ++h) {
        double match = 0;
        for (int64_t d = 0; d < 5; ++d) match += q(0, t, h, d) * k(0, t, h, d);
        for (int64_t j = 0; j < 3; ++j)
          CHECK(o(0, t, h, j) ==
                Approx(match / std::sqrt(5.0) * beta(0, t, h) * v(0, t, h, j)).margin(1e-6));
      }
  }
}

TEST_CASE("kda: gates of 0, -30 and -1000 side by side cost no digits") {
  Case<Kda> c = sample({.T = 256, .K = 16, .V = 16});
  Ref::make_extreme(c.x.g);
  const Outputs<Kda> dy = gradients_for<Kda>(c.x, c.o);
  const Result<Kda> narrow = run<Kda>(in_f32<Kda>(c).x, c.o, narrowed(dy));
  check_finite(narrow);
  check_close<Kda>(narrow, run<Kda>(c.x, c.o, dy), 1e-5);
}

TEST_CASE("kda: a sequence may be cut anywhere and the state carried") {
  const Case<Kda> c = sample({.T = 150, .K = 5, .V = 4});
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, 1, 150}, {0, 64, 150}, {0, 31, 32, 33, 149, 150}})
    check_split<Kda>(c, cuts, 1e-11);
  check_split<Kda>(sample({.T = 8, .H = 4, .Hk = 2}), {0, 1, 2, 3, 4, 5, 6, 7, 8}, 1e-11);
}

TEST_CASE("kda: packed documents are the documents one by one") {
  check_packed<Kda>(packed(), 1e-11);
  check_packed<Kda>(sample({.T = 200, .Hk = 2, .K = 36, .V = 5}, true, {0, 63, 64, 66, 193, 200}),
                    1e-11);
  check_packed<Kda>(sample({.T = 100}, true, {0, 31, 32, 64, 97, 100}), 1e-11);
}

TEST_CASE("kda: packed documents do not know of each other") {
  for (int64_t d = 0; d < 5; ++d) check_leak<Kda>(packed(), d);
  check_leak<Kda>(in_f32<Kda>(sample({.T = 100}, true, {0, 31, 70, 100})), 1);
}

TEST_CASE("kda: the past does not know of the future") {
  for (const int64_t p : {1, 13, 32, 45, 69}) {
    check_prefix<Kda>(sample({.B = 2, .T = 70}), p);
    check_prefix<Kda>(in_f32<Kda>(sample({.B = 2, .T = 70})), p);
  }
}

TEST_CASE("kda: inputs may have any strides") {
  check_strided<Kda>(sample({.B = 2, .T = 37}));
  check_strided<Kda>(sample({.B = 2, .T = 1, .Hk = 2}));
  check_strided<Kda>(packed());
}

TEST_CASE("kda: the same bits on one thread, on two, and on used memory") {
  check_repeatable<Kda>(in_f32<Kda>(sample({.B = 2, .T = 130, .H = 4, .Hk = 2, .K = 24, .V = 20})));
  check_repeatable<Kda>(in_f32<Kda>(sample({.B = 2, .T = 1, .H = 4, .Hk = 2, .K = 24, .V = 20})));
  check_repeatable<Kda>(in_f32<Kda>(packed()));
}

TEST_CASE("kda: the meta device follows the memory to the byte") {
  for (const Case<Kda>& c :
       {sample({.B = 2, .T = 130, .H = 4, .Hk = 2, .K = 24, .V = 20}), sample({.B = 3, .T = 1}),
        sample({.T = 70, .H = 1, .K = 40, .V = 7}, false), packed()}) {
    check_meta<Kda>(c);
    check_meta<Kda>(in_f32<Kda>(c));
  }
}

TEST_CASE("kda: memory grows with the tokens and not with the documents") {
  const auto peak = [](int64_t T, const std::vector<int32_t>& cu) {
    Case<Kda> c = sample({.T = T, .H = 1}, false, cu);
    c.o.return_state = false;
    for_fields([](Tensor& t) { t = t ? t.to(kMeta) : t; }, c.x);
    const int64_t before = allocator(kMeta).stats().current;
    allocator(kMeta).reset_peak();
    run<Kda>(c.x, c.o, {});
    return allocator(kMeta).stats().peak - before;
  };
  const int64_t one = peak(1024, {}), two = peak(2048, {}), four = peak(4096, {});
  CHECK(four - two == 2 * (two - one));
  CHECK(peak(1024, {0, 1, 2, 3, 700, 1024}) == one);
}

TEST_CASE("kda: wrong inputs are named") {
  const auto message = [](const Case<Kda>& c) {
    try {
      forward<Kda>(c.x, c.o);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const Case<Kda> good = sample({.B = 2, .T = 6, .H = 4, .Hk = 2, .K = 5, .V = 3});
  Case<Kda> c = good;
  c.x.q = normal({2, 6, 2, 4}, 1, "q");
  CHECK(message(c) == "kda: q has shape [2, 6, 2, 4], expected [2, 6, 2, 5] as k");
  c = good;
  c.x.beta = normal({2, 6}, 1, "beta");
  CHECK(message(c) == "kda: beta has shape [2, 6], expected [2, 6, 4]");
  c = good;
  c.x.g = normal({2, 6, 4}, 1, "g");
  CHECK(message(c) == "kda: g has shape [2, 6, 4], expected [2, 6, 4, 5]");
  c = good;
  c.x.g = {};
  CHECK(message(c) == "kda: input g [B, T, H, K] is missing");
  c = good;
  c.x.q = c.x.k = normal({2, 6, 3, 5}, 1, "k");
  CHECK(message(c) == "kda: k has 3 heads, v has 4; expected a divisor of that");
  c = good;
  c.x.initial_state = normal({1, 4, 5, 3}, 1, "state");
  CHECK(message(c) == "kda: initial_state has shape [1, 4, 5, 3], expected [2, 4, 5, 3]");
}
