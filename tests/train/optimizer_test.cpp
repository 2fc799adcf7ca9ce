// AdamW against torch.optim over 200 steps, on the CPU and on a GPU; schedules against tables.
#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "core/hdf5.h"
#include "kernels/optimizer/muon.h"
#include "layers/model.h"
#include "tests/catch.h"
#include "tests/paths.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::train;

namespace {

constexpr int64_t kDecayed = 8, kOthers = 3;

struct Oracle {
  Tensor gradients, rates, start, steps;
  struct Case {
    AdamwSettings settings;
    double lr = 0;
    Tensor parameters, m, v;  // [kept steps, 11]
  };
  std::map<std::string, Case> cases;
};

const Oracle& oracle() {
  static const Oracle read = [] {
    const Hdf5Reader file(tests::source_path("tests/oracles/adamw.h5"));
    Oracle o{file.tensor("inputs/gradients"),
             file.tensor("inputs/rates"),
             file.tensor("inputs/start"),
             file.tensor("inputs/steps"),
             {}};
    for (const std::string& name : file.groups()) {
      if (name == "inputs") continue;
      const std::vector<double> s = to_doubles(file.tensor(name + "/settings"));
      o.cases[name] = {{s[0], s[1], s[2], s[3], s[4]},
                       s[5],
                       file.tensor(name + "/parameters"),
                       file.tensor(name + "/m"),
                       file.tensor(name + "/v")};
    }
    return o;
  }();
  return read;
}

// The row's decayed numbers, or the others, each `copies` times over: every copy must come out
// alike.
Tensor repeated(const Tensor& row, bool decayed, int64_t copies, Dtype dtype, Device device) {
  const int64_t begin = decayed ? 0 : kDecayed, n = decayed ? kDecayed : kOthers;
  const Tensor part = row.slice(0, begin, begin + n).reshape({1, n}).expand(0, copies);
  return part.clone().reshape({copies * n}).to(dtype).to(device);
}

// The largest error of any copy against the row: of each number by itself, but for those below a
// thousandth of the row's largest, where the rounding of what cancelled would show.
double error(const Tensor& got, const Tensor& row, bool decayed) {
  const std::vector<double> x = to_doubles(got), all = to_doubles(row);
  const double* const expected = all.data() + (decayed ? 0 : kDecayed);
  const size_t n = static_cast<size_t>(decayed ? kDecayed : kOthers);
  double largest = 0, worst = 0;
  for (size_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(expected[i]));
  for (size_t i = 0; i < x.size(); ++i) {
    const double e = expected[i % n];
    const double off = std::abs(x[i] - e) / std::max(std::abs(e), 1e-3 * largest);
    worst = std::isfinite(off) ? std::max(worst, off) : std::numeric_limits<double>::infinity();
  }
  return worst;
}

struct Run {
  std::vector<AdamwTensor> list;
  int64_t copies;
  Dtype dtype;
  Device device;

  // More than two pieces of either device, and a last one that is partial: not even a multiple of
  // four.
  Run(Dtype t, Device d, int64_t n = 5001) : copies(n), dtype(t), device(d) {
    for (const bool decayed : {true, false}) {
      const Tensor start = repeated(oracle().start, decayed, copies, dtype, device);
      list.push_back({start, zeros_like(start), zeros_like(start), empty_like(start),
                      dtype == Dtype::f32 ? start.to(Dtype::bf16) : Tensor(), decayed});
    }
  }
  void gradients_of(int64_t step) const {
    const Tensor row = oracle().gradients.select(0, step);
    for (const AdamwTensor& t : list)
      t.grad.copy_from(repeated(row, t.decay, copies, dtype, device));
  }
  // The norm is that of all copies together.
  double clip(const Oracle::Case& c) const {
    return c.settings.clip * std::sqrt(static_cast<double>(copies));
  }
  void compare(const Oracle::Case& c, int64_t step, double parameters, double moments) const {
    const std::vector<int64_t> kept = to_ints(oracle().steps);
    const auto at = std::find(kept.begin(), kept.end(), step + 1);
    if (at == kept.end()) return;
    const int64_t row = at - kept.begin();
    for (const AdamwTensor& t : list) {
      INFO("step " << step + 1 << (t.decay ? ", decayed" : ", not decayed"));
      CHECK(error(t.master, c.parameters.select(0, row), t.decay) < parameters);
      CHECK(error(t.m, c.m.select(0, row), t.decay) < moments);
      CHECK(error(t.v, c.v.select(0, row), t.decay) < moments);
      if (t.value) CHECK(to_doubles(t.value) == to_doubles(t.master.to(Dtype::bf16)));
    }
  }
};

void on_cpu(Dtype dtype, int64_t copies, double parameters, double moments) {
  for (const auto& [name, c] : oracle().cases) {
    INFO(name);
    const Run run(dtype, kCpu, copies);
    for (int64_t step = 0; step < oracle().gradients.size(0); ++step) {
      run.gradients_of(step);
      const double norm = gradient_norm(run.list), clip = run.clip(c);
      const double rate = c.lr * oracle().rates.select(0, step).item();
      const double factor = clip > 0 && norm > clip ? clip / norm : 1;
      REQUIRE(adamw(run.list, c.settings, step + 1, rate, factor));
      run.compare(c, step, parameters, moments);
    }
  }
}

}  // namespace

