// Linear attention: its three forms, its identities, the mechanisms that are its settings, and the
// inputs that have broken such code before.
#include "kernels/linear/linear.h"

#include "kernels/linear/reference.h"
#include "tests/kernels/stateful.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::stateful;

namespace {

using Ref = Reference<Linear>;
using Sizes = Ref::Sizes;

enum class Decays { none, fixed, gate };

Case<Linear> sample(const Sizes& s, Decays decays = Decays::gate, bool state = true,
                    const std::vector<int32_t>& cu = {}) {
  Case<Linear> c = Ref::make("sample", s);
  if (decays == Decays::gate) c.x.g = Ref::log_decays({s.B, s.T, s.H}, 0.3);
  if (decays == Decays::fixed) c.x.log_gamma = Ref::log_decays({s.H}, 0.1);
  if (!cu.empty()) c.o.cu_seqlens = tensor_of(cu);
  if (state) Ref::add_states(c, cu.empty() ? s.B : static_cast<int64_t>(cu.size()) - 1);
  return c;
}

Case<Linear> packed(Decays decays = Decays::gate) {
  return sample({.B = 1, .T = 29, .Hk = 1, .H = 2}, decays, true, {0, 1, 9, 10, 22, 29});
}

Case<Linear> normalised(const Sizes& s, const std::vector<int32_t>& cu = {}) {
  Case<Linear> c = sample(s, Decays::gate, false, cu);
  Ref::normalise(c);
  Ref::add_states(c, cu.empty() ? s.B : static_cast<int64_t>(cu.size()) - 1);
  return c;
}

Outputs<Linear> all_gradients(const Case<Linear>& c) {
  Outputs<Linear> dy = gradients_for<Linear>(c.x, c.o);
  if (dy.final_z) dy.final_z = normal(dy.final_z.shape(), 5, "dfinal_z").to(dy.o.dtype());
  return dy;
}

// max |a - b| / max |b| over outputs and those gradients that both have.
void check_equal(const Result<Linear>& a, const Result<Linear>& b, double bound) {
  CHECK(difference(a.y.o, b.y.o) < bound);
  CHECK(difference(a.y.final_state, b.y.final_state) < bound);
  for_inputs<Linear>(
      [&](const std::string& name, bool, const Tensor& t, const Tensor& u) {
        INFO("gradient of " << name);
        if (t && u) CHECK(difference(t, u) < bound);
      },
      const_cast<Inputs<Linear>&>(a.dx), const_cast<Inputs<Linear>&>(b.dx));
}

}  // namespace

TEST_CASE("linear: naive, recurrent and chunkwise agree") { check_forms<Linear>(); }

TEST_CASE("linear: gradients are those of finite differences") {
  for (const Case<Linear>& c :
       {sample({.B = 2, .T = 1}), sample({.B = 1, .T = 17, .Hk = 1, .K = 3, .V = 2}),
        sample({.B = 1, .T = 19, .Hk = 1, .H = 1, .K = 3, .V = 4}, Decays::fixed),
        sample({.B = 1, .T = 18, .Hk = 1, .H = 1, .K = 3, .V = 2}, Decays::none), packed(),
        normalised({.B = 1, .T = 17, .Hk = 1, .K = 3, .V = 2}),
        normalised({.B = 1, .T = 9, .Hk = 1, .H = 1, .K = 2, .V = 2}, {0, 1, 5, 9})})
    check_differences<Linear>(c);
}

