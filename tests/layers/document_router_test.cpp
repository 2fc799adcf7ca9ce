// The router of documents: the opening and the patterns are what they promise, the price counts
// keys, and no token sees what it must not. What is asked of every mixer is in mixers_test.cpp.
#include <cmath>
#include <limits>
#include <set>

#include "layers/model.h"
#include "layers/routes.h"
#include "tests/catch.h"
#include "tests/layers/made.h"
#include "tests/layers/oracle_weights.h"
#include "tests/paths.h"

using namespace weft;
using namespace weft::layers;

namespace {

const std::string kHard = "\nsoft_steps = 0\nanneal_steps = 0\n";
const std::string kShape = "heads = 2\nblock = 4\nopening = 8\npatterns = [0, 1, 3, 16]\n";
constexpr int64_t kOpening = 8, kBlock = 4;
constexpr int64_t kBlocks[] = {0, 1, 3, 16};

const Var& parameter(const Made& m, const std::string& name) {
  for (const Parameter& p : m.parameters)
    if (p.name == name) return p.var;
  fail("no parameter ", name);
}

Made router(const std::string& toml, Dtype dtype = Dtype::f64) {
  return made({"", "document_router", toml}, dtype);
}

// Whatever the text, that pattern alone.
Made always(int64_t pattern, const std::string& toml) {
  Made m = router(toml);
  parameter(m, "router.weight").value().zero();
  const Tensor& bias = parameter(m, "router.bias").value();
  bias.fill(-1e4);
  bias.slice(0, pattern, pattern + 1).fill(1e4);
  return m;
}

// Attention over the keys that sees(t, s) names, of one row without groups of heads.
Tensor attention_by(const Made& m, const Tensor& x,
                    const std::function<bool(int64_t, int64_t)>& sees) {
  const auto of = [&](const char* name) {
    return heads(product(Var(x), parameter(m, name)), 2).value();
  };
  const Tensor q = of("q_proj.weight"), k = of("k_proj.weight"), v = of("v_proj.weight");
  const int64_t T = x.size(1), K = q.size(3);
  const Tensor y = zeros({1, T, 2, K}, Dtype::f64);
  const auto Q = view<const double>(q), Key = view<const double>(k), V = view<const double>(v);
  const auto Y = view<double>(y);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t t = 0; t < T; ++t) {
      std::vector<double> p(static_cast<size_t>(t + 1), 0);
      double sum = 0;
      for (int64_t s = 0; s <= t; ++s) {
        double score = 0;
        for (int64_t d = 0; d < K; ++d) score += Q(0, t, h, d) * Key(0, s, h, d);
        if (sees(t, s)) sum += p[static_cast<size_t>(s)] = std::exp(score / std::sqrt(double(K)));
      }
      for (int64_t s = 0; s <= t && sum > 0; ++s)
        for (int64_t d = 0; d < K; ++d)
          Y(0, t, h, d) += p[static_cast<size_t>(s)] / sum * V(0, s, h, d);
    }
  return product(merged(Var(y)), parameter(m, "o_proj.weight")).value();
}

Var trained(const Layer& layer, const Var& x) {
  Context c;
  c.training = true;
  return layer.forward(x, c);
}

double price_of(const Made& m, const Tensor& x, const Tensor& cu = {}) {
  std::vector<Var> losses;
  Context c;
  c.losses = &losses;
  c.cu_seqlens = cu;
  m.layer->forward(x, c);
  return losses.at(0).value().item();
}

}  // namespace

TEST_CASE("document_router: a pattern is the own block, the first ones and the nearest, n in all") {
  const Tensor x = sample({1, 43, 12}, "x");
  for (const std::string& phase : {std::string(), kHard})
    for (const int64_t first : {0, 1, 2})
      for (size_t pattern = 0; pattern < 4; ++pattern) {
        INFO("pattern " << pattern << ", first " << first << phase);
        const Made m = always(static_cast<int64_t>(pattern),
                              concat(kShape, "rotary = false\nfirst_blocks = ", first, phase));
        const Tensor wanted = attention_by(m, x, [&](int64_t t, int64_t s) {
          if (t < kOpening) return true;
          const int64_t own = t / kBlock, block = s / kBlock, n = kBlocks[pattern];
          const int64_t front = std::min(first, n - 1);
          return n > 0 && (block < front || own - block < n - front);
        });
        CHECK(distance(run(*m.layer, x).value(), wanted) < 1e-12);
      }
}

