// The effective attention matrix of every mixer: picture times values is what the mixer gives.
#include "layers/mixing.h"

#include <set>

#include "autograd/kernel_op.h"
#include "core/error.h"
#include "kernels/delta/delta.h"
#include "tests/catch.h"
#include "tests/layers/made.h"

using namespace weft;
using namespace weft::layers;

namespace {

constexpr int64_t kTokens = 19;

std::vector<Mixing> mixings_of(const MixerCase& c, Dtype dtype = Dtype::f64) {
  const Made m = made(c, dtype);
  std::vector<Mixing> found;
  const autograd::NoGrad no_grad;
  watch_mixings(
      [&] {
        run(*m.layer, Var(sample({1, kTokens, c.width}, "x", dtype)));
      },
      [&](const Mixing& mixing) { found.push_back(mixing); });
  return found;
}

// matrix [H, T, T] times values [H, T, V].
Tensor mixed(const Mixing& m) {
  const Tensor out = zeros(m.values.shape(), Dtype::f64);
  const auto M = view<const double>(m.matrix), v = view<const double>(m.values);
  const auto o = view<double>(out);
  for (int64_t h = 0; h < v.size(0); ++h)
    for (int64_t t = 0; t < v.size(1); ++t)
      for (int64_t s = 0; s < v.size(1); ++s)
        for (int64_t i = 0; i < v.size(2); ++i) o(h, t, i) += M(h, t, s) * v(h, s, i);
  return out;
}

}  // namespace

TEST_CASE("mixing: matrix times values is the result of every mixer, in every case") {
  std::set<std::string> seen;
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const std::vector<Mixing> found = mixings_of(c);
    // Blocks, and means of blocks; three choices while they are soft, and a linear path.
    const bool router = c.mixer == "router", hard = c.name.find("hard") != std::string::npos;
    const bool alone = c.name.find("no linear path") != std::string::npos;
    const bool three = c.name.find("groups of heads") != std::string::npos;
    const bool led = c.name.find("global projections") != std::string::npos;
    const size_t parts = c.mixer == "topk" || c.mixer == "nsa" || led ? 2
                         : c.mixer == "side_by_side"                  ? 2 + three
                         : router                                     ? (hard ? 1 : 3) + !alone
                                                                      : 1;
    REQUIRE(found.size() == parts);
    for (const Mixing& m : found) {
      CHECK(distance(mixed(m), m.result) < 1e-6);
      CHECK(m.gap < 1e-6);
      CHECK(distance(zeros_like(m.result), m.result) == 1);
    }
    seen.insert(c.mixer);
  }
  for (const std::string& name : mixer_names()) {
    INFO(name << " has no case in tests/layers/made.h");
    CHECK(seen.count(name) == 1);
  }
}

TEST_CASE("mixing: no token reads one after it") {
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const Tensor matrix = mixings_of(c)[0].matrix;
    const auto M = view<const double>(matrix);
    double ahead = 0, own = 0;
    for (int64_t h = 0; h < M.size(0); ++h)
      for (int64_t t = 0; t < kTokens; ++t) {
        own += std::abs(M(h, t, t));
        for (int64_t s = t + 1; s < kTokens; ++s) ahead = std::max(ahead, std::abs(M(h, t, s)));
      }
    CHECK(ahead == 0);
    CHECK(own > 0);
  }
}

TEST_CASE("mixing: softmax weights and normalised weights of a token sum to one") {
  for (const char* name : {"attention", "attention, window", "block_sparse", "linear_attention"}) {
    INFO(name);
    const auto& cases = mixer_cases();
    const auto c =
        std::find_if(cases.begin(), cases.end(), [&](auto& x) { return x.name == name; });
    const Mixing m = mixings_of(*c)[0];
    const auto M = view<const double>(m.matrix);
    double most = 0;
    for (int64_t h = 0; h < M.size(0); ++h)
      for (int64_t t = 0; t < kTokens; ++t) {
        double sum = 0;
        for (int64_t s = 0; s < kTokens; ++s) sum += M(h, t, s);
        most = std::max(most, std::abs(sum - 1));
      }
    CHECK(most < 1e-4);  // linear attention adds eps to its divisor
  }
}

TEST_CASE("mixing: the matrix of the delta rule with one key fades as its writes overwrite it") {
  // S_t = (1 - beta) S + beta k v', so M[t, s] = beta (1 - beta)^(t - s) where q = k = 1.
  const Tensor one = full({1, 5, 1, 1}, 1, Dtype::f64), beta = full({1, 5, 1}, 0.25, Dtype::f64);
  std::vector<Mixing> found;
  watch_mixings(
      [&] {
        kernels::Inputs<kernels::Delta, Var> in;
        in.q = in.k = in.v = Var(one);
        in.beta = Var(beta);
        autograd::apply<kernels::Delta>(in);
      },
      [&](const Mixing& m) { found.push_back(m); });
  REQUIRE(found.size() == 1);
  const auto M = view<const double>(found[0].matrix);
  for (int64_t t = 0; t < 5; ++t)
    for (int64_t s = 0; s <= t; ++s)
      CHECK(M(0, t, s) == Approx(0.25 * std::pow(0.75, static_cast<double>(t - s))));
  // Values of one: the state is what the writes that are left add up to.
  const std::vector<double> state = to_doubles(found[0].gates.at("state"));
  for (int64_t t = 0; t < 5; ++t)
    CHECK(state[static_cast<size_t>(t)] == Approx(1 - std::pow(0.75, static_cast<double>(t + 1))));
}

