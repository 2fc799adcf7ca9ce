// The router: each choice is the mechanism it names, and the phases, the price and the gradient of
// a draw are as promised. What is asked of every mixer is in mixers_test.cpp.
#include <cmath>
#include <limits>

#include "autograd/kernel_op.h"
#include "core/random.h"
#include "kernels/linear/linear.h"
#include "layers/model.h"
#include "layers/recurrent.h"
#include "layers/routes.h"
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

enum Choice { none, window, selected, whole };

const std::string kHard = "\nsoft_steps = 0\nanneal_steps = 0\ndraw_steps = 1000\n";

const Var& parameter(const Made& m, const std::string& name) {
  for (const Parameter& p : m.parameters)
    if (p.name == name) return p.var;
  fail("no parameter ", name);
}

Made router(const std::string& toml, Dtype dtype = Dtype::f64) {
  return made({"router", "router", "heads = 2\n" + toml}, dtype);
}

// Whatever the text, that choice alone.
Made always(Choice choice, const std::string& toml, Dtype dtype = Dtype::f64) {
  Made m = router(toml, dtype);
  parameter(m, "router.weight").value().zero();
  const Tensor& bias = parameter(m, "router.bias").value();
  bias.fill(-1e4);
  bias.slice(0, choice, choice + 1).fill(1e4);
  return m;
}

struct Outcome {
  Tensor y, dx;
};
Outcome outcome(const Layer& layer, const Tensor& x, const Tensor& cu_seqlens = {}) {
  const Var in = Var::leaf(x);
  const Var y = run(layer, in, cu_seqlens);
  autograd::backward(weighted(y));
  return {y.value(), in.grad()};
}

Var trained(const Layer& layer, const Var& x) {
  Context c;
  c.training = true;
  return layer.forward(x, c);
}

}  // namespace

TEST_CASE("router: a window alone is that pattern, and all of the past is attention, bit for bit") {
  const Made plain_window =
      made({"", "block_sparse", "heads = 2\npattern = \"window\"\nblock = 64\nwindow_blocks = 2"});
  const Made attention = made({"", "attention", "heads = 2"});
  const Tensor x = sample({2, 300, 12}, "x");
  for (const std::string& phase : {std::string(), kHard})
    for (const Choice choice : {window, whole}) {
      INFO(choice << phase);
      const Made m = always(choice, "linear = \"none\"\nblock = 64\nwindow_blocks = 2" + phase);
      const Outcome a = outcome(*m.layer, x);
      const Outcome b = outcome(*(choice == window ? plain_window : attention).layer, x);
      CHECK(same_bits(a.y, b.y));
      CHECK(same_bits(a.dx, b.dx));
    }
}

TEST_CASE("router: selected blocks are all of the past where top_k has room for it") {
  const Made attention = made({"", "attention", "heads = 2"});
  const Tensor x = sample({1, 150, 12}, "x");
  const Made m = always(selected, "linear = \"none\"\nblock = 64\ntop_k = 3" + kHard);
  CHECK(same_bits(run(*m.layer, x).value(), run(*attention.layer, x).value()));
  const Made few = always(selected, "linear = \"none\"\nblock = 64\ntop_k = 2" + kHard);
  const Tensor y = run(*few.layer, x).value(), all = run(*attention.layer, x).value();
  CHECK(same_bits(y.slice(1, 0, 128), all.slice(1, 0, 128)));
  CHECK_FALSE(same_bits(y.slice(1, 128, 150), all.slice(1, 128, 150)));
}

