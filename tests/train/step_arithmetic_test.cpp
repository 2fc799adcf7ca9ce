// What a step does with its gradients: every step against the formula with the numbers written out,
// for a model small enough that f64 shows any slip.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/random.h"
#include "tests/catch.h"
#include "tests/gap.h"
#include "train/step.h"

using namespace weft;
using namespace weft::train;

namespace {

constexpr const char* kModel = R"([model]
width = 8
layers = 1
pattern = ["attention"]
context = 8
tied_embeddings = false
[attention]
heads = 2
[mlp]
width = 16
)";
constexpr int64_t kVocabulary = 11, kLength = 8;

using Row = std::vector<int32_t>;

// `count` rows from number `first` on, the same on every call.
layers::Batch rows(int64_t first, int64_t count) {
  Row tokens, targets;
  const Random random(9);
  for (int64_t i = first * kLength; i < (first + count) * kLength; ++i) {
    const auto at = static_cast<uint64_t>(i);
    tokens.push_back(static_cast<int32_t>(random.below(kVocabulary, 2 * at)));
    targets.push_back(static_cast<int32_t>(random.below(kVocabulary, 2 * at + 1)));
  }
  return {tensor_of(tokens).reshape({count, kLength}),
          tensor_of(targets).reshape({count, kLength}),
          {}};
}

struct Training {
  Recipe recipe;
  layers::Model model;
  AdamW optimizer;
  std::unique_ptr<Stepper> stepper;

  explicit Training(const std::string& more, Dtype dtype = Dtype::f64, Device device = kCpu)
      : recipe(recipe_from_text(kModel + more, "recipe.toml")),
        model(recipe.toml, kVocabulary, dtype, device, 1),
        optimizer(recipe.optimizer, model.parameters()),
        stepper(make_stepper(model, optimizer, recipe)) {}

  // One step over `accumulate` micro-batches of `count` rows, from row `first` on.
  StepResult step(int64_t n, int64_t first, int64_t count) {
    stepper->begin(n, [&] {
      const layers::Batch batch = rows(first, count);
      first += count;
      return batch;
    });
    return stepper->finish();
  }
  std::vector<std::vector<double>> numbers() const {
    std::vector<std::vector<double>> all;
    for (const layers::Parameter& p : model.parameters()) all.push_back(to_doubles(p.master));
    return all;
  }
  std::vector<std::vector<double>> gradients() const {
    std::vector<std::vector<double>> all;
    for (const layers::Parameter& p : model.parameters()) all.push_back(to_doubles(p.var.grad()));
    return all;
  }
};

// The largest difference, beside the largest number.
double distance(const std::vector<std::vector<double>>& got,
                const std::vector<std::vector<double>>& expected) {
  tests::Gap gap;
  for (size_t i = 0; i < expected.size(); ++i)
    for (size_t j = 0; j < expected[i].size(); ++j) gap.see(got[i][j], expected[i][j]);
  return gap.relative();
}

double norm_of(const std::vector<std::vector<double>>& gradients) {
  double sum = 0;
  for (const auto& g : gradients)
    for (const double x : g) sum += x * x;
  return std::sqrt(sum);
}

std::vector<Device> devices() {
  std::vector<Device> all{kCpu};
  if (cuda_device_count() > 0) all.push_back(kCuda);
  return all;
}

}  // namespace

TEST_CASE("step arithmetic: each step is the formula's, with the schedule's rate") {
  Training t(
      "[train]\nsteps = 6\n[optimizer]\nlr = 0.02\nbeta1 = 0.8\nbeta2 = 0.9\neps = 1e-3\n"
      "weight_decay = 0.5\nclip = 0.7\n[schedule]\ntype = \"wsd\"\nwarmup = 2\nfinal = 0.1\n"
      "decay = 0.5\n");
  const double rates[] = {0.01, 0.02, 0.02, 0.02, 0.014, 0.008};  // falls from step 3 on
  auto p = t.numbers();
  auto m = p, v = p;
  for (auto* const list : {&m, &v})
    for (auto& x : *list) std::fill(x.begin(), x.end(), 0.0);
  bool clipped = false;
  for (int64_t n = 0; n < 6; ++n) {
    INFO("step " << n);
    const StepResult r = t.step(n, 2 * n, 2);
    CHECK(r.step == n);
    CHECK(r.lr == Approx(rates[n]));
    CHECK(r.tokens == 2 * kLength);
    const auto g = t.gradients();
    CHECK(r.norm == Approx(norm_of(g)).epsilon(1e-12));
    const double factor = std::min(1.0, 0.7 / r.norm);
    clipped = clipped || factor < 1;
    const double power = static_cast<double>(n + 1);
    for (size_t i = 0; i < p.size(); ++i)
      for (size_t j = 0; j < p[i].size(); ++j) {
        const double d = g[i][j] * factor, decay = t.model.parameters()[i].decay ? 0.5 : 0.0;
        m[i][j] = 0.8 * m[i][j] + 0.2 * d;
        v[i][j] = 0.9 * v[i][j] + 0.1 * d * d;
        const double m_hat = m[i][j] / (1 - std::pow(0.8, power));
        const double v_hat = v[i][j] / (1 - std::pow(0.9, power));
        p[i][j] -= rates[n] * (m_hat / (std::sqrt(v_hat) + 1e-3) + decay * p[i][j]);
      }
    CHECK(distance(t.numbers(), p) < 1e-12);
  }
  CHECK(clipped);
}

