// What every feature map promises, found by its name on the list, and what single ones do.
#include "layers/feature_map.h"

#include <cmath>

#include "autograd/watch.h"
#include "core/random.h"
#include "layers/model.h"
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

constexpr int64_t kVocabulary = 11;

Made linear_of(const std::string& map, const std::string& more = "", int64_t context = 64) {
  const std::string toml = "heads = 2\nkey_width = 5\nfeature_map = \"" + map + "\"\n" + more;
  return made({map, "linear_attention", toml}, Dtype::f64, kCpu, context);
}

Model model_of(const std::string& settings, const std::string& init = "0.5") {
  return {toml_from_text("[model]\nwidth = 8\ncontext = 24\nlayers = 2\ninit = " + init +
                             "\npattern = [\"linear_attention\"]\n[linear_attention]\nheads = 2\n" +
                             settings,
                         "r.toml"),
          kVocabulary, Dtype::f64, kCpu, 5};
}

std::vector<double> logits(const Model& m) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 24; ++i) tokens.push_back(i * 7 % kVocabulary);
  return to_doubles(m.logits(tensor_of(tokens).reshape({1, 24})));
}

}  // namespace

TEST_CASE("feature maps: every one on the list passes the gradient check") {
  CHECK(feature_map_names().size() >= 6);
  for (const std::string& name : feature_map_names()) {
    const Made m = linear_of(name);
    const Var x = Var::leaf(sample({2, 9, 12}, "x"));
    const auto report =
        check_gradients([&] { return weighted(run(*m.layer, x)); }, x, m.parameters);
    INFO(name << "\n" << failures(report));
    CHECK(report.passed());
  }
}

TEST_CASE("feature maps: every one goes on from any cut as if there were none") {
  for (const std::string& name : feature_map_names()) {
    const Made m = linear_of(name);
    const Tensor x = sample({1, 40, 12}, "x");
    const Tensor whole = run(*m.layer, Var(x)).value();
    const autograd::NoGrad no_grad;
    for (const int64_t cut : {1, 16, 39}) {
      State state;
      Context c;
      c.state = &state;
      m.layer->forward(Var(x.slice(1, 0, cut).contiguous()), c);
      c.position = cut;
      const Var rest = m.layer->forward(Var(x.slice(1, cut, 40).contiguous()), c);
      INFO(name << " at " << cut);
      CHECK(distance(rest.value(), whole.slice(1, cut, 40)) < 1e-12);
    }
  }
}

TEST_CASE("feature maps: every one sees nothing of what is still to come, to the bit") {
  for (const std::string& name : feature_map_names()) {
    const Made m = linear_of(name);
    const Tensor x = sample({1, 30, 12}, "x"), other = x.clone();
    other.slice(1, 17, 30).fill(9);
    INFO(name);
    CHECK(same_bits(run(*m.layer, Var(x)).value().slice(1, 0, 17),
                    run(*m.layer, Var(other)).value().slice(1, 0, 17)));
  }
}

TEST_CASE("feature maps: an unknown one is told which are known") {
  CHECK_THROWS_WITH(linear_of("favour+"), ContainsSubstring("favor+"));
  CHECK_THROWS_WITH(add_feature_map("relu", {}), ContainsSubstring("two feature maps"));
}

TEST_CASE("feature maps: a divisor that may be zero is refused, and one that is needed kept") {
  for (const char* map : {"none", "trigonometric"})
    CHECK_THROWS_WITH(linear_of(map, "normalize = true\n"),
                      ContainsSubstring("may be zero or negative"));
  CHECK_THROWS_WITH(linear_of("favor+", "normalize = false\n"),
                    ContainsSubstring("set normalize = true"));
}

TEST_CASE("feature maps: rows whose features are all zero give zeros and finite gradients") {
  for (const char* map : {"relu", "cosine"}) {
    const Made m = linear_of(map);
    for (const Parameter& p : m.parameters)
      if (p.name == "q_proj.weight" || p.name == "k_proj.weight") p.var.value().fill(-1);
    const Var x = Var::leaf(full({1, 5, 12}, 0.5, Dtype::f64));  // q and k are negative
    const Var y = run(*m.layer, x);
    autograd::backward(weighted(y));
    for (const double v : to_doubles(y.value())) CHECK(v == 0);
    for (const double v : to_doubles(x.grad())) CHECK(std::isfinite(v));
  }
}

TEST_CASE("favor+: keys and queries of any length give finite outputs in f32") {
  MixerCase c{"favor+", "linear_attention", "heads = 2\nfeature_map = \"favor+\""};
  const Made m = made(c, Dtype::f32);
  for (const double size : {1.0, 10.0, 100.0}) {
    const Tensor x = sample({1, 30, 12}, "x", Dtype::f32);
    const Var leaf = Var::leaf(autograd::scale(Var(x), size).value());
    const Var y = run(*m.layer, leaf);
    autograd::backward(weighted(y));
    INFO(size);
    for (const double v : to_doubles(y.value())) CHECK(std::isfinite(v));
    for (const double v : to_doubles(leaf.grad())) CHECK(std::isfinite(v));
  }
}