TEST_CASE("router: without a choice there is the linear path alone, or nothing") {
  const Var x(sample({2, 70, 12}, "x"));
  const Made nothing = always(none, "linear = \"none\"" + kHard);
  CHECK(same_bits(run(*nothing.layer, x).value(), zeros({2, 70, 12}, Dtype::f64)));
  for (const std::string& phase : {std::string(), kHard}) {
    const Made m = always(none, "rotary = false" + phase);
    const auto of = [&](const char* name) { return product(x, parameter(m, name)); };
    kernels::Inputs<kernels::Linear, Var> in;
    in.q = heads(of("q_proj.weight"), 2);
    in.k = heads(of("k_proj.weight"), 2);
    in.v = heads(of("v_proj.weight"), 2);
    const Var gate = product(x, parameter(m, "gk_proj.weight"), parameter(m, "gk_proj.bias"));
    in.g = autograd::scale(activation(gate, "logsigmoid"), 1 / kGateTemperature);
    const Var o = autograd::apply<kernels::Linear>(in).o;
    std::vector<Parameter> list;
    const GatedNorm norm(Builder(Dtype::f64, kCpu, 3, &list), 6, 1e-5);
    list[0].var.value().copy_from(parameter(m, "linear_norm.weight").value());
    const Var y =
        product(merged(norm(o, heads(of("g_proj.weight"), 2))), parameter(m, "o_proj.weight"));
    CHECK(same_bits(run(*m.layer, x).value(), y.value()));
  }
}

TEST_CASE("router: a sharp mixture is the hard choice") {
  const std::string shape = "block = 4\ntop_k = 3\nlinear = \"gated_delta\"\n";
  const Made sharp = router(shape + "soft_steps = 0\nanneal_steps = 10\ntemperature = 1e-9\n");
  const Made hard = router(shape + kHard);
  const Tensor x = sample({2, 50, 12}, "x");
  const Tensor smooth = run(*sharp.layer, x).value();
  sharp.layer->at_step(9);
  CHECK(sharp.layer->form() != hard.layer->form());
  const Outcome a = outcome(*sharp.layer, x), b = outcome(*hard.layer, x);
  CHECK(distance(a.y, b.y) < 1e-14);
  CHECK(distance(a.dx, b.dx) < 1e-12);
  CHECK(distance(smooth, a.y) > 1e-3);
}

TEST_CASE("router: a later token changes no bit of an earlier result and sends it no gradient") {
  for (const std::string& phase : {std::string(), kHard}) {
    const Made m = router("block = 4\ntop_k = 3" + phase);
    const Tensor x = sample({1, 40, 12}, "x");
    const Tensor before = run(*m.layer, x).value();
    for (const int64_t t : {39, 24, 23, 6, 1}) {
      const Tensor other = x.clone();
      other.slice(1, t, 40).fill(2.5);
      INFO(phase << ", token " << t);
      CHECK(same_bits(run(*m.layer, other).value().slice(1, 0, t), before.slice(1, 0, t)));
      const Var in = Var::leaf(x);
      autograd::backward(weighted(autograd::slice(trained(*m.layer, in), 1, 0, t)));
      CHECK(same_bits(in.grad().slice(1, t, 40), zeros({1, 40 - t, 12}, Dtype::f64)));
    }
  }
}

TEST_CASE("router: a block keeps the choice of its first token, however the text is cut") {
  const autograd::NoGrad no_grad;
  const int64_t T = 22;
  for (const std::string& phase : {std::string(), kHard})
    for (const char* linear : {"simple_gla", "none"}) {
      const Made m = router(concat("block = 4\ntop_k = 2\nlinear = \"", linear, "\"", phase));
      const Tensor x = sample({1, T, 12}, "x");
      for (int64_t prompt = 1; prompt < T; ++prompt)
        for (const bool placed : {false, true}) {
          INFO(linear << phase << ", prompt " << prompt << (placed ? ", placed" : ""));
          State state;
          CHECK(distance_of_steps(*m.layer, x, prompt, state, placed) < 1e-12);
        }
    }
}

TEST_CASE("router: what no choice sees is never read") {
  for (const Choice choice : {none, window, whole}) {
    const Made m = always(choice, "linear = \"none\"\nblock = 8\nwindow_blocks = 2" + kHard);
    const Tensor x = sample({1, 40, 12}, "x");
    x.slice(1, 0, 1).fill(std::numeric_limits<double>::quiet_NaN());
    const Tensor y = run(*m.layer, x).value();
    INFO(choice);
    CHECK(autograd::all_finite(y.slice(1, 16, 40)) == (choice != whole));
    CHECK(autograd::all_finite(y.slice(1, 8, 16)) == (choice == none));
  }
}

