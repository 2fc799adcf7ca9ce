// `weft plot`: what runs wrote down, as a page of curves, a picture, CSV or JSON.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "core/units.h"
#include "train/pages/chart.h"
#include "train/pages/page.h"
#include "train/verbs/metrics.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

using Runs = std::vector<RunMetrics>;

// What is drawn of a metric, and how.
struct Look {
  const char* metric;
  const char* title;
  bool noisy = false;          // drawn raw and smoothed
  const char* also = nullptr;  // a second metric in the same chart, as dots
  double unit = 1;
};
constexpr Look kLooks[] = {
    {"loss", "loss: training, held out (dots); nats a token", true, "eval_loss"},
    {"eval_loss", "held-out loss, nats a token"},
    {"bits_per_byte", "held-out bits a byte"},
    {"perplexity", "held-out perplexity"},
    {"accuracy", "held-out answers right"},
    {"lr", "learning rate"},
    {"norm", "gradient norm", true},
    {"tokens_per_second", "tokens a second", true},
    {"peak_bytes", "peak memory, MiB", false, nullptr, 1 << 20}};

Look look_of(const std::string& metric) {
  for (const Look& l : kLooks)
    if (metric == l.metric) return l;
  return {metric.c_str(), metric.c_str()};
}

struct Against {
  const char* name;
  const char* across;
  std::vector<double> MetricSeries::*values;
};
const Against kAgainst[] = {{"steps", "steps", &MetricSeries::step},
                            {"tokens", "tokens", &MetricSeries::tokens},
                            {"time", "seconds of training", &MetricSeries::seconds}};

std::vector<std::string> metrics_of(const Runs& runs) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    const bool there =
        std::any_of(runs.begin(), runs.end(), [&](const RunMetrics& r) { return r.has(name); });
    if (there && !contains(names, name)) names.push_back(name);
  };
  for (const Look& l : kLooks) add(l.metric);
  for (const RunMetrics& r : runs)
    for (const auto& [name, series] : r.metrics) add(name);
  return names;
}

std::vector<double> scaled(std::vector<double> v, double unit) {
  for (double& x : v) x /= unit;
  return v;
}

void add_curves(Chart& chart, const RunMetrics& run, int colour, const Look& look,
                const Against& against, bool alone) {
  const auto found = run.metrics.find(look.metric);
  if (found != run.metrics.end()) {
    const MetricSeries& s = found->second;
    Curve c{run.name + ", " + look.metric, s.*against.values, scaled(s.value, look.unit), colour};
    const size_t n = c.y.size();
    if (look.noisy && n > 4) {
      c.look = "raw";
      Curve mean = c;
      mean.name += " smoothed";
      mean.look = "smooth";
      mean.y = smoothed(c.y, std::max(2.0, static_cast<double>(n) / 20));
      chart.curves.push_back(std::move(c));
      chart.curves.push_back(std::move(mean));
    } else {
      chart.curves.push_back(std::move(c));
    }
  }
  if (!look.also || !run.has(look.also)) return;
  const MetricSeries& s = run.metrics.at(look.also);
  Curve dots{run.name + ", " + look.also, s.*against.values, scaled(s.value, look.unit), colour};
  dots.dots = true;
  dots.labelled = alone && dots.y.size() <= 6;
  chart.curves.push_back(std::move(dots));
}

Chart chart_of(const Runs& runs, const std::string& metric, const Against& against) {
  const Look look = look_of(metric);
  Chart chart{look.title, against.across, {}};
  int colour = 0;
  for (const RunMetrics& r : runs) add_curves(chart, r, colour++, look, against, runs.size() == 1);
  return chart;
}

double last_of(const RunMetrics& r, const char* metric) {
  return r.has(metric) ? r.metrics.at(metric).value.back() : NAN;
}

double least_of(const RunMetrics& r, const char* metric) {
  if (!r.has(metric)) return NAN;
  const auto& v = r.metrics.at(metric).value;
  return *std::min_element(v.begin(), v.end());
}

std::string cell(const char* format, double v) {
  return concat("<td>", std::isfinite(v) ? number_text(format, v) : "–", "</td>");
}