TEST_CASE("document_router: the opening alone chooses, by the mean of its logits") {
  const Made m = router(kShape + "rotary = false" + kHard);
  const Tensor& bias = parameter(m, "router.bias").value();  // so small that texts differ
  bias.copy_from(autograd::scale(Var(bias), 0.2).value());
  const auto chosen = [&](const Tensor& from) {
    double best = -1e9;
    int64_t at = -1;
    const Tensor z =
        product(Var(from), parameter(m, "router.weight"), parameter(m, "router.bias")).value();
    for (int64_t k = 0; k < 4; ++k) {
      double sum = 0;
      for (int64_t t = 0; t < kOpening; ++t) sum += view<const double>(z)(0, t, k);
      if (sum > best) best = sum, at = k;
    }
    return at;
  };
  std::set<int64_t> met;
  for (int64_t text = 0; text < 12; ++text) {
    const Tensor own = sample({1, 30, 12}, concat("text ", text));
    const int64_t pattern = chosen(own), n = kBlocks[pattern];
    met.insert(pattern);
    const Tensor wanted = attention_by(m, own, [&](int64_t t, int64_t s) {
      const int64_t before = t / kBlock - s / kBlock;
      return t < kOpening || (n == 1 ? before == 0 : n > 1 && (before < n - 1 || s < kBlock));
    });
    INFO("text " << text << ", pattern " << pattern);
    CHECK(distance(run(*m.layer, own).value(), wanted) < 1e-12);
  }
  CHECK(met.size() > 2);
}

TEST_CASE("document_router: a later token changes no bit of an earlier result") {
  for (const std::string& phase : {std::string(), kHard}) {
    const Made m = router(kShape + phase);
    const Tensor x = sample({1, 40, 12}, "x"), before = run(*m.layer, x).value();
    for (const int64_t t : {39, 24, 23, 9, 8, 7, 1})
      for (const double garbage : {2.5, std::numeric_limits<double>::quiet_NaN()}) {
        if (std::isnan(garbage) && t % kBlock != 0) continue;  // a block is worked off whole
        const Tensor other = x.clone();
        other.slice(1, t, 40).fill(garbage);
        INFO(phase << ", token " << t << " on is " << garbage);
        CHECK(same_bits(run(*m.layer, other).value().slice(1, 0, t), before.slice(1, 0, t)));
      }
    for (const int64_t t : {24, 9, 8, 7}) {
      const Var in = Var::leaf(x);
      autograd::backward(weighted(autograd::slice(trained(*m.layer, in), 1, 0, t)));
      CHECK(same_bits(in.grad().slice(1, t, 40), zeros({1, 40 - t, 12}, Dtype::f64)));
    }
  }
}

TEST_CASE("document_router: what another document holds, NaN too, changes no bit") {
  const Tensor cu = tensor_of<int32_t>({0, 21, 26, 40, 41, 60});
  for (const std::string& phase : {std::string(), kHard}) {
    const Made m = router(kShape + phase, Dtype::f32);
    const Tensor x = sample({1, 60, 12}, "x", Dtype::f32), before = run(*m.layer, x, cu).value();
    for (size_t n = 0; n + 1 < 6; ++n) {
      const int64_t a = cu.data<int32_t>()[n], b = cu.data<int32_t>()[n + 1];
      const Tensor other = x.clone();
      other.slice(1, a, b).fill(std::numeric_limits<double>::quiet_NaN());
      const Tensor y = run(*m.layer, other, cu).value();
      INFO(phase << ", document " << n);
      CHECK(same_bits(y.slice(1, 0, a), before.slice(1, 0, a)));
      CHECK(same_bits(y.slice(1, b, 60), before.slice(1, b, 60)));
    }
  }
}

TEST_CASE("document_router: what no pattern sees is never read") {
  for (const int64_t first : {0, 1}) {
    const Made m = always(2, concat(kShape, "first_blocks = ", first, kHard));
    const Tensor x = sample({1, 40, 12}, "x");
    x.slice(1, 8, 9).fill(std::numeric_limits<double>::quiet_NaN());  // behind the opening
    const Tensor y = run(*m.layer, x).value();
    CHECK(autograd::all_finite(y.slice(1, 0, 8)));
    const int64_t seen = (2 + 3 - first) * kBlock;
    CHECK_FALSE(autograd::all_finite(y.slice(1, seen - 1, seen)));
    CHECK(autograd::all_finite(y.slice(1, seen, 40)));
  }
}