TEST_CASE("mixing: the norm of a state is that of the final state of the text up to a token") {
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const Mixing m = mixings_of(c)[0];
    double final_norm = -1;
    const autograd::Watch watch([&](const autograd::Watched& w) {
      if (w.name != m.operation || m.gates.count("state") == 0) return;
      kernels::Tensors in;
      for (const auto& [name, t] : w.inputs) in[name] = t.to(Dtype::f64);
      const auto y = kernels::operation(w.name).forward(kernels::Form::naive, in, {});
      if (y.count("final_state") == 0) return;
      double sum = 0;
      for (const double x : to_doubles(y.at("final_state"))) sum += x * x;
      final_norm = std::sqrt(sum);
    });
    const Made layer = made(c);
    run(*layer.layer, Var(sample({1, kTokens, c.width}, "x")));
    if (m.gates.count("state") == 0) continue;  // which these are, the test of gates says
    REQUIRE(final_norm >= 0);
    double sum = 0;  // over heads, at the last token
    const auto norm = view<const double>(m.gates.at("state"));
    for (int64_t h = 0; h < norm.size(0); ++h) sum += norm(h, kTokens - 1) * norm(h, kTokens - 1);
    CHECK(std::sqrt(sum) == Approx(final_norm));
  }
}

TEST_CASE("mixing: gates are there where the mechanism has them, one number a head and token") {
  for (const MixerCase& c : mixer_cases()) {
    INFO(c.name);
    const Mixing m = mixings_of(c)[0];
    const bool erases = c.mixer == "delta" || c.mixer == "gated_delta" || c.mixer == "kda";
    const std::set<std::string> keeps = {"retention",   "simple_gla", "gated_linear", "hgrn2",
                                         "gated_delta", "kda",        "mamba2",       "lightning"};
    const std::set<std::string> states = {"linear", "gated_linear", "delta", "kda",
                                          "selective_scan"};
    const bool shifts = c.name.find("favor+") != std::string::npos;  // keys by a running maximum
    CHECK(m.gates.count("beta") == (erases ? 1 : 0));
    CHECK(m.gates.count("kept") == (shifts ? 1 : keeps.count(c.mixer)));
    CHECK(m.gates.count("step") == (c.mixer == "mamba" ? 1 : 0));
    CHECK((m.gates.count("state") == 1) == (states.count(m.operation) == 1));
    CHECK(m.gates.count("routes") == (c.mixer == "router" ? 1 : 0));
    for (const auto& [name, gate] : m.gates) {
      INFO(name);
      const bool one = name == "step" || (name == "state" && m.channels);
      const int64_t lines = one ? 1 : name == "routes" ? 4 : m.matrix.size(0);
      CHECK(gate.shape() == Shape{lines, kTokens});
      for (const double x : to_doubles(gate))
        CHECK((x >= 0 && x <= (name == "step" || name == "state" ? 100 : 2)));
    }
  }
}

TEST_CASE("mixing: the step of a scan is the mean of its channels, each with its own bias") {
  const MixerCase c{"mamba", "mamba", "state = 3"};
  const Tensor told = mixings_of(c)[0].gates.at("step");
  std::vector<double> steps(kTokens);
  const autograd::Watch watch([&](const autograd::Watched& w) {
    if (w.name != "selective_scan") return;
    const auto dt = view<const double>(w.inputs.at("dt"));
    const std::vector<double> bias = to_doubles(w.inputs.at("dt_bias"));
    REQUIRE(bias[0] != bias[1]);
    for (int64_t t = 0; t < kTokens; ++t)
      for (size_t e = 0; e < bias.size(); ++e)
        steps[static_cast<size_t>(t)] +=
            std::log1p(std::exp(dt(0, t, static_cast<int64_t>(e)) + bias[e])) /
            static_cast<double>(bias.size());
  });
  const Made layer = made(c);
  run(*layer.layer, Var(sample({1, kTokens, c.width}, "x")));
  for (int64_t t = 0; t < kTokens; ++t)
    CHECK(told.data<double>()[t] == Approx(steps[static_cast<size_t>(t)]).epsilon(1e-12));
}

TEST_CASE("mixing: a model in f32 has the matrix of f64 up to rounding") {
  for (const char* name : {"attention", "gated_delta", "mamba"}) {
    INFO(name);
    const MixerCase c{name, name, "", 16};
    CHECK(mixings_of(c, Dtype::f32)[0].gap < 1e-4);
  }
}

TEST_CASE("mixing: more than one text is refused") {
  const MixerCase c = mixer_cases()[0];
  const Made m = made(c);
  CHECK_THROWS_WITH(watch_mixings(
                        [&] {
                          run(*m.layer, Var(sample({2, 5, c.width}, "x")));
                        },
                        [](const Mixing&) {}),
                    ContainsSubstring("expected one whole text"));
}