std::string table_of(const Runs& runs) {
  std::string t =
      "<div class=\"scroll\"><table><tr><th>run</th><th>steps</th><th>tokens</th><th>loss</th>"
      "<th>best held-out loss</th><th>bits a byte</th><th>tokens a second</th><th>peak memory</th>"
      "</tr>\n";
  int colour = 0;
  for (const RunMetrics& r : runs) {
    const auto& any = r.metrics.begin()->second;
    const double peak = last_of(r, "peak_bytes");
    const double rate =
        r.has("tokens_per_second") ? median(r.metrics.at("tokens_per_second").value) : NAN;
    t += concat("<tr><td><span class=\"key c", colour++ % 8, "\"></span>", escaped(r.name), "</td>",
                cell("%.0f", any.step.back()), "<td>", count_text(any.tokens.back()), "</td>",
                cell("%.4f", last_of(r, "loss")), cell("%.4f", least_of(r, "eval_loss")),
                cell("%.3f", least_of(r, "bits_per_byte")), cell("%.0f", rate), "<td>",
                std::isfinite(peak) ? bytes_text(peak) : "–", "</td></tr>\n");
  }
  return t + "</table></div>\n";
}

std::string radio(const char* group, const std::string& id, const char* text, bool chosen) {
  return concat("<label><input type=\"radio\" name=\"", group, "\" id=\"", id, "\"",
                chosen ? " checked" : "", "> ", text, "</label>");
}

std::string switches(const std::string& against) {
  std::string s = "<form class=\"switches\"><fieldset><legend>against</legend>";
  for (const Against& a : kAgainst)
    s += radio("against", concat("against-", a.name), a.name, a.name == against);
  s += "</fieldset><fieldset><legend>curves</legend>";
  s += radio("curve", "curve-both", "raw and smoothed", true);
  s += radio("curve", "curve-raw", "raw", false);
  return s + radio("curve", "curve-smooth", "smoothed", false) + "</fieldset></form>\n";
}

// Rows that a page has room for; more are thinned out evenly.
constexpr size_t kMostRows = 2000;

nlohmann::ordered_json data_of(const Runs& runs, const std::vector<std::string>& metrics,
                               bool thin) {
  nlohmann::ordered_json j;
  j["made_by"] = "weft plot";
  j["runs"] = nlohmann::ordered_json::array();
  for (const RunMetrics& r : runs) {
    nlohmann::ordered_json run;
    run["name"] = r.name;
    for (const auto& [name, s] : r.metrics) {
      if (!contains(metrics, name)) continue;
      const size_t n = s.value.size(), every = thin ? (n + kMostRows - 1) / kMostRows : 1;
      nlohmann::ordered_json& m = run["metrics"][name];
      for (const char* key : {"step", "tokens", "seconds", "value"})
        m[key] = nlohmann::json::array();
      for (size_t i = 0; i < n; i += every) {
        m["step"].push_back(s.step[i]);
        m["tokens"].push_back(s.tokens[i]);
        m["seconds"].push_back(std::round(1000 * s.seconds[i]) / 1000);
        m["value"].push_back(s.value[i]);
      }
    }
    j["runs"].push_back(run);
  }
  return j;
}

std::string page_of(const Runs& runs, const std::vector<std::string>& metrics,
                    const std::string& against) {
  std::vector<std::string> names;
  for (const RunMetrics& r : runs) names.push_back(r.name);
  Page page{"plot", joined(names), "", "", nullptr};
  page.note =
      "Smoothed curves are running means over a twentieth of the points. Time is that of training "
      "steps, from tokens and tokens a second.";
  page.body = table_of(runs) + switches(against);
  for (const RunMetrics& r : runs)
    for (const std::string& line : r.skipped) page.body += concat("<p>", escaped(line), "</p>\n");
  page.body += "<main class=\"grid\">\n";
  for (const std::string& metric : metrics) {
    if (metric == "eval_loss" && contains(metrics, "loss")) continue;  // dots of the first chart
    page.body += "<section>\n";
    for (const Against& a : kAgainst)
      page.body += concat("<div class=\"against-", a.name, "\">\n",
                          chart_element(chart_of(runs, metric, a)), "</div>\n");
    page.body += "</section>\n";
  }
  page.body += "</main>\n";
  nlohmann::ordered_json data = data_of(runs, metrics, /*thin=*/true);
  page.data = &data;
  return page.text();
}