TEST_CASE("favor+: draws depend on seed, layer and step / redraw, not on earlier steps") {
  Model m = model_of("feature_map = \"favor+\"\nfeatures = 8\nredraw = 10\n");
  const std::vector<double> first = logits(m);
  m.at_step(9);
  CHECK(logits(m) == first);
  m.at_step(10);
  const std::vector<double> second = logits(m);
  CHECK(second != first);
  m.at_step(57);
  CHECK(logits(m) != second);
  m.at_step(19);
  CHECK(logits(m) == second);
  m.at_step(0);
  CHECK(logits(m) == first);
  Model anew = model_of("feature_map = \"favor+\"\nfeatures = 8\nredraw = 10\n");
  anew.at_step(13);  // a run that goes on
  CHECK(logits(anew) == second);
  Model never = model_of("feature_map = \"favor+\"\nfeatures = 8\nredraw = 0\n");
  CHECK(logits(never) == first);
  never.at_step(100000);
  CHECK(logits(never) == first);
}

TEST_CASE("favor+: with many features linear attention is softmax attention, nearly") {
  Model linear = model_of("feature_map = \"favor+\"\nfeatures = 4096\n", "0.25");
  Model softmax{
      toml_from_text("[model]\nwidth = 8\ncontext = 24\nlayers = 2\ninit = 0.25\n"
                     "pattern = [\"attention\"]\n[attention]\nheads = 2\nrotary = false\n",
                     "r.toml"),
      kVocabulary, Dtype::f64, kCpu, 5};
  const std::vector<double> a = logits(linear), b = logits(softmax);
  double apart = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    apart += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  INFO(std::sqrt(apart / size));
  CHECK(apart / size < 0.06 * 0.06);
}

TEST_CASE("cosine: no text is longer than the horizon, and no horizon shorter than the context") {
  CHECK_THROWS_WITH(linear_of("cosine", "horizon = 20\n"), ContainsSubstring("shorter than"));
  const Model m = model_of("feature_map = \"cosine\"\nhorizon = 30\n");
  CHECK(m.longest_text() == 30);
  const Made layer = linear_of("cosine", "horizon = 20\n", /*context=*/16);
  run(*layer.layer, Var(sample({1, 20, 12}, "x")));
  CHECK_THROWS_WITH(run(*layer.layer, Var(sample({1, 21, 12}, "x"))),
                    ContainsSubstring("longer than the horizon of 20"));
  const Tensor packed = tensor_of<int32_t>({0, 15, 30});  // each document is short enough
  run(*layer.layer, Var(sample({1, 30, 12}, "x")), packed);
}

TEST_CASE("cosine: a learned horizon is never shorter than the recipe's") {
  const Made m = linear_of("cosine", "horizon = 64\nlearned_horizon = true\n");
  const Tensor x = sample({1, 64, 12}, "x");
  for (const Parameter& p : m.parameters)
    if (p.name == "horizon_logit") p.var.value().fill(1e3);
  const Made fixed = linear_of("cosine", "horizon = 64\n");
  for (const Parameter& p : fixed.parameters)
    for (const Parameter& q : m.parameters)
      if (p.name == q.name) p.var.value().copy_from(q.var.value());
  CHECK(distance(run(*m.layer, Var(x)).value(), run(*fixed.layer, Var(x)).value()) < 1e-12);
}

TEST_CASE("t2r: each head of queries and of keys has the bias of its own rows") {
  const Made m = linear_of("t2r");
  for (const Parameter& p : m.parameters) {
    if (p.name.starts_with("feature_map.") && p.name.ends_with("weight")) p.var.value().zero();
    if (p.name.starts_with("feature_map.") && p.name.ends_with("bias"))
      for (int64_t i = 0; i < p.var.value().numel(); ++i)
        p.var.value().data<double>()[i] = static_cast<double>(1 + i);
  }
  int seen = 0;
  const autograd::Watch watch([&](const autograd::Watched& w) {
    if (w.name != "linear") return;
    ++seen;
    for (const char* field : {"q", "k"}) {
      const Tensor features = w.inputs.at(field).contiguous();  // [1, T, 2, F]
      REQUIRE(features.shape() == Shape{1, 3, 2, 5});
      const auto at = view<const double>(features);
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t f = 0; f < 5; ++f) CHECK(at(0, 1, h, f) == static_cast<double>(1 + h * 5 + f));
    }
  });
  run(*m.layer, Var(sample({1, 3, 12}, "x")));
  CHECK(seen == 1);
}

TEST_CASE("fast_weights: with alpha of one it is linear attention without a divisor") {
  const Made fast = made({"", "fast_weights", "heads = 2"});
  const Made plain = made({"", "linear_attention", "heads = 2\nnormalize = false"});
  for (const Parameter& p : fast.parameters)
    for (const Parameter& q : plain.parameters)
      if (p.name == q.name) q.var.value().copy_from(p.var.value());
  for (const Parameter& p : fast.parameters) {
    if (p.name == "alpha_proj.weight") p.var.value().zero();
    if (p.name == "alpha_proj.bias") p.var.value().fill(40);
  }
  const Tensor x = sample({2, 20, 12}, "x");
  CHECK(distance(run(*fast.layer, Var(x)).value(), run(*plain.layer, Var(x)).value()) < 1e-12);
}