TEST_CASE("optimizer: AdamW is torch.optim's over 200 steps, with every setting, in f64") {
  CHECK(oracle().cases.size() == 7);
  on_cpu(Dtype::f64, 1, 1e-11, 1e-11);
}

TEST_CASE("optimizer: AdamW in f32 is torch.optim's within its rounding, in every piece") {
  on_cpu(Dtype::f32, 5001, 1e-4, 2e-4);
}

TEST_CASE("optimizer: AdamW on a GPU is torch.optim's within its rounding", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  if constexpr (has_cuda)
    for (const auto& [name, c] : oracle().cases) {
      INFO(name);
      const Run run(Dtype::f32, kCuda);
      AdamwSettings settings = c.settings;
      settings.clip = run.clip(c);
      const CudaAdamw fused(run.list, settings);
      for (int64_t step = 0; step < oracle().gradients.size(0); ++step) {
        run.gradients_of(step);
        const double rate = c.lr * oracle().rates.select(0, step).item();
        const StepNumbers x = step_numbers(settings, step + 1, rate);
        std::vector<float> host(static_cast<size_t>(kStepNumbers), 0.0f);
        host[0] = x.rate, host[1] = x.root, host[2] = x.decay, host[3] = x.step;
        const Tensor numbers = tensor_of(host).to(kCuda);
        fused.step(numbers);
        REQUIRE(to_doubles(numbers).back() == 0);
        run.compare(c, step, 1e-4, 2e-4);
      }
    }
}

TEST_CASE("optimizer: the numbers of a step on a GPU are those of torch.optim's formula") {
  // Written down for beta1 = 0.9, beta2 = 0.99, lr = 0.01, weight_decay = 0.5.
  const AdamwSettings s{.beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.5};
  const StepNumbers first = step_numbers(s, 1, 0.01), second = step_numbers(s, 2, 0.01);
  CHECK(first.rate == Approx(0.1));           // 0.01 / (1 - 0.9)
  CHECK(first.root == Approx(10));            // 1 / sqrt(1 - 0.99)
  CHECK(second.rate == Approx(0.052631579));  // 0.01 / (1 - 0.81)
  CHECK(second.root == Approx(7.088812050));  // 1 / sqrt(1 - 0.9801)
  CHECK(first.decay == Approx(0.005));
  CHECK(second.decay == Approx(0.005));
  CHECK(second.step == 2);
}

TEST_CASE("optimizer: Muon moves matrices of mixers and MLPs, and AdamW what is left") {
  const Recipe r = recipe_from_text(
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"mamba2\", \"attention\"]\n"
      "mlp = [\"swiglu\", \"moe\"]\ntied_embeddings = false\n[mamba2]\nhead_dim = 4\nstate = 3\n"
      "[attention]\nheads = 2\nbias = true\n[moe]\nexperts = 2\nbias = true\n"
      "[optimizer]\ntype = \"muon\"\n",
      "r.toml");
  const layers::Model model(r.toml, 11, Dtype::f32, kMeta, 1);
  const AdamW optimizer(r.optimizer, model.parameters());
  std::string moved;
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    if (!optimizer.moments()[i].v) moved += model.parameters()[i].name + " ";
    CHECK(optimizer.has(i, AdamW::Kind::v) == bool(optimizer.moments()[i].v));
  }
  CHECK(moved ==
        "layers.0.mixer.in_proj.weight layers.0.mixer.out_proj.weight "
        "layers.0.mlp.gate_proj.weight layers.0.mlp.up_proj.weight layers.0.mlp.down_proj.weight "
        "layers.1.mixer.q_proj.weight layers.1.mixer.k_proj.weight layers.1.mixer.v_proj.weight "
        "layers.1.mixer.o_proj.weight layers.1.mlp.experts.gate_proj layers.1.mlp.experts.up_proj "
        "layers.1.mlp.experts.down_proj ");
}

