// Gated linear attention: its three forms, its identities, and the inputs that have broken such
// code before.
#include "kernels/gated_linear/gated_linear.h"

#include "kernels/gated_linear/reference.h"
#include "kernels/linear/linear.h"
#include "tests/kernels/stateful.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::stateful;

namespace {

using Ref = Reference<GatedLinear>;
using Sizes = Ref::Sizes;

Case<GatedLinear> sample(const Sizes& s, bool state = true, const std::vector<int32_t>& cu = {}) {
  Case<GatedLinear> c = Ref::make("sample", s);
  const int64_t N = cu.empty() ? s.B : static_cast<int64_t>(cu.size()) - 1;
  if (!cu.empty()) c.o.cu_seqlens = tensor_of(cu);
  if (state) c.x.initial_state = normal({N, s.H, s.K, s.V}, 1, "initial_state");
  return c;
}

Case<GatedLinear> packed() {
  return sample({.B = 1, .T = 29, .Hk = 1}, true, {0, 1, 9, 10, 22, 29});
}

}  // namespace

TEST_CASE("gated_linear: naive, recurrent and chunkwise agree") { check_forms<GatedLinear>(); }

TEST_CASE("gated_linear: gradients are those of finite differences") {
  for (const Case<GatedLinear>& c :
       {sample({.B = 2, .T = 1}), sample({.B = 1, .T = 17, .Hk = 1, .K = 3, .V = 2}),
        sample({.B = 1, .T = 34, .Hk = 1, .H = 1, .K = 2, .V = 2}, false), packed()})
    check_differences<GatedLinear>(c);
}