std::string picture_of(const Runs& runs, const std::string& metric, const Against& against) {
  constexpr double kRow = 18;
  std::string inside = chart_inside(chart_of(runs, metric, against));
  double y = kChartHeight + 10;
  int colour = 0;
  for (const RunMetrics& r : runs) {
    const double held = last_of(r, "eval_loss");
    inside +=
        concat("<path class=\"curve c", colour++ % 8, "\" d=\"M52 ", y - 4,
               "h24\"/><text x=\"84\" y=\"", y, "\">", escaped(r.name),
               std::isfinite(held) ? number_text(", held-out loss %.3f", held) : "", "</text>\n");
    y += kRow;
  }
  return picture("plot", concat(look_of(metric).title, " against ", against.across), kChartWidth, y,
                 inside);
}

std::string csv_word(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

std::string csv_of(const Runs& runs, const std::vector<std::string>& metrics) {
  const auto exact = [](double v) { return nlohmann::json(v).dump(); };
  std::string t = "run,metric,step,tokens,seconds,value\n";
  for (const RunMetrics& r : runs)
    for (const auto& [name, s] : r.metrics)
      for (size_t i = 0; contains(metrics, name) && i < s.value.size(); ++i)
        t += concat(csv_word(as_utf8(r.name)), ",", csv_word(name), ",", exact(s.step[i]), ",",
                    exact(s.tokens[i]), ",", number_text("%.3f", s.seconds[i]), ",",
                    exact(s.value[i]), "\n");
  return t;
}

// A run under a name that another has already gets its path for a name.
Runs read_all(const std::vector<std::string>& paths) {
  Runs runs;
  for (const std::string& path : paths) {
    RunMetrics r = read_metrics(path);
    if (std::any_of(runs.begin(), runs.end(), [&](auto& other) { return other.name == r.name; }))
      r.name = path;
    for (const std::string& line : r.skipped) std::fprintf(stderr, "weft: %s\n", line.c_str());
    runs.push_back(std::move(r));
  }
  return runs;
}

const Against& against_of(const std::string& name) {
  std::vector<std::string> known;
  for (const Against& a : kAgainst) {
    if (name == a.name) return a;
    known.emplace_back(a.name);
  }
  fail("--against: ", unknown_name("axis", name, known));
}

}  // namespace

int run_plot(const PlotArguments& a) {
  require(a.svg + a.csv + a.json <= 1,
          "--svg, --csv and --json each name the form of the output; "
          "expected one of them");
  const Against& against = against_of(a.against);
  const Runs runs = read_all(a.runs);
  std::vector<std::string> metrics = metrics_of(runs);
  if (!a.metric.empty()) {
    require(contains(metrics, a.metric), "--metric: ", unknown_name("metric", a.metric, metrics));
    metrics = {a.metric};
  }
  const bool printed = a.out.empty() && (a.csv || a.json);
  const std::string out = !a.out.empty() ? a.out
                          : printed      ? "/dev/stdout"
                          : a.svg        ? "plot.svg"
                                         : "plot.html";
  std::vector<std::string> inputs;
  for (const RunMetrics& r : runs) inputs.push_back(r.path);
  require_page_output(out, inputs, a.overwrite);
  const std::string text =
      a.csv    ? csv_of(runs, metrics)
      : a.json ? json_line(data_of(runs, metrics, false)) + "\n"
      : a.svg  ? picture_of(runs, contains(metrics, "loss") ? "loss" : metrics[0], against)
               : page_of(runs, metrics, a.against);
  if (a.csv || a.json)
    write_file(out, text);
  else
    write_page(out, text, "plot fewer runs, or one --metric");
  if (!is_standard_output(out))
    std::printf("%s: %s, %s\n", out.c_str(),
                runs.size() == 1 ? "1 run" : concat(runs.size(), " runs").c_str(),
                bytes_text(double(text.size())).c_str());
  return 0;
}

}  // namespace weft::train