TEST_CASE("document_router: cuts anywhere, with a place or without, choose as the whole text") {
  const autograd::NoGrad no_grad;
  const int64_t T = 22;
  for (const std::string& phase : {std::string(), kHard}) {
    const Made m = router(kShape + phase);
    const Tensor x = sample({1, T, 12}, "x");
    for (int64_t prompt = 1; prompt < T; ++prompt)
      for (const bool placed : {false, true}) {
        INFO(phase << ", prompt " << prompt << (placed ? ", placed" : ""));
        State state;
        CHECK(distance_of_steps(*m.layer, x, prompt, state, placed) < 1e-12);
      }
  }
}

TEST_CASE("document_router: a sharp mixture is the hard choice") {
  const Made sharp = router(kShape + "soft_steps = 0\nanneal_steps = 10\ntemperature = 1e-9\n");
  const Made hard = router(kShape + kHard);
  const Var x(sample({2, 50, 12}, "x"));
  const Tensor smooth = run(*sharp.layer, x).value();
  sharp.layer->at_step(9);
  CHECK(sharp.layer->form() != hard.layer->form());
  CHECK(distance(run(*sharp.layer, x).value(), run(*hard.layer, x).value()) < 1e-14);
  CHECK(distance(smooth, run(*hard.layer, x).value()) > 1e-3);
}

TEST_CASE("document_router: the price counts keys, of all documents, and the budget is free") {
  const Tensor x = sample({1, 60, 12}, "x");
  const std::vector<int32_t> borders{0, 21, 26, 60};
  for (const bool packed : {false, true})
    for (size_t pattern = 0; pattern < 4; ++pattern) {
      double seen = 0, all = 0;
      for (int64_t t = 0; t < 60; ++t) {
        int64_t at = t;
        for (const int32_t b : borders)
          if (packed && b <= t) at = t - b;
        const int64_t n = at < kOpening ? 16 : kBlocks[pattern];
        const int64_t blocks = std::min(at / kBlock + 1, n);
        seen += blocks > 0 ? static_cast<double>((blocks - 1) * kBlock + at % kBlock + 1) : 0;
        all += static_cast<double>(at + 1);
      }
      const Tensor cu = packed ? tensor_of(borders) : Tensor();
      const auto price = [&](double budget) {
        return price_of(
            always(static_cast<int64_t>(pattern),
                   concat(kShape, "draw_steps = 9\nprice = 2\nbudget = ", budget, kHard)),
            x, cu);
      };
      INFO("pattern " << pattern << (packed ? ", packed" : ""));
      CHECK(price(0) == Approx(2 * seen / all));
      for (const double budget : {0.03, 0.3, 0.99})
        CHECK(price(budget) == Approx(std::max(0.0, 2 * (seen / all - budget))).margin(1e-15));
    }
}

TEST_CASE("document_router: mixture, price and a draw's noise have the gradient of differences") {
  const Made m = router(kShape + "budget = 0.01\nprice = 3\nsoft_steps = 0\nanneal_steps = 4");
  m.layer->at_step(3);
  const Var x = Var::leaf(sample({2, 21, 12}, "x"));
  CHECK(distance(trained(*m.layer, x).value(), run(*m.layer, x).value()) > 1e-3);
  const auto loss = [&] {
    std::vector<Var> losses;
    Context c;
    c.training = true;
    c.losses = &losses;
    const Var y = m.layer->forward(x, c);
    return autograd::add(weighted(y), losses.at(0));
  };
  const auto report = check_gradients(loss, x, m.parameters);
  INFO(failures(report));
  CHECK(report.passed());
}