TEST_CASE("gated_linear: any length agrees with the recurrence") {
  for (const int64_t T : {1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 129, 300})
    for (const bool state : {false, true}) {
      const Case<GatedLinear> c = sample({.B = 1, .T = T, .Hk = 1, .H = 2, .K = 5, .V = 3}, state);
      INFO("T = " << T);
      Tensors in{{"q", c.x.q}, {"k", c.x.k}, {"v", c.x.v}, {"g", c.x.g}};
      if (state) in["initial_state"] = c.x.initial_state;
      const Operation& op = operation("gated_linear");
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

TEST_CASE("gated_linear: equal gates in every channel give linear attention") {
  for (const double strength : {0.0, 0.3, 5.0}) {
    Case<GatedLinear> c = sample({.B = 2, .T = 67, .Hk = 1, .H = 2, .K = 6, .V = 5});
    const Tensor g = Ref::log_decays({2, 67, 2}, strength);
    c.x.g = g.unsqueeze(3).expand(3, 6);
    const Outputs<GatedLinear> dy = gradients_for<GatedLinear>(c.x, c.o);
    const Result<GatedLinear> a = run<GatedLinear>(c.x, c.o, dy);
    const Linear::Inputs<Tensor> x{
        .q = c.x.q, .k = c.x.k, .v = c.x.v, .g = g, .initial_state = c.x.initial_state};
    const Result<Linear> b = run<Linear>(x, {}, {.o = dy.o, .final_state = dy.final_state});
    CHECK(difference(a.y.o, b.y.o) < 1e-13);
    CHECK(difference(a.y.final_state, b.y.final_state) < 1e-13);
    CHECK(difference(a.dx.q, b.dx.q) < 1e-12);
    CHECK(difference(a.dx.k, b.dx.k) < 1e-12);
    CHECK(difference(a.dx.v, b.dx.v) < 1e-12);
    CHECK(difference(a.dx.initial_state, b.dx.initial_state) < 1e-12);
    const Tensor dg = zeros({2, 67, 2}, Dtype::f64);
    for (int64_t d = 0; d < 6; ++d) dg.add_from(a.dx.g.select(3, d));
    CHECK(difference(dg, b.dx.g) < 1e-12);
  }
}

TEST_CASE("gated_linear: a closed channel reads its own token, an open one all of them") {
  Case<GatedLinear> c = sample({.B = 1, .T = 70, .Hk = 1, .H = 1, .K = 2, .V = 1}, false);
  c.o.scale = 1;
  c.x.q.fill(1);
  c.x.k.fill(1);
  c.x.v.fill(1);
  c.x.g.select(3, 0).fill(-1000);
  c.x.g.select(3, 1).fill(0);
  const std::vector<double> o = to_doubles(forward<GatedLinear>(c.x, c.o).o);
  for (size_t t = 0; t < o.size(); ++t) CHECK(o[t] == 2 + static_cast<double>(t));
}

TEST_CASE("gated_linear: strong gates everywhere leave each token to itself") {
  for (const double g : {-80.0, -1000.0}) {
    Case<GatedLinear> c = in_f32<GatedLinear>(sample({.B = 1, .T = 67, .K = 5, .V = 3}));
    c.x.g.fill(g);
    const Result<GatedLinear> r = run<GatedLinear>(c.x, c.o, gradients_for<GatedLinear>(c.x, c.o));
    for_inputs<GatedLinear>(
        [](const std::string& name, bool, const Tensor& t) {
          INFO("gradient of " << name);
          CHECK(autograd::all_finite(t));
        },
        const_cast<Inputs<GatedLinear>&>(r.dx));
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

TEST_CASE("gated_linear: a gate of -1000 costs later tokens no digits") {
  Case<GatedLinear> c = sample({.B = 1, .T = 256, .Hk = 1, .H = 2, .K = 16, .V = 16});
  c.x.g = Ref::extreme_decays({1, 256, 2, 16});
  const Outputs<GatedLinear> dy = gradients_for<GatedLinear>(c.x, c.o);
  const Outputs<GatedLinear> narrow_dy{dy.o.to(Dtype::f32), dy.final_state.to(Dtype::f32)};
  check_close<GatedLinear>(run<GatedLinear>(in_f32<GatedLinear>(c).x, c.o, narrow_dy),
                           run<GatedLinear>(c.x, c.o, dy), 3e-6);
}

TEST_CASE("gated_linear: a slow decay keeps its rate over thousands of tokens in f32") {
  Case<GatedLinear> c = sample({.B = 1, .T = 4096, .Hk = 1, .H = 1, .K = 2, .V = 2}, false);
  c.x.k.fill(1);
  c.x.v.fill(1);
  c.x.g.fill(std::log1p(-std::exp2(-11)));
  const double want = (1 - std::exp(4096 * std::log1p(-std::exp2(-11)))) / std::exp2(-11);
  const Tensor state = forward<GatedLinear>(in_f32<GatedLinear>(c).x, c.o).final_state;
  CHECK(to_doubles(state)[0] == Approx(want).epsilon(3e-5));
}

TEST_CASE("gated_linear: a sequence may be cut anywhere and the state carried") {
  const Case<GatedLinear> c = sample({.B = 1, .T = 150, .Hk = 1, .K = 5, .V = 4});
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, 1, 150}, {0, 64, 150}, {0, 31, 32, 33, 149, 150}})
    check_split<GatedLinear>(c, cuts, 1e-11);
  check_split<GatedLinear>(sample({.B = 1, .T = 8, .Hk = 2, .H = 4}), {0, 1, 2, 3, 4, 5, 6, 7, 8},
                           1e-11);
}

TEST_CASE("gated_linear: packed documents are the documents one by one") {
  check_packed<GatedLinear>(packed(), 1e-11);
  check_packed<GatedLinear>(
      sample({.B = 1, .T = 200, .K = 36, .V = 5}, true, {0, 63, 64, 66, 193, 200}), 1e-11);
  check_packed<GatedLinear>(sample({.B = 1, .T = 100, .Hk = 1}, true, {0, 31, 32, 64, 97, 100}),
                            1e-11);
}

TEST_CASE("gated_linear: packed documents do not know of each other") {
  for (int64_t d = 0; d < 5; ++d) check_leak<GatedLinear>(packed(), d);
  check_leak<GatedLinear>(
      in_f32<GatedLinear>(sample({.B = 1, .T = 100, .Hk = 1}, true, {0, 31, 70, 100})), 1);
}

TEST_CASE("gated_linear: the past does not know of the future") {
  for (const int64_t p : {1, 13, 32, 45, 69}) {
    check_prefix<GatedLinear>(sample({.B = 2, .T = 70, .Hk = 1}), p);
    check_prefix<GatedLinear>(in_f32<GatedLinear>(sample({.B = 2, .T = 70, .Hk = 1})), p);
  }
}

TEST_CASE("gated_linear: inputs may have any strides") {
  check_strided<GatedLinear>(sample({.B = 2, .T = 37, .Hk = 1}));
  check_strided<GatedLinear>(sample({.B = 2, .T = 1}));
  check_strided<GatedLinear>(packed());
}

// One thread goes through whole rows; two with an odd number of heads take all chunks at once.
TEST_CASE("gated_linear: the same bits on one thread, on two, and on used memory") {
  for (const int64_t Hk : {1, 3})
    check_repeatable<GatedLinear>(
        in_f32<GatedLinear>(sample({.B = 1, .T = 200, .Hk = Hk, .H = 3, .K = 24, .V = 20})));
  check_repeatable<GatedLinear>(in_f32<GatedLinear>(sample(
      {.B = 1, .T = 200, .Hk = 1, .H = 1, .K = 5, .V = 4}, true, {0, 63, 64, 66, 193, 200})));
  check_repeatable<GatedLinear>(
      in_f32<GatedLinear>(sample({.B = 2, .T = 130, .Hk = 2, .H = 4, .K = 24, .V = 20})));
  check_repeatable<GatedLinear>(in_f32<GatedLinear>(sample({.B = 2, .T = 1, .K = 24, .V = 20})));
}

TEST_CASE("gated_linear: the meta device follows the memory to the byte") {
  for (const Case<GatedLinear>& c :
       {sample({.B = 2, .T = 130, .Hk = 2, .H = 4, .K = 24, .V = 20}), sample({.B = 3, .T = 1}),
        sample({.B = 1, .T = 70, .Hk = 1, .H = 1, .K = 40, .V = 7}, false), packed()}) {
    check_meta<GatedLinear>(c);
    check_meta<GatedLinear>(in_f32<GatedLinear>(c));
  }
}

TEST_CASE("gated_linear: wrong inputs are named") {
  const auto message = [](const Case<GatedLinear>& c) {
    try {
      forward<GatedLinear>(c.x, c.o);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const Case<GatedLinear> good = sample({.B = 2, .T = 6, .Hk = 2, .H = 4, .K = 5, .V = 3});
  Case<GatedLinear> c = good;
  c.x.k = normal({2, 6, 2, 4}, 1, "k");
  CHECK(message(c) == "gated_linear: k has shape [2, 6, 2, 4], expected [2, 6, 2, 5] as q");
  c = good;
  c.x.g = normal({2, 6, 4}, 1, "g");
  CHECK(message(c) == "gated_linear: g has shape [2, 6, 4], expected [2, 6, 4, 5]");
  c = good;
  c.x.g = {};
  CHECK(message(c) == "gated_linear: input g [B, T, H, K] is missing");
  c = good;
  c.x.q = c.x.k = normal({2, 6, 3, 5}, 1, "k");
  CHECK(message(c) == "gated_linear: v has 4 heads, expected a multiple of the 3 heads of k");
  c = good;
  c.x.initial_state = normal({1, 4, 5, 3}, 1, "state");
  CHECK(message(c) == "gated_linear: initial_state has shape [1, 4, 5, 3], expected [2, 4, 5, 3]");
}