TEST_CASE("router: the price of what is seen beyond the budget has the gradient of differences") {
  for (const int64_t step : {3, 4}) {  // the last of the anneal, and hard
    const Made m = router(
        "block = 4\ntop_k = 2\nbudget = 0.1\nprice = 3\nsoft_steps = 0\nanneal_steps = 4\n"
        "draw_steps = 9");
    m.layer->at_step(step);
    const Var x = Var::leaf(sample({2, 21, 12}, "x"));
    const auto loss = [&] {
      std::vector<Var> losses;
      Context c;
      c.losses = &losses;
      m.layer->forward(x, c);
      return losses.at(0);
    };
    CHECK(loss().value().item() > 0.1);
    const auto report = check_gradients(loss, x, m.parameters);
    INFO("step " << step << "\n" << failures(report));
    CHECK(report.passed());
  }
}

TEST_CASE(
    "router: a mixture that is drawn has the gradient of differences, and draws in training") {
  const Made m = router("block = 4\ntop_k = 2\nsoft_steps = 0\nanneal_steps = 4");
  m.layer->at_step(2);
  const Var x = Var::leaf(sample({2, 13, 12}, "x"));
  CHECK(distance(trained(*m.layer, x).value(), run(*m.layer, x).value()) > 1e-3);
  const auto report =
      check_gradients([&] { return weighted(trained(*m.layer, x)); }, x, m.parameters);
  INFO(failures(report));
  CHECK(report.passed());
}

TEST_CASE("router: all is free while choices are soft, then the budget falls to its own") {
  const Made m = always(whole,
                        "block = 4\nprice = 2\nbudget = 0.2\nsoft_steps = 2\nanneal_steps = 4\n"
                        "draw_steps = 9");
  const Var x(sample({1, 9, 12}, "x"));
  for (const auto& [step, price] : {std::pair{0, 0.0}, {2, 0.0}, {4, 0.8}, {6, 1.6}, {9, 1.6}}) {
    m.layer->at_step(step);
    std::vector<Var> losses;
    Context c;
    c.losses = &losses;
    m.layer->forward(x, c);
    CHECK(losses.at(0).value().item() == Approx(price));
  }
}

TEST_CASE("router: the price counts keys, and what the budget covers is free") {
  const int64_t T = 10, block = 4;
  const Tensor x = sample({1, T, 12}, "x");
  const auto price = [&](Choice choice, double budget) {
    const Made m = always(choice, concat("block = 4\nwindow_blocks = 1\ntop_k = 2\nprice = 2\n",
                                         "budget = ", budget, kHard));
    std::vector<Var> losses;
    Context c;
    c.losses = &losses;
    m.layer->forward(x, c);
    return losses.at(0).value().item();
  };
  const auto mean = [&](int64_t blocks) {
    double sum = 0;
    for (int64_t i = 0; i < T; ++i) {
      const int64_t first = std::max<int64_t>(0, (i / block - blocks + 1) * block);
      sum += static_cast<double>(i - first + 1) / static_cast<double>(i + 1);
    }
    return sum / static_cast<double>(T);
  };
  CHECK(price(none, 0.0) == 0);
  CHECK(price(window, 0.0) == Approx(2 * mean(1)));
  CHECK(price(selected, 0.0) == Approx(2 * mean(2)));
  CHECK(price(whole, 0.0) == Approx(2));
  CHECK(price(whole, 0.25) == Approx(1.5));
  CHECK(price(window, 0.95) == 0);
}

