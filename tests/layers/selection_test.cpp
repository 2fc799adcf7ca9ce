// Mixers whose blocks of keys the data choose: what is promised of them beyond mixers_test.cpp.
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

const MixerCase kMoba{"moba", "moba", "heads = 2\nkey_heads = 1\nblock = 4\ntop_k = 3"};
const MixerCase kTopk{"topk", "topk", "heads = 2\nkey_heads = 1\nblock = 4\ntop_k = 3"};

const MixerCase kNsa{"nsa", "nsa", "heads = 2\nkey_heads = 1\nblock = 4\ntop_k = 3\nwindow = 5"};

const Var& parameter(const Made& m, const std::string& name) {
  for (const Parameter& p : m.parameters)
    if (p.name == name) return p.var;
  fail("no parameter ", name);
}

}  // namespace

TEST_CASE("moba: a text of no more than top_k blocks is attention, a longer one is not") {
  const Made moba = made(kMoba);
  const Made attention = made({"", "attention", "heads = 2\nkey_heads = 1"});
  for (const int64_t T : {1, 11, 12}) {
    const Var x = Var::leaf(sample({2, T, 12}, "x")), y = Var::leaf(x.value());
    const Var a = run(*moba.layer, x), b = run(*attention.layer, y);
    autograd::backward(weighted(a));
    autograd::backward(weighted(b));
    CHECK(distance(a.value(), b.value()) < 1e-13);
    CHECK(distance(x.grad(), y.grad()) < 1e-12);
  }
  const Tensor x = sample({2, 40, 12}, "x");
  CHECK(distance(run(*moba.layer, x).value(), run(*attention.layer, x).value()) > 1e-3);
}

TEST_CASE("topk: the loss reaches the scores of blocks that were not chosen") {
  // Only the own block is seen, so that every score is one of a block that was not chosen.
  const Made m = made({"", "topk", "heads = 2\nblock = 4\ntop_k = 1\nfirst_blocks = 0"});
  const Var x = Var::leaf(sample({1, 17, 12}, "x"));
  autograd::backward(weighted(run(*m.layer, x)));
  for (const char* name : {"index_q.weight", "index_k.weight", "gate_proj.weight"}) {
    double sum = 0;
    for (const double g : to_doubles(parameter(m, name).grad())) sum += std::abs(g);
    INFO(name);
    CHECK(sum > 1e-6);
  }
}

TEST_CASE("topk: tokens of the first block have no block before them and see no mean") {
  const Made m = made(kTopk);
  const Tensor x = sample({1, 9, 12}, "x");
  const Tensor before = run(*m.layer, x).value();
  const Tensor& w = parameter(m, "gate_proj.weight").value();
  w.fill(3);
  const Tensor after = run(*m.layer, x).value();
  CHECK(same_bits(after.slice(1, 0, 4), before.slice(1, 0, 4)));
  CHECK_FALSE(same_bits(after.slice(1, 4, 9), before.slice(1, 4, 9)));
}

TEST_CASE("nsa: before the first block is complete no mean is seen, and all else is attention") {
  const Made nsa = made(kNsa), attention = made({"", "attention", "heads = 2\nkey_heads = 1"});
  parameter(nsa, "g_proj.weight").value().zero();  // each gate is a half
  for (const int64_t T : {1, 3}) {
    const Var x = Var::leaf(sample({2, T, 12}, "x")), y = Var::leaf(x.value());
    const Var a = run(*nsa.layer, x), b = run(*attention.layer, y);
    autograd::backward(weighted(a));
    autograd::backward(weighted(b));
    CHECK(distance(a.value(), b.value()) < 1e-13);
    CHECK(distance(x.grad(), y.grad()) < 1e-12);
  }
  const Tensor x = sample({2, 4, 12}, "x");
  CHECK(distance(run(*nsa.layer, x).value(), run(*attention.layer, x).value()) > 1e-3);
}

TEST_CASE("latent_attention: a generation keeps latents and shared keys, and nothing of a head") {
  for (const int64_t heads : {1, 3}) {
    const Made m = made(
        {"", "latent_attention", concat("heads = ", heads, "\nhead_dim = 4\nlatent_width = 7\n")});
    const autograd::NoGrad no_grad;
    State state;
    Context c;
    c.state = &state;
    c.capacity = 20;
    m.layer->forward(sample({1, 9, 12}, "x"), c);
    CHECK(state.bytes() == 20 * (7 + 2) * 8);
  }
}

TEST_CASE("selection: a later token changes no bit of an earlier result") {
  for (const MixerCase& c : {kMoba, kTopk, kNsa}) {
    const Made m = made(c, Dtype::f32);
    const Tensor x = sample({1, 40, 12}, "x", Dtype::f32);
    const Tensor before = run(*m.layer, x).value();
    for (const int64_t t : {39, 24, 23, 6, 1}) {
      const Tensor other = x.clone();
      other.slice(1, t, 40).fill(2.5);
      INFO(c.name << ", token " << t);
      CHECK(same_bits(run(*m.layer, other).value().slice(1, 0, t), before.slice(1, 0, t)));
    }
  }
}

TEST_CASE("selection: steps whose position the work reads give what the whole text gives") {
  for (const MixerCase& c : {kMoba, kTopk, kNsa})
    for (const int64_t prompt : {1, 4, 7, 18}) {
      INFO(c.name << ", prompt " << prompt);
      const Made m = made(c);
      State state;
      CHECK(distance_of_placed_steps(*m.layer, sample({1, 30, 12}, "x"), prompt, state) < 1e-12);
    }
}

TEST_CASE("selection: a block that no context fits is refused by name") {
  const auto message = [](const MixerCase& c) -> std::string {
    try {
      made(c, Dtype::f32, kMeta, 10000);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  CHECK_THAT(message({"r", "moba", "heads = 2\nblock = 1"}),
             ContainsSubstring("10000 blocks of 1, expected at most 8192"));
  CHECK(message({"r", "moba", "heads = 2\nblock = 2"}).empty());
}
