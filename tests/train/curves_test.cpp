// What pages of runs and of comparisons show: which numbers, against what, in which unit.
#include "train/verbs/curves.h"

#include <nlohmann/json.hpp>

#include "tests/catch.h"
#include "tests/train/markup.h"
#include "train/verbs/compare.h"

using namespace weft;
using namespace weft::tests;
using namespace weft::train;
using Values = std::vector<double>;

namespace {

// Falls, and rises at the end: its last number, its least and its middle are three.
RunMetrics run_of(const std::string& name, double scale, int colour = 0) {
  RunMetrics r;
  r.name = name;
  r.colour = colour;
  const Values step{1, 2, 3, 4, 5}, tokens{10, 20, 30, 40, 50}, seconds{0.5, 1, 2, 3, 9};
  const auto put = [&](const char* key, Values values) {
    for (double& v : values) v *= scale;
    r.metrics[key] = {step, tokens, seconds, values};
  };
  put("loss", {5, 4, 2, 3, 3.5});
  put("eval_loss", {5.5, 4.5, 2.5, 3, 4});
  put("tokens_per_second", {10, 100, 30, 300, 20});
  put("peak_bytes", {1 << 20, 1 << 20, 3 << 20, 1 << 20, 2 << 20});
  return r;
}

Candidate candidate(const std::string& name, const Values& scales) {
  Candidate c;
  c.name = name;
  c.steps = 5, c.tokens_a_step = 10, c.context = 64;
  c.plan.parameter_count = 1234;
  c.plan.decode_bytes = 3072;
  c.plan.flops_forward = 777;
  c.decode_rate = 55;
  for (const double scale : scales) {
    c.runs.emplace_back();
    c.runs.back().seed = static_cast<int64_t>(c.runs.size());
    c.runs.back().folder = concat("out/", name, "-seed-", c.runs.size());
    c.runs.back().metrics = run_of(name, scale);
  }
  return c;
}

}  // namespace

TEST_CASE("curves: a chart has each number at its step, at its tokens and at its second") {
  const Runs one{run_of("a", 1)}, two{run_of("a", 1), run_of("b", 2, 1)};
  const std::map<std::string, std::pair<std::string, Values>> axes = {
      {"steps", {"steps", {1, 2, 3, 4, 5}}},
      {"tokens", {"tokens", {10, 20, 30, 40, 50}}},
      {"time", {"seconds of training", {0.5, 1, 2, 3, 9}}}};
  for (const auto& [name, axis] : axes) {
    INFO(name);
    const Chart chart = chart_of(two, "loss", name);
    CHECK(chart.across == axis.first);
    // Of each run: raw, smoothed, and the held-out loss as dots.
    REQUIRE(chart.curves.size() == 6);
    for (const Curve& c : chart.curves) CHECK(c.x == axis.second);
    CHECK(chart.curves[0].y == Values{5, 4, 2, 3, 3.5});
    CHECK(chart.curves[0].look == "raw");
    CHECK(chart.curves[1].y == smoothed({5, 4, 2, 3, 3.5}, 2));
    CHECK(chart.curves[1].look == "smooth");
    CHECK(chart.curves[2].y == Values{5.5, 4.5, 2.5, 3, 4});
    CHECK(chart.curves[2].dots);
    CHECK_FALSE(chart.curves[2].labelled);
    CHECK(chart.curves[3].y == Values{10, 8, 4, 6, 7});
    for (size_t i = 0; i < 6; ++i) CHECK(chart.curves[i].colour == static_cast<int>(i / 3));
    CHECK(chart.curves[4].name == "b, loss smoothed");
    CHECK_THROWS_AS(chart_of(one, "loss", name + "s"), Error);
  }
  CHECK(chart_of(one, "loss", "steps").curves[2].labelled);
  const Chart memory = chart_of(one, "peak_bytes", "steps");
  CHECK(memory.title == "peak memory, MiB");
  CHECK(memory.curves.at(0).y == Values{1, 1, 3, 1, 2});
  CHECK(chart_of(one, "eval_loss", "steps").curves.size() == 1);
  CHECK(metrics_of(two) ==
        std::vector<std::string>{"loss", "eval_loss", "tokens_per_second", "peak_bytes"});
}

TEST_CASE("curves: a run is told by the last number, the least and the middle of its rates") {
  const RunMetrics r = run_of("a", 1);
  CHECK(last_of(r, "loss") == 3.5);
  CHECK(least_of(r, "loss") == 2);
  CHECK(rate_of(r) == 30);
  CHECK(std::isnan(last_of(r, "accuracy")));
  CHECK(std::isnan(least_of(r, "accuracy")));
  CHECK(std::isnan(rate_of(RunMetrics{})));
  CHECK(median({3, NAN, 1, 2}) == 2);
  CHECK(cell("%.2f", 1.239) == "<td>1.24</td>");
  CHECK(cell("%.2f", NAN) == "<td>–</td>");
}