TEST_CASE("step arithmetic: matrices are decayed, vectors are not") {
  const Training t("[train]\nsteps = 1\n");
  int decayed = 0, others = 0;
  for (const layers::Parameter& p : t.model.parameters()) {
    INFO(p.name);
    CHECK(p.decay == (p.master.dims() > 1));
    (p.decay ? decayed : others) += 1;
  }
  CHECK(decayed > 4);
  CHECK(others > 1);
}

TEST_CASE("step arithmetic: clipping scales a large gradient down to the bound, none up") {
  // Without memory, so that the first step is x / (|x| + eps) of each number of the gradient.
  const auto moved = [](const std::string& clip, double factor_on_norm, bool clipped) {
    INFO("clip = " << clip);
    Training t(
        "[train]\nsteps = 4\n[schedule]\ntype = \"constant\"\n[optimizer]\nlr = 0.5\n"
        "beta1 = 0.0\nbeta2 = 0.0\neps = 1.0\nweight_decay = 0.0\nclip = " +
        clip + "\n");
    auto expected = t.numbers();
    const double norm = t.step(0, 0, 2).norm;
    const auto g = t.gradients();
    CHECK(norm == Approx(norm_of(g)).epsilon(1e-12));  // before clipping
    const double factor = clipped ? factor_on_norm / norm : 1;
    CHECK(factor <= 1);
    for (size_t i = 0; i < g.size(); ++i)
      for (size_t j = 0; j < g[i].size(); ++j) {
        const double x = factor * g[i][j];
        expected[i][j] -= 0.5 * x / (std::abs(x) + 1);
      }
    CHECK(distance(t.numbers(), expected) < 1e-13);
  };
  moved("0.0", 0, false);
  moved("1000.0", 1000, false);
  moved("3.0", 3, false);
  moved("0.01", 0.01, true);
}

TEST_CASE("step arithmetic: four micro-batches of two are one of eight") {
  for (const Device device : devices()) {
    INFO(device);
    const Dtype dtype = device.is_cpu() ? Dtype::f64 : Dtype::f32;
    const double close = device.is_cpu() ? 1e-11 : 1e-4;
    const std::string settings =
        "[optimizer]\neps = 1e-3\nclip = 0.5\n[train]\nsteps = 3\naccumulate = ";
    Training whole(settings + "1\n", dtype, device), parts(settings + "4\n", dtype, device);
    for (int64_t n = 0; n < 3; ++n) {
      const StepResult a = whole.step(n, 8 * n, 8), b = parts.step(n, 8 * n, 2);
      CHECK(b.loss == Approx(a.loss).epsilon(close));
      CHECK(b.norm == Approx(a.norm).epsilon(close));
      CHECK(b.tokens == a.tokens);
    }
    CHECK(distance(parts.numbers(), whole.numbers()) < close);
  }
}

TEST_CASE("step arithmetic: a step's gradients are those of its own batches alone") {
  for (const Device device : devices())
    for (const char* accumulate : {"1", "3"}) {
      INFO(device << ", accumulate = " << accumulate);
      // Nothing moves, so that the same rows give the same norm whatever came before them.
      Training t(
          concat("[optimizer]\nlr = 0.0\n[train]\nsteps = 9\naccumulate = ", accumulate, "\n"),
          Dtype::f32, device);
      const StepResult first = t.step(0, 0, 2);
      const StepResult other = t.step(1, 40, 2);
      CHECK(other.norm != first.norm);
      for (int64_t n = 2; n < 5; ++n) {
        const StepResult again = t.step(n, 0, 2);
        CHECK(again.norm == Approx(first.norm).epsilon(1e-6));
        CHECK(again.loss == Approx(first.loss).epsilon(1e-6));
      }
    }
}

TEST_CASE("step arithmetic: on a GPU steps end where the CPU's do", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const std::string settings =
      "[train]\nsteps = 8\naccumulate = 2\n[optimizer]\nlr = 0.01\neps = 1e-2\nclip = 0.4\n"
      "[schedule]\nwarmup = 3\n";
  Training cpu(settings, Dtype::f32), gpu(settings, Dtype::f32, kCuda);
  for (int64_t n = 0; n < 8; ++n) {
    const StepResult a = cpu.step(n, 4 * n, 2), b = gpu.step(n, 4 * n, 2);
    CHECK(b.loss == Approx(a.loss).epsilon(1e-4));
    CHECK(b.norm == Approx(a.norm).epsilon(1e-3));
    CHECK(b.lr == Approx(a.lr).epsilon(1e-12));
  }
  CHECK(distance(gpu.numbers(), cpu.numbers()) < 1e-4);
}
