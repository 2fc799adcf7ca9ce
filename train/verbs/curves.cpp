#include "train/verbs/curves.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/text.h"
#include "core/units.h"

namespace weft::train {
namespace {

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
    {"flops_per_second", "operations of the model a second, in 10⁹", true, nullptr, 1e9},
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

const Against& against_of(const std::string& name) {
  std::vector<std::string> known;
  for (const Against& a : kAgainst) {
    if (name == a.name) return a;
    known.emplace_back(a.name);
  }
  fail("--against: ", unknown_name("axis", name, known));
}

std::vector<double> scaled(std::vector<double> v, double unit) {
  for (double& x : v) x /= unit;
  return v;
}

void add_curves(Chart& chart, const RunMetrics& run, const Look& look, const Against& against,
                bool alone) {
  const auto found = run.metrics.find(look.metric);
  if (found != run.metrics.end()) {
    const MetricSeries& s = found->second;
    Curve c{run.name + ", " + look.metric, s.*against.values, scaled(s.value, look.unit),
            run.colour};
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
  Curve dots{run.name + ", " + look.also, s.*against.values, scaled(s.value, look.unit),
             run.colour};
  dots.dots = true;
  dots.labelled = alone && dots.y.size() <= 6;
  chart.curves.push_back(std::move(dots));
}

std::string radio(const char* group, const std::string& id, const char* text, bool chosen) {
  return concat("<label><input type=\"radio\" name=\"", group, "\" id=\"", id, "\"",
                chosen ? " checked" : "", "> ", text, "</label>");
}

}  // namespace

void require_axis(const std::string& against) { against_of(against); }

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

Chart chart_of(const Runs& runs, const std::string& metric, const std::string& against) {
  const Look look = look_of(metric);
  const Against& axis = against_of(against);
  Chart chart{look.title, axis.across, {}};
  for (const RunMetrics& r : runs) add_curves(chart, r, look, axis, runs.size() == 1);
  return chart;
}

std::string switched_charts(const Runs& runs, const std::string& metric) {
  std::string s = "<section>\n";
  for (const Against& a : kAgainst)
    s += concat("<div class=\"against-", a.name, "\">\n",
                chart_element(chart_of(runs, metric, a.name)), "</div>\n");
  return s + "</section>\n";
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

double last_of(const RunMetrics& r, const char* metric) {
  return r.has(metric) ? r.metrics.at(metric).value.back() : NAN;
}

double least_of(const RunMetrics& r, const char* metric) {
  if (!r.has(metric)) return NAN;
  const auto& v = r.metrics.at(metric).value;
  return *std::min_element(v.begin(), v.end());
}

double rate_of(const RunMetrics& r) {
  return r.has("tokens_per_second") ? median(r.metrics.at("tokens_per_second").value) : NAN;
}

std::string cell(const char* format, double v) {
  return concat("<td>", std::isfinite(v) ? number_text(format, v) : "–", "</td>");
}

}  // namespace weft::train
