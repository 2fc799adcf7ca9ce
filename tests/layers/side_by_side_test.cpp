// Mixers side by side: groups of heads of one layer, and branches that are averaged.
#include <set>

#include "autograd/watch.h"
#include "tests/catch.h"
#include "tests/layers/made.h"
#include "tests/message.h"

using namespace weft;
using namespace weft::layers;

namespace {

const Tensor& weight(const Made& m, const std::string& name) {
  for (const Parameter& p : m.parameters)
    if (p.name == name) return p.var.value();
  fail("no parameter ", name);
}

void take(const Made& to, const Made& from, const std::string& path) {
  for (const Parameter& p : from.parameters) weight(to, path + p.name).copy_from(p.var.value());
}

std::string refused(const std::string& toml, int64_t width = 16) {
  return tests::message([&] { made({"r", "side_by_side", toml, width}, Dtype::f32, kMeta); });
}

}  // namespace

TEST_CASE("side_by_side: groups of heads of one mechanism are that mechanism with all the heads") {
  const Made whole = made({"", "attention", "heads = 6\nrotary_base = 100", 24});
  const Made both = made({"", "side_by_side",
                          "parts = [\"a\", \"b\"]\nshares = [2, 1]\n"
                          "[a]\ntype = \"attention\"\nheads = 4\nrotary_base = 100\n"
                          "[b]\ntype = \"attention\"\nheads = 2\nrotary_base = 100",
                          24});
  for (const char* name : {"q_proj.weight", "k_proj.weight", "v_proj.weight"}) {
    weight(both, concat("a.", name)).copy_from(weight(whole, name).slice(0, 0, 16));
    weight(both, concat("b.", name)).copy_from(weight(whole, name).slice(0, 16, 24));
  }
  weight(both, "a.o_proj.weight").copy_from(weight(whole, "o_proj.weight").slice(1, 0, 16));
  weight(both, "b.o_proj.weight").copy_from(weight(whole, "o_proj.weight").slice(1, 16, 24));
  const Var x = Var::leaf(sample({2, 31, 24}, "x")), y = Var::leaf(x.value());
  const Var a = run(*whole.layer, x), b = run(*both.layer, y);
  CHECK(distance(b.value(), a.value()) < 1e-13);
  autograd::backward(weighted(a));
  autograd::backward(weighted(b));
  CHECK(distance(y.grad(), x.grad()) < 1e-12);
  CHECK(both.layer->flops_per_token(31) == Approx(whole.layer->flops_per_token(31)));
}

TEST_CASE("side_by_side: each part is the mixer alone, with the factors of its input and result") {
  const Made window = made({"", "attention", "heads = 2\nwindow = 5"});
  const Made delta = made({"", "gated_delta", "heads = 2"});
  const Made both = made({"", "side_by_side",
                          "parts = [\"window\", \"gated_delta\"]\njoin = \"mean\"\n"
                          "[window]\ntype = \"attention\"\nheads = 2\nwindow = 5\n"
                          "input_scale = 0.5\n[gated_delta]\nheads = 2\noutput_scale = 3"});
  take(both, window, "window.");
  take(both, delta, "gated_delta.");
  const Tensor x = sample({2, 23, 12}, "x"), half = x.clone();
  half.fill(0);
  half.add_from(autograd::scale(Var(x), 0.5).value());
  const Var a = run(*window.layer, half), b = run(*delta.layer, x);
  const Var sum = autograd::add(autograd::scale(a, 0.5), autograd::scale(b, 1.5));
  CHECK(distance(run(*both.layer, x).value(), sum.value()) < 1e-13);
}

TEST_CASE("side_by_side: steps whose position the work reads give what the whole text gives") {
  const autograd::NoGrad no_grad;
  const Made m = made({"", "side_by_side",
                       "parts = [\"window\", \"full\", \"gated_delta\"]\n"
                       "[window]\ntype = \"attention\"\nheads = 2\nwindow = 5\n"
                       "[full]\ntype = \"attention\"\nheads = 2\n[gated_delta]\nheads = 2"});
  for (const int64_t prompt : {1, 4, 7, 18}) {
    State state;
    CHECK(distance_of_placed_steps(*m.layer, sample({1, 30, 12}, "x"), prompt, state) < 1e-12);
    CHECK(state.parts.size() == 3);
    CHECK(state.bytes() ==
          state.parts[0].bytes() + state.parts[1].bytes() + state.parts[2].bytes());
    CHECK(state.parts[0].bytes() < state.parts[1].bytes());
  }
}