TEST_CASE(
    "router: the gradient of a draw is its formula, and the result that of the choice drawn") {
  const int64_t B = 5, T = 22, block = 4, D = 12, slots = 6, step = 7;
  const double tau = 0.4;
  const Made m = router("block = 4\ntop_k = 2\nlinear = \"none\"\ntemperature = 0.4" + kHard);
  m.layer->at_step(step);
  for (const char* name : {"router.weight", "router.bias"}) {  // so small that each choice is met
    const Tensor& t = parameter(m, name).value();
    t.copy_from(autograd::scale(Var(t), 0.2).value());
  }
  const Var x = Var::leaf(sample({B, T, D}, "x"));
  const Var y = trained(*m.layer, x);
  autograd::backward(weighted(y));
  const Tensor w = kernels::normal(y.shape(), 13, "weight");
  const auto yv = view<const double>(y.value()), wv = view<const double>(w),
             xv = view<const double>(x.value());
  const auto W = view<const double>(parameter(m, "router.weight").value());
  const double* const bias = parameter(m, "router.bias").value().data<double>();
  const Random random(0, stream_of(concat("router.0.", step)));
  std::vector<double> wanted(4, 0);
  std::vector<int64_t> drawn(4, 0);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t) {
      const int64_t lead = t / block * block;
      double z[4], p[4], sum = 0, best = -1e9, u = 0;
      int64_t chosen = -1;
      for (int64_t r = 0; r < 4; ++r) {
        z[r] = bias[r];
        for (int64_t d = 0; d < D; ++d) z[r] += W(r, d) * xv(b, lead, d);
        z[r] /= tau;
        sum += p[r] = std::exp(z[r]);
        const auto at = static_cast<uint64_t>((b * slots + t / block) * 4 + r);
        const double noisy = z[r] - std::log(-std::log(random.uniform(at) + 0x1.0p-54));
        if (noisy > best) {
          best = noisy;
          chosen = r;
        }
      }
      for (int64_t d = 0; d < D; ++d) u += yv(b, t, d) * wv(b, t, d);
      for (int64_t r = 0; r < 4; ++r)
        wanted[static_cast<size_t>(r)] += ((r == chosen) - p[r] / sum) * u / tau;
      ++drawn[static_cast<size_t>(chosen)];
      bool nothing = true;
      for (int64_t d = 0; d < D; ++d) nothing = nothing && yv(b, t, d) == 0;
      CHECK(nothing == (chosen == none));
    }
  for (const int64_t n : drawn) CHECK(n > 0);  // each choice is met
  CHECK(distance(parameter(m, "router.bias").grad(), tensor_of(wanted)) < 1e-12);
  // A draw that can come out in one way alone gives what evaluation gives, in every bit.
  const Made sure = always(window, "block = 4" + kHard);
  CHECK(same_bits(trained(*sure.layer, x).value(), run(*sure.layer, x).value()));
}

TEST_CASE("router: a draw is a function of seed, layer and step, and evaluation draws nothing") {
  const Tensor x = sample({2, 40, 12}, "x");
  const std::string toml = "block = 4\ntop_k = 2" + kHard;
  const Made m = router(toml), other = router(toml);
  const Tensor still = run(*m.layer, x).value();
  m.layer->at_step(5);
  const Tensor fifth = trained(*m.layer, x).value();
  CHECK(same_bits(trained(*m.layer, x).value(), fifth));
  m.layer->at_step(6);
  CHECK_FALSE(same_bits(trained(*m.layer, x).value(), fifth));
  CHECK(same_bits(run(*m.layer, x).value(), still));
  other.layer->at_step(5);  // a run that goes on
  CHECK(same_bits(trained(*other.layer, x).value(), fifth));
  const Made deeper = made({"", "router", "heads = 2\n" + toml, 12, /*layer=*/1});
  deeper.layer->at_step(5);
  CHECK_FALSE(same_bits(trained(*deeper.layer, x).value(), fifth));
}

