// `weft bench` runs and adds up; how long anything takes is no matter of tests.
#include "train/workbench/bench.h"

#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "kernels/contract/agreement.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::train;

TEST_CASE("bench: rows have times, memory and ratios, and attention to compare with") {
  const BenchArguments a{.names = {"linear"}, .lengths = {64, 32}, .budget = 0};
  const std::vector<BenchRow> rows = bench(a, {.flops = 1e9, .bytes = 1e9}, nullptr);
  REQUIRE(rows.size() == 6);
  CHECK(rows[0].name == "attention");
  CHECK(rows[2].name == "linear without g");
  for (const BenchRow& r : rows) {
    CHECK(r.forward > 0);
    CHECK(r.both > 0);
    CHECK(r.memory > 0);
    CHECK(r.least > 0);
    CHECK((r.time_ratio > 0) == (r.length == 64));
    CHECK((r.attention_ratio > 0) == (r.name != "attention"));
  }
}

TEST_CASE("bench: options of the operation make a variant of their own") {
  std::ostringstream out;
  CHECK(run_bench({.names = {"attention"},
                   .lengths = {64},
                   .set = {"window=16"},
                   .budget = 0,
                   .json = true},
                  out) == 0);
  CHECK_THAT(out.str(), ContainsSubstring("\"name\":\"attention window=16\",\"T\":64") &&
                            ContainsSubstring("\"gflops\":"));
}

TEST_CASE("bench: says what it does not know") {
  const auto refused = [](const BenchArguments& a, const std::string& part) {
    std::ostringstream out;
    CHECK_THROWS_WITH(run_bench(a, out), ContainsSubstring(part));
  };
  refused({.names = {"linaer"}}, "did you mean \"linear\"");
  refused({.set = {"window=2"}}, "need the name");
  refused({.names = {"attention"}, .set = {"window"}}, "OPTION=VALUE");
  refused({.names = {"attention"}, .lengths = {8}, .set = {"windows=4"}, .budget = 0},
          "unknown option");
  refused({.names = {"linear"}, .lengths = {8}, .without = {"w"}, .budget = 0}, "no input \"w\"");
  refused({.names = {"linear"}, .lengths = {-8}, .budget = 0}, "not a length");
}

TEST_CASE("bench: ratios are those of the rows' own numbers, and JSON has them in milliseconds") {
  std::ostringstream out;
  const std::vector<BenchRow> rows =
      bench({.names = {"linear"}, .lengths = {128, 32, 64}, .budget = 0},
            {.flops = 1e9, .bytes = 1e9}, &out);
  REQUIRE(rows.size() == 9);
  const auto row = [&](const std::string& name, int64_t length) {
    for (const BenchRow& r : rows)
      if (r.name == name && r.length == length) return r;
    FAIL("no row of " << name << " at " << length);
    return BenchRow();
  };
  for (const BenchRow& r : rows) {
    INFO(r.name << " at " << r.length);
    CHECK(r.best <= r.both);
    if (r.length > 32) {
      const BenchRow half = row(r.name, r.length / 2);
      CHECK(r.time_ratio == Approx(r.best / half.best));
      CHECK(r.memory_ratio ==
            Approx(static_cast<double>(r.memory) / static_cast<double>(half.memory)));
    } else {
      CHECK(r.memory_ratio == 0);
    }
    if (r.name != "attention")
      CHECK(r.attention_ratio == Approx(row("attention", r.length).best / r.best));
  }
  std::istringstream lines(out.str());
  size_t i = 0;
  for (std::string line; std::getline(lines, line); ++i) {
    const auto j = nlohmann::json::parse(line);
    REQUIRE(i < rows.size());
    CHECK(j["name"] == rows[i].name);
    CHECK(j["T"] == rows[i].length);
    CHECK(j["memory_bytes"] == rows[i].memory);
    for (const auto& [key, value] :
         std::vector<std::pair<const char*, double>>{{"forward_ms", 1e3 * rows[i].forward},
                                                     {"both_ms", 1e3 * rows[i].both},
                                                     {"both_best_ms", 1e3 * rows[i].best},
                                                     {"least_ms", 1e3 * rows[i].least},
                                                     {"time_ratio", rows[i].time_ratio},
                                                     {"memory_ratio", rows[i].memory_ratio},
                                                     {"attention_ratio", rows[i].attention_ratio}})
      CHECK(j[key].get<double>() == Approx(value).epsilon(1e-7));
  }
  CHECK(i == rows.size());
}

TEST_CASE("bench: the least is the larger of products and bytes at the machine's rates") {
  const auto least = [](const MachineRates& rates, const std::vector<std::string>& set) {
    const auto rows =
        bench({.names = {"attention"}, .lengths = {64}, .set = set, .budget = 0}, rates, nullptr);
    return rows.back().least;
  };
  const MachineRates slow_products{.flops = 1, .bytes = 1e30},
      slow_bytes{.flops = 1e30, .bytes = 1};
  const kernels::BenchCase c = kernels::operation("attention").bench(64);
  const double both = c.flops.forward + c.flops.backward;
  const std::vector<std::string> none = {"window=0"};
  CHECK(least(slow_products, none) == Approx(both));
  CHECK(least({.flops = 2, .bytes = 1e30}, none) == Approx(both / 2));
  // In f32, each input and output once, three times over.
  double numbers = 0;
  for (const auto& [name, t] : c.inputs) numbers += static_cast<double>(t.numel());
  CHECK(least(slow_bytes, none) > 3 * 4 * numbers);
  CHECK(least(slow_bytes, none) < 3 * 4 * numbers * 2);
  CHECK(least({.flops = 1, .bytes = 1}, none) ==
        Approx(std::max(least(slow_products, none), least(slow_bytes, none))));
  // A window of 16 leaves 16 * 17 / 2 + 48 * 16 of 64 * 65 / 2 pairs.
  CHECK(least(slow_products, {"window=16"}) == Approx(both * (136.0 + 768) / 2080));
  CHECK(least(slow_products, {"window=1"}) == Approx(both * 64 / 2080));
  CHECK(least(slow_products, {"window=1000"}) == Approx(both));
}

// What the meta device allocates for one forward and backward pass is the peak, to the byte.
TEST_CASE("bench: the memory is what forward and backward take beside their inputs") {
  using namespace kernels;
  const auto rows = bench({.lengths = {32, 64}, .budget = 0}, {.flops = 1, .bytes = 1}, nullptr);
  int compared = 0;
  for (const Operation* op : operations())
    for (const BenchRow& row : rows) {
      if (row.name != op->name()) continue;
      ++compared;
      const BenchCase c = op->bench(row.length);
      Tensors in = rounded_to(Dtype::f32, c.inputs, op->inputs());
      for (auto& [name, t] : in)
        if (is_float(t.dtype())) t = t.to(kMeta);
      const Tensors y = op->forward(Form::chunkwise, in, c.settings);
      const std::string first = op->outputs()[0].name;
      const Tensors dy = {{gradient_name(first), empty(y.at(first).shape(), Dtype::f32, kMeta)}};
      Allocator& memory = allocator(kMeta);
      memory.reset_peak();
      const int64_t before = memory.stats().current;
      op->backward(Form::chunkwise, in, c.settings, dy);
      INFO(row.name << " at " << row.length);
      CHECK(row.memory == memory.stats().peak - before);
    }
  CHECK(compared >= 14);
}