TEST_CASE("linear: any length agrees with the recurrence") {
  for (const int64_t T : {1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 129, 300})
    for (const bool state : {false, true}) {
      const Case<Linear> c =
          sample({.B = 1, .T = T, .Hk = 1, .H = 2, .K = 5, .V = 3}, Decays::gate, state);
      INFO("T = " << T);
      Tensors in{{"q", c.x.q}, {"k", c.x.k}, {"v", c.x.v}, {"g", c.x.g}};
      if (state) in["initial_state"] = c.x.initial_state;
      const Operation& op = operation("linear");
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

TEST_CASE("linear: gates of 0 are no gates") {
  Case<Linear> c = sample({.B = 1, .T = 130, .Hk = 1, .H = 2}, Decays::none);
  const Outputs<Linear> dy = all_gradients(c);
  const Result<Linear> without = run<Linear>(c.x, c.o, dy);
  c.x.g = zeros({1, 130, 2}, Dtype::f64);
  check_equal(run<Linear>(c.x, c.o, dy), without, 1e-14);
}

TEST_CASE("linear: a fixed decay is the same gate at every token") {
  Case<Linear> c = sample({.B = 2, .T = 70, .Hk = 2, .H = 2}, Decays::fixed);
  const Outputs<Linear> dy = all_gradients(c);
  const Result<Linear> fixed = run<Linear>(c.x, c.o, dy);
  c.x.g = c.x.log_gamma.unsqueeze(0).unsqueeze(0).expand(0, 2).expand(1, 70);
  c.x.log_gamma = {};
  const Result<Linear> gated = run<Linear>(c.x, c.o, dy);
  check_equal(gated, fixed, 1e-13);
  std::vector<double> sum(2, 0.0);
  const std::vector<double> dg = to_doubles(gated.dx.g);
  for (size_t i = 0; i < dg.size(); ++i) sum[i % 2] += dg[i];
  CHECK(difference(tensor_of(sum), fixed.dx.log_gamma) < 1e-12);
}

TEST_CASE("linear: strong gates everywhere leave each token to itself") {
  for (const double g : {-80.0, -1000.0}) {
    Case<Linear> c = in_f32<Linear>(sample({.B = 1, .T = 67, .K = 5, .V = 3}));
    c.x.g.fill(g);
    const Result<Linear> r = run<Linear>(c.x, c.o, all_gradients(c));
    for_inputs<Linear>(
        [](const std::string& name, bool, const Tensor& t) {
          INFO("gradient of " << name);
          if (t) CHECK(autograd::all_finite(t));
        },
        const_cast<Inputs<Linear>&>(r.dx));
    const View<float> q = view<float>(c.x.q), k = view<float>(c.x.k), v = view<float>(c.x.v),
                      o = view<float>(r.y.o);
    for (int64_t t = 0; t < 67; ++t)
      for (int64_t h = 0; h < 2; ++h) {
        double match = 0;
        for (int64_t d = 0; d < 5; ++d) match += q(0, t, h, d) * k(0, t, h, d);
        for (int64_t e = 0; e < 3; ++e)
          CHECK(o(0, t, h, e) == Approx(match / std::sqrt(5.0) * v(0, t, h, e)).margin(1e-6));
      }
  }
}

TEST_CASE("linear: a gate of -1000 costs later tokens no digits") {
  Case<Linear> c = sample({.B = 1, .T = 256, .Hk = 1, .H = 2, .K = 16, .V = 16});
  c.x.g = Ref::extreme_decays({1, 256, 2});
  const Outputs<Linear> dy = all_gradients(c);
  const Outputs<Linear> narrow_dy{dy.o.to(Dtype::f32), dy.final_state.to(Dtype::f32), {}};
  check_equal(run<Linear>(in_f32<Linear>(c).x, c.o, narrow_dy), run<Linear>(c.x, c.o, dy), 3e-6);
}

TEST_CASE("linear: a slow decay keeps its rate over thousands of tokens in f32") {
  Case<Linear> c =
      sample({.B = 1, .T = 4096, .Hk = 1, .H = 1, .K = 2, .V = 2}, Decays::fixed, false);
  c.x.k.fill(1);
  c.x.v.fill(1);
  c.x.log_gamma.fill(std::log1p(-std::exp2(-11)));
  const double want = (1 - std::exp(4096 * std::log1p(-std::exp2(-11)))) / std::exp2(-11);
  const Tensor state = forward<Linear>(in_f32<Linear>(c).x, c.o).final_state;
  CHECK(to_doubles(state)[0] == Approx(want).epsilon(1e-5));
}

TEST_CASE("linear: a sequence may be cut anywhere and the state carried") {
  for (const Decays decays : {Decays::none, Decays::fixed, Decays::gate}) {
    const Case<Linear> c = sample({.B = 1, .T = 150, .Hk = 1, .K = 5, .V = 4}, decays);
    for (const std::vector<int64_t>& cuts :
         {std::vector<int64_t>{0, 1, 150}, {0, 64, 150}, {0, 31, 32, 33, 149, 150}})
      check_split<Linear>(c, cuts, 1e-11);
  }
  check_split<Linear>(sample({.B = 1, .T = 8, .Hk = 2, .H = 4}), {0, 1, 2, 3, 4, 5, 6, 7, 8},
                      1e-11);
}

TEST_CASE("linear: the normaliser's state may be carried too, one token at a time") {
  const Case<Linear> c = normalised({.B = 1, .T = 9, .Hk = 1});
  const Outputs<Linear> dy = all_gradients(c);
  const Result<Linear> whole = run<Linear>(c.x, c.o, dy);
  std::vector<Inputs<Linear>> in;
  std::vector<Outputs<Linear>> out;
  for (int64_t t = 0; t < 9; ++t) {
    in.push_back(tokens<Linear>(c.x, t, t + 1));
    in.back().initial_state = t ? out.back().final_state : c.x.initial_state;
    in.back().initial_z = t ? out.back().final_z : c.x.initial_z;
    out.push_back(forward<Linear>(in.back(), c.o));
    CHECK(difference(out.back().o, whole.y.o.slice(1, t, t + 1)) < 1e-12);
  }
  CHECK(difference(out.back().final_z, whole.y.final_z) < 1e-13);
  Outputs<Linear> flow = dy;
  for (int64_t t = 8; t >= 0; --t) {
    flow.o = dy.o.slice(1, t, t + 1);
    const Result<Linear> r = run<Linear>(in[static_cast<size_t>(t)], c.o, flow);
    CHECK(difference(r.dx.k, whole.dx.k.slice(1, t, t + 1)) < 1e-11);
    CHECK(difference(r.dx.g, whole.dx.g.slice(1, t, t + 1)) < 1e-11);
    flow.final_state = r.dx.initial_state;
    flow.final_z = r.dx.initial_z;
  }
  CHECK(difference(flow.final_z, whole.dx.initial_z) < 1e-12);
}

TEST_CASE("linear: a prefix of zero keys gives 0, and finite gradients") {
  Case<Linear> c = normalised({.B = 1, .T = 70});
  c.x.initial_state = c.x.initial_z = {};
  c.x.k.slice(1, 0, 66).zero();
  const Result<Linear> r = run<Linear>(c.x, c.o, all_gradients(c));
  for (const double value : to_doubles(r.y.o.slice(1, 0, 66))) CHECK(value == 0);
  for (const Tensor& t : {r.dx.q, r.dx.k, r.dx.v, r.dx.g}) CHECK(autograd::all_finite(t));
}

TEST_CASE("linear: normalised, outputs are means: constant values come back") {
  Case<Linear> c = normalised({.B = 2, .T = 80, .Hk = 1});
  c.x.initial_state = c.x.initial_z = {};
  c.o.eps = 0;
  c.x.v.fill(3);
  for (const double value : to_doubles(forward<Linear>(c.x, c.o).o)) CHECK(value == Approx(3));
}

TEST_CASE("linear: a shared key is each of its heads' key") {
  for (const int64_t Hk : {1, 2, 4}) {
    const Case<Linear> c = sample({.B = 2, .T = 35, .Hk = Hk, .H = 4});
    const Outputs<Linear> dy = all_gradients(c);
    const Result<Linear> shared = run<Linear>(c.x, c.o, dy);
    Inputs<Linear> own = c.x;
    own.q = empty({2, 35, 4, 4}, Dtype::f64);
    own.k = empty({2, 35, 4, 4}, Dtype::f64);
    for (int64_t h = 0; h < 4; ++h) {
      own.q.select(2, h).copy_from(c.x.q.select(2, h / (4 / Hk)));
      own.k.select(2, h).copy_from(c.x.k.select(2, h / (4 / Hk)));
    }
    const Result<Linear> apart = run<Linear>(own, c.o, dy);
    CHECK(difference(apart.y.o, shared.y.o) < 1e-14);
    const Tensor dk = zeros(c.x.k.shape(), Dtype::f64);
    for (int64_t h = 0; h < 4; ++h) dk.select(2, h / (4 / Hk)).add_from(apart.dx.k.select(2, h));
    CHECK(difference(shared.dx.k, dk) < 1e-13);
  }
}

TEST_CASE("linear: Mamba-2 is q = C, k = B, v = dt x, g = dt A") {
  // h_t = e^{dt A} h_{t-1} + dt x B', y = h C, heads in two groups.
  const int64_t T = 71, H = 4, P = 3, N = 5;
  const Tensor x = normal({1, T, H, P}, 1, "x"), B = normal({1, T, 2, N}, 1, "B"),
               C = normal({1, T, 2, N}, 1, "C"), dt = normal({1, T, H}, 1, "dt");
  const std::vector<double> A{-0.1, -1, -4, -16};
  const Tensor g = empty({1, T, H}, Dtype::f64), v = empty({1, T, H, P}, Dtype::f64),
               y = empty({1, T, H, P}, Dtype::f64);
  const View<double> X = view<double>(x), Bv = view<double>(B), Cv = view<double>(C),
                     D = view<double>(dt), G = view<double>(g), V = view<double>(v),
                     Y = view<double>(y);
  std::vector<double> state(static_cast<size_t>(H * P * N), 0.0);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t h = 0; h < H; ++h) {
      D(0, t, h) = std::log1p(std::exp(D(0, t, h)));
      G(0, t, h) = D(0, t, h) * A[static_cast<size_t>(h)];
      for (int64_t p = 0; p < P; ++p) {
        V(0, t, h, p) = D(0, t, h) * X(0, t, h, p);
        double sum = 0;
        for (int64_t n = 0; n < N; ++n) {
          double& s = state[static_cast<size_t>((h * P + p) * N + n)];
          s = std::exp(G(0, t, h)) * s + V(0, t, h, p) * Bv(0, t, h / 2, n);
          sum += s * Cv(0, t, h / 2, n);
        }
        Y(0, t, h, p) = sum;
      }
    }
  Linear::Options o;
  o.scale = 1;
  CHECK(difference(forward<Linear>({.q = C, .k = B, .v = v, .g = g}, o).o, y) < 1e-13);
}

TEST_CASE("linear: packed documents are the documents one by one") {
  for (const Decays decays : {Decays::none, Decays::fixed, Decays::gate})
    check_packed<Linear>(packed(decays), 1e-11);
  check_packed<Linear>(
      sample({.B = 1, .T = 200, .K = 36, .V = 5}, Decays::gate, true, {0, 63, 64, 66, 193, 200}),
      1e-11);
  check_packed<Linear>(
      sample({.B = 1, .T = 100, .Hk = 1}, Decays::fixed, true, {0, 31, 32, 64, 97, 100}), 1e-11);
}

TEST_CASE("linear: packed documents do not know of each other") {
  for (int64_t d = 0; d < 5; ++d) check_leak<Linear>(packed(), d);
  check_leak<Linear>(
      in_f32<Linear>(sample({.B = 1, .T = 100, .Hk = 1}, Decays::gate, true, {0, 31, 70, 100})), 1);
}

TEST_CASE("linear: the past does not know of the future") {
  for (const int64_t p : {1, 13, 32, 45, 69}) {
    check_prefix<Linear>(sample({.B = 2, .T = 70, .Hk = 1}), p);
    check_prefix<Linear>(in_f32<Linear>(sample({.B = 2, .T = 70, .Hk = 1})), p);
  }
}

TEST_CASE("linear: inputs may have any strides") {
  check_strided<Linear>(sample({.B = 2, .T = 37, .Hk = 1}));
  check_strided<Linear>(sample({.B = 2, .T = 1}));
  check_strided<Linear>(packed(Decays::fixed));
}

TEST_CASE("linear: the same bits on one thread, on two, and on used memory") {
  check_repeatable<Linear>(
      in_f32<Linear>(sample({.B = 2, .T = 130, .Hk = 2, .H = 4, .K = 24, .V = 20})));
  check_repeatable<Linear>(in_f32<Linear>(sample({.B = 2, .T = 1, .K = 24, .V = 20})));
  check_repeatable<Linear>(in_f32<Linear>(packed(Decays::fixed)));
}

TEST_CASE("linear: the meta device follows the memory to the byte") {
  for (const Case<Linear>& c :
       {sample({.B = 2, .T = 130, .Hk = 2, .H = 4, .K = 24, .V = 20}), sample({.B = 3, .T = 1}),
        sample({.B = 1, .T = 70, .K = 40, .V = 7}, Decays::fixed, false), packed()}) {
    check_meta<Linear>(c);
    check_meta<Linear>(in_f32<Linear>(c));
  }
}

TEST_CASE("linear: memory does not depend on how many documents there are") {
  const auto peak = [](const std::vector<int32_t>& cu) {
    Case<Linear> c = sample({.B = 1, .T = 256, .K = 16, .V = 16}, Decays::gate, false, cu);
    c.o.return_state = false;
    const Tensor dout = normal(c.x.v.shape(), 1, "dout");
    allocator(kCpu).reset_peak();
    const int64_t before = allocator(kCpu).stats().current;
    run<Linear>(c.x, c.o, {.o = dout});
    return allocator(kCpu).stats().peak - before;
  };
  std::vector<int32_t> many;
  for (int32_t i = 0; i <= 256; ++i) many.push_back(i);
  CHECK(peak(many) == peak({0, 256}));
}

TEST_CASE("linear: wrong inputs are named") {
  const auto message = [](const Case<Linear>& c) {
    try {
      forward<Linear>(c.x, c.o);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const Case<Linear> good = sample({.B = 2, .T = 6, .Hk = 2, .H = 4, .K = 5, .V = 3});
  Case<Linear> c = good;
  c.x.k = normal({2, 6, 2, 4}, 1, "k");
  CHECK(message(c) == "linear: k has shape [2, 6, 2, 4], expected [2, 6, 2, 5] as q");
  c = good;
  c.x.g = normal({2, 6}, 1, "g");
  CHECK(message(c) == "linear: g has shape [2, 6], expected [2, 6, 4]");
  c = good;
  c.x.q = c.x.k = normal({2, 6, 3, 5}, 1, "k");
  CHECK(message(c) == "linear: v has 4 heads, expected a multiple of the 3 heads of k");
  c = good;
  c.x.initial_z = normal({2, 4, 5}, 1, "z");
  CHECK(message(c) == "linear: initial_z is given, but normalize is false");
  const auto with_documents = [&](const std::vector<int32_t>& cu) {
    Case<Linear> d = sample({.B = 1, .T = 6});
    d.x.initial_state = {};
    d.o.cu_seqlens = tensor_of(cu);
    return message(d);
  };
  CHECK(with_documents({0, 3, 3, 6}) ==
        "linear: cu_seqlens[1] = 3, cu_seqlens[2] = 3; expected strictly rising (no empty "
        "documents)");
  CHECK(with_documents({0, 3, 6, 6}) ==
        "linear: cu_seqlens[2] = 6, cu_seqlens[3] = 6; expected strictly rising (an empty document "
        "has no state to give or return)");
  CHECK(with_documents({0, -1, 6}) ==
        "linear: cu_seqlens[0] = 0, cu_seqlens[1] = -1; expected strictly rising (no empty "
        "documents)");
  CHECK(with_documents({0, 5}) == "linear: cu_seqlens runs from 0 to 5, expected from 0 to T = 6");
  CHECK(with_documents({0, 4, 2, 6}).find("strictly rising") != std::string::npos);
  c = good;
  c.o.cu_seqlens = tensor_of(std::vector<int32_t>{0, 6});
  CHECK(message(c).find("B = 2") != std::string::npos);
}