TEST_CASE("router: blocks that are computed again see the draw of the first time") {
  const auto gradients = [](bool recompute, bool draws) {
    Model model(
        toml_from_text(concat("[model]\nwidth = 12\ncontext = 40\nlayers = 2\ninit = 0.3\n",
                              "pattern = [\"router\"]\nrecompute = ", recompute ? "true" : "false",
                              "\n[router]\nheads = 2\nblock = 4\ntop_k = 2", kHard),
                       "r.toml"),
        17, Dtype::f64, kCpu, 5);
    model.at_step(draws ? 3 : 4);
    const Tensor tokens = empty({2, 40}, Dtype::i32);
    for (int64_t i = 0; i < 80; ++i) tokens.data<int32_t>()[i] = static_cast<int32_t>(i * i % 17);
    const Loss loss = model.loss({tokens, tokens, {}});
    autograd::backward(loss.total);
    std::vector<double> all = to_doubles(loss.total.value());
    for (const Parameter& p : model.parameters())
      for (const double g : to_doubles(p.var.grad())) all.push_back(g);
    return all;
  };
  CHECK(gradients(true, true) == gradients(false, true));
  CHECK(gradients(false, true) != gradients(false, false));
}

TEST_CASE("router: a model says when its operations change") {
  const Made m = router("soft_steps = 2\nanneal_steps = 3\ndraw_steps = 2");
  std::vector<int64_t> forms;
  for (const int64_t step : {0, 2, 4, 5, 6, 7, 9, 4}) {
    m.layer->at_step(step);
    forms.push_back(m.layer->form());
  }
  CHECK(forms == std::vector<int64_t>{0, 0, 0, 1, 1, 2, 2, 0});
}

TEST_CASE("router: a settled choice is the largest, has no price, and leaves the router as it is") {
  const Made m = router(
      "block = 4\ntop_k = 2\nbudget = 0\nprice = 3\nsoft_steps = 1\nanneal_steps = 1\n"
      "draw_steps = 1");
  const Var x = Var::leaf(sample({2, 40, 12}, "x"));
  for (const int64_t step : {0, 1, 2, 3}) {
    INFO("step " << step);
    m.layer->at_step(step);
    std::vector<Var> losses;
    Context c;
    c.training = true;
    c.losses = &losses;
    const Var y = m.layer->forward(x, c);
    const bool settled = step == 3;
    const bool largest = same_bits(y.value(), run(*m.layer, x).value());
    CHECK((settled ? largest : step == 2 || !largest));  // a hard draw may be the largest
    CHECK(losses.size() == (settled ? 0 : 1));
    parameter(m, "router.weight").drop_grad();
    autograd::backward(weighted(y));
    CHECK(bool(parameter(m, "router.weight").grad()) != settled);
  }
}

TEST_CASE("router: what was chosen is counted, and the keys that a token saw") {
  const int64_t T = 10;
  const Var x(sample({2, T, 12}, "x"));
  const std::string toml = "block = 4\nwindow_blocks = 1\ntop_k = 2";
  const auto keys = [&](const Made& m) { return watch_routes([&] { run(*m.layer, x); }).at(0); };
  CHECK(keys(always(none, toml + kHard)).keys == 0);
  CHECK(keys(always(window, toml + kHard)).keys == Approx((10 + 10 + 3) / 10.0));
  CHECK(keys(always(selected, toml + kHard)).keys == Approx((10 + 26 + 11) / 10.0));
  const Routes all = keys(always(whole, toml + kHard));
  CHECK(all.keys == Approx(5.5));
  CHECK(all.shares == std::vector<double>{0, 0, 0, 1});
  CHECK(all.tokens == 20);
  const Routes soft = keys(always(whole, toml));
  CHECK(soft.keys == Approx(2.3 + 4.7 + 5.5));
  CHECK(soft.shares == std::vector<double>{0, 0, 0, 1});
  // Of a hard choice a token has one route, of a soft one a part of each.
  const auto whole_tokens = [&](const std::string& phase) {
    double rest = 0;
    for (const double share : keys(router(toml + phase)).shares)
      rest += std::abs(20 * share - std::round(20 * share));
    return rest;
  };
  CHECK(whole_tokens(kHard) < 1e-9);
  CHECK(whole_tokens("") > 1e-3);
  const Made plain = made({"", "block_sparse", "heads = 2\nblock = 4"});
  CHECK(watch_routes([&] { run(*plain.layer, x); }).empty());
}