TEST_CASE("optimizer: Muon's rate is its own, by the part that the schedule gives") {
  const Recipe r = recipe_from_text(
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\n[attention]\nheads = 2\n"
      "[optimizer]\ntype = \"muon\"\nmuon_lr = 0.4\nmomentum = 0.5\nmuon_scale = \"adamw\"\n",
      "r.toml");
  const layers::Model model(r.toml, 11, Dtype::f64, kCpu, 1);
  const AdamW optimizer(r.optimizer, model.parameters());
  const auto started = [] {
    const Tensor g = tensor_of<double>({1, -2, 3, 0.5, 4, -1}).reshape({2, 3});
    return MuonTensor{full({2, 3}, 1, Dtype::f64), zeros({2, 3}, Dtype::f64), g};
  };
  const MuonTensor wanted = started(), got = started();
  const std::vector<AdamwTensor> list{{got.master, got.m, {}, got.grad, {}, true}};
  REQUIRE(optimizer.update(list, optimizer.settings(), 1, /*lr=*/9, /*part=*/0, 0.25));
  CHECK(to_doubles(got.master) == std::vector<double>(6, 1));  // its momentum moved alone
  got.m.zero();
  REQUIRE(optimizer.update(list, optimizer.settings(), 2, /*lr=*/9, /*part=*/0.5, 0.25));
  const Tensor room = empty({muon_room({wanted})}, Dtype::f64);
  REQUIRE(muon({wanted}, {0.5, 0.1, true}, 0.2, 0.25, room));
  CHECK(to_doubles(got.master) == to_doubles(wanted.master));
  CHECK(to_doubles(got.m) == to_doubles(wanted.m));
}

TEST_CASE("optimizer: Muon is refused on a GPU and on several ranks") {
  const Recipe r = recipe_from_text(
      "[model]\nwidth = 8\ncontext = 16\npattern = [\"attention\"]\n[attention]\nheads = 2\n"
      "[optimizer]\ntype = \"muon\"\n",
      "r.toml");
  layers::Model host(r.toml, 11, Dtype::f32, kMeta, 1);
  CHECK_THROWS_WITH(AdamW(r.optimizer, host.parameters(), Ranks::planned(0, 2)),
                    ContainsSubstring("needs whole matrices, and 2 ranks"));
  layers::Model gpu(r.toml, 11, Dtype::f32, meta_of(kCuda), 1);
  CHECK_THROWS_WITH(AdamW(r.optimizer, gpu.parameters(), Ranks::planned(0, 1)),
                    ContainsSubstring("runs on the CPU alone"));
  CHECK_THROWS_WITH(AdamW(r.optimizer, gpu.parameters(), Ranks::planned(0, 2)),
                    ContainsSubstring("runs on the CPU alone"));
}

TEST_CASE("optimizer: every schedule is the table that its formula gives by hand") {
  struct Case {
    const char* what;
    ScheduleSettings settings;
    int64_t steps;
    std::vector<double> table;  // from step 0 on
  };
  const std::vector<Case> cases = {
      {"cosine",
       {.type = "cosine", .warmup = 0, .final = 0.1},
       4,
       {1, 0.868198051533946, 0.55, 0.231801948466054}},
      {"cosine to 0",
       {.type = "cosine", .warmup = 0, .final = 0},
       6,
       {1, 0.933012701892219, 0.75, 0.5, 0.25, 0.0669872981077807}},
      {"cosine after a warm-up",
       {.type = "cosine", .warmup = 4, .final = 0.1},
       12,
       {0.25, 0.5, 0.75, 1, 1, 0.965745789630079, 0.868198051533946, 0.722207544564290, 0.55,
        0.377792455435710, 0.231801948466054, 0.134254210369921}},
      {"wsd",
       {.type = "wsd", .warmup = 0, .final = 0.2, .decay = 0.4},
       10,
       {1, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4}},
      {"wsd after a warm-up",
       {.type = "wsd", .warmup = 2, .final = 0, .decay = 0.5},
       8,
       {0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25}},
      {"wsd whose warm-up reaches into the fall",
       {.type = "wsd", .warmup = 6, .final = 0.2, .decay = 0.5},
       10,
       {1.0 / 6, 2.0 / 6, 0.5, 4.0 / 6, 5.0 / 6, 1, 1, 0.8, 0.6, 0.4}},
      {"constant", {.type = "constant", .warmup = 0, .final = 0.1}, 3, {1, 1, 1}},
      {"constant after a warm-up",
       {.type = "constant", .warmup = 5, .final = 0.1},
       8,
       {0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1}},
      {"a warm-up of one step", {.type = "cosine", .warmup = 1, .final = 0}, 3, {1, 1, 0.5}},
      {"a run shorter than its warm-up",
       {.type = "cosine", .warmup = 4, .final = 0.1},
       2,
       {0.25, 0.5}}};
  for (const Case& c : cases)
    for (size_t step = 0; step < c.table.size(); ++step) {
      INFO(c.what << ", step " << step);
      CHECK(schedule_factor(c.settings, static_cast<int64_t>(step), c.steps) ==
            Approx(c.table[step]).epsilon(1e-12));
    }
}

TEST_CASE("optimizer: behind its last step a schedule stays at its end") {
  CHECK(schedule_factor({.type = "cosine", .warmup = 2, .final = 0.1}, 10, 10) == Approx(0.1));
  CHECK(schedule_factor({.type = "cosine", .warmup = 2, .final = 0.1}, 15, 10) == Approx(0.1));
  CHECK(schedule_factor({.type = "wsd", .final = 0.3, .decay = 0.2}, 10, 10) == Approx(0.3));
  CHECK(schedule_factor({.type = "wsd", .final = 0.3, .decay = 0.2}, 99, 10) == Approx(0.3));
}