TEST_CASE("document_router: all tokens of a document have one draw, a function of the step") {
  const std::string toml = kShape + kHard + "draw_steps = 1000\nrotary = false";
  const Tensor x = sample({6, 30, 12}, "x");
  Made m = router(toml), other = router(toml);
  parameter(m, "router.weight").value().zero();  // all by chance
  parameter(m, "router.bias").value().zero();
  parameter(other, "router.weight").value().zero();
  parameter(other, "router.bias").value().zero();
  const Tensor still = run(*m.layer, x).value();
  m.layer->at_step(5);
  const Tensor fifth = trained(*m.layer, x).value();
  std::set<size_t> met;
  for (int64_t b = 0; b < 6; ++b) {  // each row is one of the patterns from end to end
    int fits = 0;
    for (size_t pattern = 0; pattern < 4; ++pattern) {
      const Made one = always(static_cast<int64_t>(pattern), toml);
      const Tensor y = run(*one.layer, x.slice(0, b, b + 1).contiguous()).value();
      if (distance(y, fifth.slice(0, b, b + 1)) > 1e-12) continue;
      ++fits;
      met.insert(pattern);
    }
    CHECK(fits == 1);
  }
  CHECK(met.size() > 1);
  m.layer->at_step(6);
  CHECK_FALSE(same_bits(trained(*m.layer, x).value(), fifth));
  CHECK(same_bits(run(*m.layer, x).value(), still));
  other.layer->at_step(5);  // a run that goes on
  CHECK(same_bits(trained(*other.layer, x).value(), fifth));
}

TEST_CASE("document_router: what was chosen behind openings is counted, and the keys seen") {
  const Var x(sample({2, 10, 12}, "x"));
  const auto routes = [&](const Made& m) { return watch_routes([&] { run(*m.layer, x); }).at(0); };
  for (const std::string& phase : {std::string(), kHard}) {
    const Routes r = routes(always(1, kShape + phase));
    CHECK(r.by_document);
    CHECK(r.shares == std::vector<double>{0, 1, 0, 0});
    CHECK(r.tokens == 4);
    CHECK(r.opening == 16);
  }
  CHECK(routes(always(1, kShape + kHard)).keys == Approx((36 + 1 + 2) / 10.0));
  CHECK(routes(always(0, kShape + kHard)).keys == Approx(36 / 10.0));
}

TEST_CASE("document_router: mixture, price and gradients of packed documents are those of torch") {
  const Hdf5Reader file(tests::source_path("tests/oracles/layer_document_router.h5"));
  const Made m = router(kShape +
                        "rotary = false\nbudget = 0\nprice = 3\ntemperature = 1\n"
                        "soft_steps = 0\nanneal_steps = 10");
  m.layer->at_step(9);  // a tenth is free
  for (const Parameter& p : m.parameters) p.var.value().copy_from(file.tensor("weights/" + p.name));
  CHECK(m.parameters.size() == group_of(file, "weights").size());
  const Var x = Var::leaf(file.tensor("inputs/x"));
  std::vector<Var> losses;
  Context c;
  c.cu_seqlens = file.tensor("inputs/cu_seqlens");
  c.losses = &losses;
  const Var y = m.layer->forward(x, c);
  CHECK(distance(y.value(), file.tensor("outputs/y")) < 1e-12);
  CHECK(distance(losses.at(0).value(), file.tensor("outputs/price")) < 1e-12);
  autograd::backward(autograd::add(
      losses[0], autograd::sum(autograd::multiply(y, Var(file.tensor("grad_outputs/dy"))))));
  CHECK(distance(x.grad(), file.tensor("gradients/dx")) < 1e-11);
  for (const Parameter& p : m.parameters) {
    INFO(p.name);
    CHECK(distance(p.var.grad(), file.tensor("gradients/d" + p.name)) < 1e-11);
  }
}

TEST_CASE("document_router: wrong patterns and openings are refused with their place") {
  const auto refused = [](const std::string& toml, const std::string& why) {
    CHECK_THROWS_WITH(router("heads = 2\nblock = 4\n" + toml), ContainsSubstring(why));
  };
  refused("patterns = [3]", ":3:12: patterns has 1 numbers, expected 2 to 16");
  refused("patterns = [1, 4, 4]", "patterns has 4 after 4, expected numbers of blocks that rise");
  refused("patterns = [4, 1]", "patterns has 1 after 4");
  refused("patterns = [-1, 1]", "patterns");
  refused("opening = 6", ":3:11: opening = 6, expected whole blocks of 4 tokens");
  refused("opening = 0", "opening");
}
