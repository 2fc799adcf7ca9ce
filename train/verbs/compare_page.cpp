// What came out of a comparison, as JSON and as a page.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/text.h"
#include "core/units.h"
#include "train/pages/page.h"
#include "train/verbs/compare.h"
#include "train/verbs/curves.h"

namespace weft::train {

using nlohmann::ordered_json;

Spread spread_of(const Candidate& c, const std::function<double(const RunMetrics&)>& f) {
  Spread s;
  double sum = 0;
  for (const OneRun& run : c.runs) {
    const double v = f(run.metrics);
    sum += v;
    s.least = std::isnan(s.least) ? v : std::min(s.least, v);
    s.most = std::isnan(s.most) ? v : std::max(s.most, v);
  }
  s.mean = sum / static_cast<double>(c.runs.size());
  return s;
}

const std::vector<Measure>& measures() {
  static const auto last = [](const char* key) {
    return [key](const RunMetrics& r) { return last_of(r, key); };
  };
  static const std::vector<Measure> all = {
      {"loss", "training loss", "%.4f", 1, last("loss")},
      {"eval_loss", "held-out loss", "%.4f", 1, last("eval_loss")},
      {"bits_per_byte", "bits a byte", "%.3f", 1, last("bits_per_byte")},
      {"accuracy", "answers right", "%.3f", 1, last("accuracy")},
      {"tokens_per_second", "tokens a second, training", "%.0f", 1, rate_of},
      {"peak_bytes", "peak memory, MiB", "%.1f", 1 << 20, last("peak_bytes")}};
  return all;
}

ordered_json comparison_json(const Comparison& comparison) {
  ordered_json j;
  j["made_by"] = "weft compare";
  if (!comparison.name.empty()) j["on"] = as_utf8(comparison.name);
  j["tokens"] = comparison.tokens;
  j["seeds"] = comparison.arguments.seeds;
  j["recipes"] = ordered_json::array();
  for (const Candidate& c : comparison.all) {
    ordered_json r;
    r["name"] = as_utf8(c.name);
    r["steps"] = c.steps;
    r["tokens"] = c.steps * c.tokens_a_step;
    r["context"] = c.context;
    r["parameters"] = c.plan.parameter_count;
    r["forward_flops_per_token"] = c.plan.flops_forward;
    r["state_bytes"] = c.plan.decode_bytes;
    r["state_bytes_by_length"] = c.plan.decode_by_length;
    r["decode_tokens_per_second"] = c.decode_rate;
    for (const Measure& m : measures()) {
      const Spread s = spread_of(c, m.of);
      if (std::isfinite(s.mean))
        r[m.key] = {{"mean", s.mean}, {"least", s.least}, {"most", s.most}};
    }
    for (const OneRun& run : c.runs) {
      ordered_json one;
      one["seed"] = run.seed;
      one["folder"] = as_utf8(run.folder);
      for (const Measure& m : measures())
        if (const double v = m.of(run.metrics); std::isfinite(v)) one[m.key] = v;
      r["runs"].push_back(one);
    }
    j["recipes"].push_back(r);
  }
  return j;
}

std::string spread_cell(const Measure& m, const Candidate& c) {
  const Spread s = spread_of(c, m.of);
  if (!(s.least < s.most)) return cell(m.format, s.mean / m.unit);
  const auto text = [&](double v) { return number_text(m.format, v / m.unit); };
  return concat("<td>", text(s.mean), "<br><small>", text(s.least), " to ", text(s.most),
                "</small></td>");
}

namespace {

std::string table_of(const std::vector<Candidate>& all) {
  std::string t = "<div class=\"scroll\"><table><tr><th>recipe</th><th>parameters</th>";
  const auto shown = [&](const Measure& m) {
    return std::any_of(all.begin(), all.end(),
                       [&](const Candidate& c) { return std::isfinite(spread_of(c, m.of).mean); });
  };
  for (const Measure& m : measures())
    if (shown(m)) t += concat("<th>", m.title, "</th>");
  t += "<th>state of a generation</th><th>tokens a second, generation</th><th>context</th></tr>\n";
  int colour = 0;
  for (const Candidate& c : all) {
    t += concat("<tr><td><span class=\"key c", colour++ % 8, "\"></span>", escaped(c.name),
                "</td><td>", count_text(double(c.plan.parameter_count)), "</td>");
    for (const Measure& m : measures())
      if (shown(m)) t += spread_cell(m, c);
    t += concat("<td>", bytes_text(double(c.plan.decode_bytes)), "</td>",
                cell("%.0f", c.decode_rate), "<td>", c.context, "</td></tr>\n");
  }
  return t + "</table></div>\n";
}

// Held-out loss over what a recipe pays for it.
Chart cost_chart(const std::vector<Candidate>& all, const std::string& across,
                 const std::function<double(const Candidate&)>& cost) {
  Chart chart{"held-out loss at the end", across, {}};
  int colour = 0;
  for (const Candidate& c : all) {
    Curve dots{c.name, {}, {}, colour++};
    dots.dots = true;
    for (const OneRun& run : c.runs) {
      dots.x.push_back(cost(c));
      dots.y.push_back(last_of(run.metrics, "eval_loss"));
    }
    chart.curves.push_back(std::move(dots));
  }
  return chart;
}

// What a generation holds, and reads for each token, as its text grows.
Chart decode_chart(const std::vector<Candidate>& all) {
  Chart chart{"kept and read for the next token, KiB", "tokens of the text so far", {}};
  int colour = 0;
  for (const Candidate& c : all) {
    Curve curve{c.name, {}, {}, colour++};
    for (const auto& [length, bytes] : c.plan.decode_by_length) {
      curve.x.push_back(static_cast<double>(length));
      curve.y.push_back(static_cast<double>(bytes) / 1024);
    }
    chart.curves.push_back(std::move(curve));
  }
  return chart;
}

}  // namespace

std::string comparison_page(const Comparison& comparison, ordered_json& data) {
  const std::vector<Candidate>& all = comparison.all;
  const int64_t seeds = comparison.arguments.seeds;
  Runs runs;
  std::vector<std::string> names;
  int colour = 0;
  for (const Candidate& c : all) {
    names.push_back(c.name);
    for (const OneRun& run : c.runs) {
      runs.push_back(run.metrics);
      runs.back().colour = colour;
    }
    ++colour;
  }
  const std::string on = comparison.name.empty() ? "" : " on " + comparison.name;
  Page page{"compare", "Comparison" + on + ": " + joined(names), "", "", &data};
  page.note =
      concat("The same data, ", count_text(double(comparison.tokens)), " tokens of training each, ",
             seeds == 1 ? "seed 1."
                        : concat("seeds 1 to ", seeds,
                                 ": means, and from the "
                                 "least to the most."),
             " Speeds are of this machine while it did what else it did.");
  page.body = table_of(all) + switches("tokens") + "<main class=\"grid\">\n";
  for (const char* metric : {"loss", "tokens_per_second"})
    page.body += switched_charts(runs, metric);
  page.body += chart_element(decode_chart(all));
  page.body += chart_element(cost_chart(all, "state of a generation, KiB", [](const Candidate& c) {
    return static_cast<double>(c.plan.decode_bytes) / 1024;
  }));
  page.body += chart_element(cost_chart(all, "FLOPs a token, forward",
                                        [](const Candidate& c) { return c.plan.flops_forward; }));
  page.body += "</main>\n";
  return page.text();
}

}  // namespace weft::train
