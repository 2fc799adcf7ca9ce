// Parameters from seed and name, where they start, and the list of mixers. (blocks.cpp, softmax.cpp
// and recurrent.cpp are tested through the mixers that are made of them.)
#include <algorithm>

#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

double mean(const Tensor& t) {
  double sum = 0;
  for (const double v : to_doubles(t)) sum += v;
  return sum / static_cast<double>(t.numel());
}

double deviation(const Tensor& t) {
  double sum = 0;
  for (const double v : to_doubles(t)) sum += v * v;
  return std::sqrt(sum / static_cast<double>(t.numel()));
}

bool within(const Tensor& t, double low, double high) {
  const std::vector<double> v = to_doubles(t);
  return std::all_of(v.begin(), v.end(), [&](double x) { return x >= low && x <= high; });
}

// The parameters of a mixer of width 64 in a model of 8 layers, as they start.
std::map<std::string, Parameter> started(const std::string& mixer, const std::string& toml) {
  std::vector<Parameter> list;
  Spec spec;
  spec.width = 64;
  spec.layers = 8;
  mixer_maker(mixer)(spec, toml_from_text(toml, "t"), Builder(Dtype::f64, kCpu, 1, &list));
  std::map<std::string, Parameter> out;
  for (const Parameter& p : list) out[p.name] = p;
  return out;
}

double softplus(double x) { return std::log1p(std::exp(x)); }

}  // namespace

TEST_CASE("registry: a parameter's numbers depend on seed and full name alone") {
  std::vector<Parameter> list, other;
  const Builder a(Dtype::f64, kCpu, 1, &list), b(Dtype::f32, kCpu, 1, &other);
  const Init normal = Init::normal(0.5);
  a.parameter("first", {3}, normal);
  const Tensor x = a.within("layers.0").within("mixer").parameter("w", {5, 7}, normal).value();
  const Tensor y = b.parameter("layers.0.mixer.w", {7, 5}, normal).value();
  CHECK(distance(y.reshape({5, 7}), x) < 1e-7);
  CHECK(list[1].name == "layers.0.mixer.w");
  CHECK_FALSE(same_bits(a.parameter("layers.1.mixer.w", {5, 7}, normal).value(), x));
  CHECK_FALSE(
      same_bits(Builder(Dtype::f64, kCpu, 2, &other).parameter("w", {5, 7}, normal).value(),
                Builder(Dtype::f64, kCpu, 1, &list).parameter("w", {5, 7}, normal).value()));
  CHECK_THROWS_WITH(a.parameter("first", {3}, normal),
                    ContainsSubstring("two parameters are named first"));
}

TEST_CASE("registry: only tensors of two dimensions and more are decayed, and not all of them") {
  std::vector<Parameter> list;
  const Builder b(Dtype::f32, kCpu, 1, &list);
  b.parameter("a", {3, 3}, Init::constant(0));
  b.parameter("b", {3}, Init::constant(0));
  b.parameter("c", {3, 3}, Init::constant(0), /*decay=*/false);
  CHECK(list[0].decay);
  CHECK_FALSE(list[1].decay);
  CHECK_FALSE(list[2].decay);
}

TEST_CASE("registry: an unknown mixer is told which are known") {
  CHECK_THROWS_WITH(mixer_maker("retenton"), ContainsSubstring("did you mean \"retention\"?") &&
                                                 ContainsSubstring("gated_delta"));
  CHECK_THROWS_WITH(add_mixer("attention", mixer_maker("attention")),
                    ContainsSubstring("two mixers are named attention"));
}

TEST_CASE("registry: every mixer on the list has a case among those that all must pass") {
  CHECK(mixer_names().size() >= 11);
  for (const std::string& name : mixer_names()) {
    INFO(name << ": mixer_cases() of tests/layers/made.h lacks it");
    CHECK(std::any_of(mixer_cases().begin(), mixer_cases().end(),
                      [&](const MixerCase& c) { return c.mixer == name; }));
  }
}

TEST_CASE("registry: weights start at init, those into the residual stream by depth smaller") {
  const auto p = started("attention", "heads = 4");
  CHECK(deviation(p.at("q_proj.weight").var.value()) == Approx(0.02).epsilon(0.05));
  CHECK(deviation(p.at("o_proj.weight").var.value()) == Approx(0.02 / 4).epsilon(0.05));
}

TEST_CASE("registry: decays and steps start where the papers start them") {
  for (const auto& [mixer, low, high] :
       {std::tuple{"gated_delta", 0.01, 16.0}, std::tuple{"kda", 1.0, 16.0},
        std::tuple{"mamba2", 1.0, 16.0}}) {
    INFO(mixer);
    const bool delta = std::string(mixer) != "mamba2";
    const auto p = started(mixer, delta ? "heads = 64\nkey_width = 1" : "head_dim = 1");
    const Tensor A_log = p.at("A_log").var.value(), dt_bias = p.at("dt_bias").var.value();
    CHECK(within(A_log, std::log(low), std::log(high)));
    CHECK(mean(A_log) > std::log(4));  // uniform in A, not in log A
    CHECK(within(dt_bias, std::log(std::expm1(0.999e-3)), std::log(std::expm1(0.1001))));
    CHECK(softplus(mean(dt_bias)) == Approx(0.01).epsilon(0.3));  // log-uniform in 1e-3 .. 1e-1
    CHECK_FALSE(p.at("A_log").decay);
    CHECK_FALSE(p.at("dt_bias").decay);
  }
  const auto p = started("mamba", "state = 3");
  CHECK_FALSE(p.at("A_log").decay);
  CHECK_FALSE(p.at("D").decay);
  CHECK(distance(p.at("A_log").var.value().select(0, 77),
                 tensor_of<double>({0, std::log(2), std::log(3)})) < 1e-15);
  CHECK(within(p.at("in_proj.weight").var.value(), -0.125, 0.125));
  CHECK(within(p.at("out_proj.weight").var.value(), -0.032, 0.032));  // 1 / sqrt(128) / sqrt(8)
}