TEST_CASE("curves: the switch that is asked for is the one that is set") {
  for (const char* axis : {"steps", "tokens", "time"}) {
    const std::string text = switches(axis);
    CHECK(count_of(text, " checked") == 2);  // and that of the curves
    CHECK(count_of(text, concat("id=\"against-", axis, "\" checked")) == 1);
  }
}

TEST_CASE("compare: each number of a comparison is the last of its run, in JSON and on the page") {
  Comparison c;
  c.arguments.seeds = 2;
  c.tokens = 50;
  c.all = {candidate("one", {1, 2}), candidate("two", {4, 4})};
  c.all[1].plan.decode_bytes = 5120;
  c.all[1].plan.flops_forward = 1777;
  nlohmann::ordered_json j = comparison_json(c);
  const auto& one = j["recipes"][0];
  const std::map<std::string, double> of_seed_1 = {
      {"loss", 3.5}, {"eval_loss", 4}, {"tokens_per_second", 30}, {"peak_bytes", 2 << 20}};
  for (const auto& [key, value] : of_seed_1) {
    INFO(key);
    CHECK(one["runs"][0][key] == value);
    CHECK(one["runs"][1][key] == 2 * value);
    CHECK(one[key]["least"] == value);
    CHECK(one[key]["mean"] == 1.5 * value);
    CHECK(one[key]["most"] == 2 * value);
  }
  CHECK(one.contains("accuracy") == false);
  CHECK(one["steps"] == 5);
  CHECK(one["tokens"] == 50);
  CHECK(one["context"] == 64);
  CHECK(one["parameters"] == 1234);
  CHECK(one["forward_flops_per_token"] == 777);
  CHECK(one["state_bytes"] == 3072);
  CHECK(one["decode_tokens_per_second"] == 55);
  CHECK(one["runs"][1]["seed"] == 2);
  CHECK(one["runs"][1]["folder"] == "out/one-seed-2");
  const std::string page = comparison_page(c, j);
  CHECK(markup_fault(page) == "");
  for (const char* text :
       {"<td>5.2500<br><small>3.5000 to 7.0000</small></td>",  // loss
        "<td>6.0000<br><small>4.0000 to 8.0000</small></td>", "<td>16.0000</td>",
        "<td>45<br><small>30 to 60</small></td>", "<td>3.0<br><small>2.0 to 4.0</small></td>",
        "<td>8.0</td>", "<td>3.00 KiB</td><td>55</td><td>64</td>"})
    CHECK_THAT(page, ContainsSubstring(text));
  // Held-out loss over the state in KiB, and over the work: a twentieth beyond both ends.
  CHECK_THAT(page, ContainsSubstring("data-x=\"2.8999999999999999 5.0999999999999996\"") &&
                       ContainsSubstring("data-x=\"727 1827\""));
}

TEST_CASE("compare: kinds of examples are columns by their number, and a spread is told") {
  const auto on = [](const std::string& name, const Values& scales) {
    Comparison c;
    c.name = name;
    c.arguments.seeds = static_cast<int64_t>(scales.size());
    c.all = {candidate("one", scales)};
    return c;
  };
  std::vector<Comparison> all{on("recall", {1, 2}), on("text", {3, 3})};
  for (OneRun& run : all[0].all[0].runs)
    for (const auto& [key, value] :
         {std::pair{"accuracy", 0.25}, {"accuracy_16", 0.125}, {"accuracy_4", 0.375}})
      run.metrics.metrics[key] = {{1}, {10}, {1}, {value * static_cast<double>(run.seed)}};
  for (OneRun& run : all[1].all[0].runs)
    run.metrics.metrics["bits_per_byte"] = {{1}, {1}, {1}, {2}};
  CHECK(table_text(all) ==
        "| recipe | recall | recall: 4 | recall: 16 | text, bits a byte |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| one | 0.375 (0.250 to 0.500) | 0.562 (0.375 to 0.750) | 0.188 (0.125 to 0.250) | 2.000 "
        "|\n");
  const auto j = table_json(all);
  CHECK(j["columns"][2]["name"] == "recall: 16");
  CHECK(j["recipes"][0]["cells"][1]["most"] == 0.75);
  CHECK(j["recipes"][0]["cells"][3]["mean"] == 2);
  CHECK(j["recipes"][0]["cells"][0]["state_bytes"] == 3072);
}