TEST_CASE("side_by_side: a mean is that of all parts, however many there are") {
  const auto of = [](const std::string& join) {
    return made({"", "side_by_side",
                 "parts = [\"a\", \"b\", \"c\"]\njoin = \"" + join +
                     "\"\n[a]\ntype = \"attention\"\nheads = 2\n[b]\ntype = \"delta\"\nheads = 2\n"
                     "[c]\ntype = \"retention\"\nheads = 2\n"});
  };
  const Var x(sample({1, 9, 12}, "x"));
  const Var third = autograd::scale(run(*of("add").layer, x), 1.0 / 3);
  CHECK(distance(run(*of("mean").layer, x).value(), third.value()) < 1e-12);
}

TEST_CASE("side_by_side: steps, forms and the longest text are those of every part") {
  const std::string drawn =
      "type = \"linear_attention\"\nheads = 2\nfeature_map = \"favor+\"\nfeatures = 5\n"
      "redraw = 3\n";
  const std::string routed = "type = \"router\"\nheads = 2\nblock = 4\nsoft_steps = 2\n";
  const std::string far =
      "type = \"linear_attention\"\nheads = 2\nfeature_map = \"cosine\"\nhorizon = 70\n";
  const std::string plain = "type = \"attention\"\nheads = 2\n";
  for (const bool first : {true, false}) {
    const auto beside = [&](const std::string& part) {
      return made({"", "side_by_side",
                   concat("parts = [\"a\", \"b\"]\n[a]\n", first ? part : plain, "[b]\n",
                          first ? plain : part)});
    };
    const Made draws = beside(drawn);
    const Var x(sample({1, 9, 12}, "x"));
    draws.layer->at_step(0);
    const Tensor before = run(*draws.layer, x).value();
    draws.layer->at_step(3);
    CHECK(distance(run(*draws.layer, x).value(), before) > 1e-6);
    const Made routes = beside(routed + "anneal_steps = 0\n");
    routes.layer->at_step(1);
    const int64_t soft = routes.layer->form();
    routes.layer->at_step(2);
    CHECK(routes.layer->form() != soft);
    CHECK(beside(far).layer->longest_text() == 70);
  }
}

TEST_CASE("side_by_side: without one of the ways its parts of that way are gone, and no others") {
  const Made both = made({"", "side_by_side",
                          "parts = [\"window\", \"gated_delta\"]\n[window]\n"
                          "type = \"attention\"\nheads = 2\n[gated_delta]\nheads = 2\n"});
  REQUIRE(both.layer->ways() == Ways::both);
  const Var x(sample({1, 9, 12}, "x"));
  Context softmax, linear, none;
  softmax.no_linear = linear.no_softmax = none.no_linear = none.no_softmax = true;
  const auto y = [&](Context& c) { return both.layer->forward(x, c); };
  const Var a = y(softmax), b = y(linear);
  CHECK(distance(autograd::add(a, b).value(), run(*both.layer, x).value()) < 1e-12);
  CHECK(distance(y(none).value(), zeros_like(x.value())) == 0);
  weight(both, "window.o_proj.weight").zero();
  CHECK(distance(b.value(), run(*both.layer, x).value()) < 1e-12);
}

TEST_CASE("side_by_side: a mixer whose operation is attention is of that way, and no other is") {
  const std::set<std::string> two{"router", "side_by_side"};
  for (const MixerCase& c : mixer_cases()) {
    if (two.count(c.mixer) > 0) continue;
    INFO(c.name);
    const Made m = made(c);
    std::set<std::string> operations;
    const autograd::NoGrad no_grad;
    {
      const autograd::Watch watch([&](const autograd::Watched& w) { operations.insert(w.name); });
      run(*m.layer, Var(sample({1, 9, c.width}, "x")));
    }
    const bool attends = operations.count("attention") + operations.count("block_sparse") > 0;
    CHECK((m.layer->ways() == Ways::softmax) == attends);
  }
}

TEST_CASE("side_by_side: what cannot stand side by side is refused by name") {
  CHECK_THAT(refused("parts = [\"attention\"]"), ContainsSubstring("names 1 mixers, expected 2"));
  CHECK_THAT(refused("parts = [\"delta\", \"delta\"]"), ContainsSubstring("\"delta\" twice"));
  CHECK_THAT(refused("parts = [\"delta\", \"retenton\"]"),
             ContainsSubstring("did you mean \"retention\"?"));
  CHECK_THAT(refused("parts = [\"delta\", \"x\"]\n[x]\ntype = \"retenton\""),
             ContainsSubstring("did you mean \"retention\"?"));
  CHECK_THAT(refused("shares = [1, 2, 3]"), ContainsSubstring("3 numbers for 2 parts"));
  CHECK_THAT(refused("shares = [1, 4]"),
             ContainsSubstring("1 of 5 shares of a width of 16 is no whole number"));
  CHECK_THAT(refused("[kda]\nheads = 2"), ContainsSubstring("parts names no \"kda\""));
  CHECK_THAT(refused("[attention]\nhead = 2"), ContainsSubstring("did you mean \"heads\"?"));
  CHECK(refused("") == "no error");
}
