#include "train/verbs/run_page.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/text.h"
#include "core/units.h"
#include "train/pages/page.h"

namespace weft::train {
namespace {

std::string table_of(const Runs& runs) {
  std::string t =
      "<div class=\"scroll\"><table><tr><th>run</th><th>steps</th><th>tokens</th><th>loss</th>"
      "<th>best held-out loss</th><th>bits a byte</th><th>tokens a second</th><th>peak memory</th>"
      "</tr>\n";
  for (const RunMetrics& r : runs) {
    double steps = 0, tokens = 0;
    for (const auto& [name, series] : r.metrics) {
      steps = std::max(steps, series.step.back());
      tokens = std::max(tokens, series.tokens.back());
    }
    const double peak = last_of(r, "peak_bytes");
    t += concat("<tr><td><span class=\"key c", r.colour % 8, "\"></span>", escaped(r.name), "</td>",
                cell("%.0f", steps), "<td>", count_text(tokens), "</td>",
                cell("%.4f", last_of(r, "loss")), cell("%.4f", least_of(r, "eval_loss")),
                cell("%.3f", least_of(r, "bits_per_byte")), cell("%.0f", rate_of(r)), "<td>",
                std::isfinite(peak) ? bytes_text(peak) : "–", "</td></tr>\n");
  }
  return t + "</table></div>\n";
}

// Rows that a page has room for; more are thinned out evenly.
constexpr size_t kMostRows = 2000;

constexpr const char* kLiveSwitch =
    "<p class=\"switches\"><label><input type=\"checkbox\" id=\"live\" checked> the run goes on: "
    "load this page anew every three seconds</label></p>\n";

// The switches, the place and the focus stay as they are. A chart that is looked at, by the pointer
// or the keyboard, is left alone.
constexpr std::string_view kLiveScript = R"js(
const live = document.getElementById('live'), kept = 'weft ' + location.pathname;
const state = () => ({on: live.checked, y: scrollY, focus: document.activeElement.id,
  chosen: [...document.querySelectorAll('[type=radio]:checked')].map(e => e.id)});
try {
  const was = JSON.parse(sessionStorage.getItem(kept));
  if (was) {
    live.checked = was.on;
    for (const id of was.chosen) { const e = document.getElementById(id); if (e) e.checked = true; }
    scrollTo(0, was.y);
    if (was.focus) document.getElementById(was.focus)?.focus({preventScroll: true});
  }
} catch { /* a browser that keeps nothing begins anew each time */ }
setInterval(() => {
  if (!live.checked || document.hidden) return;
  if (document.querySelector('svg.chart:hover, svg.chart:focus')) return;
  try { sessionStorage.setItem(kept, JSON.stringify(state())); } catch { /* as above */ }
  location.reload();
}, 3000);
)js";

}  // namespace

nlohmann::ordered_json curves_json(const Runs& runs, const std::vector<std::string>& metrics,
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

std::string run_page(const Runs& runs, const std::vector<std::string>& metrics,
                     const std::string& against, bool live) {
  std::vector<std::string> names;
  for (const RunMetrics& r : runs) names.push_back(r.name);
  Page page{"plot", joined(names), "", "", nullptr};
  page.note =
      "Smoothed curves are running means over a twentieth of the points. Time is that of training "
      "steps, from tokens and tokens a second.";
  page.body = concat(live ? kLiveSwitch : "", table_of(runs), switches(against));
  if (live) page.more_script = kLiveScript;
  for (const RunMetrics& r : runs)
    for (const std::string& line : r.skipped) page.body += concat("<p>", escaped(line), "</p>\n");
  page.body += "<main class=\"grid\">\n";
  for (const std::string& metric : metrics) {
    if (metric == "eval_loss" && contains(metrics, "loss")) continue;  // dots of the first chart
    page.body += switched_charts(runs, metric);
  }
  page.body += "</main>\n";
  nlohmann::ordered_json data = curves_json(runs, metrics, /*thin=*/true);
  page.data = &data;
  return page.text();
}

LivePage::LivePage(std::string run, bool overwrite)
    : run_(std::move(run)), path_(concat(run_, "/plot.html")) {
  require_page_output(path_, {}, overwrite);
}

void LivePage::renew() {
  // However long the run, this takes at most a twentieth of its time.
  constexpr std::chrono::duration<double> kLeast{2};
  const auto now = Clock::now();
  if (written_ && now - last_ < std::max(kLeast, 20 * cost_)) return;
  write(true);
  written_ = true;
  last_ = Clock::now();
  cost_ = last_ - now;
}

std::string LivePage::finish() {
  try {
    if (written_) write(false);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void LivePage::write(bool live) const {
  const Runs runs = {read_metrics(run_)};
  write_page(path_, run_page(runs, metrics_of(runs), "steps", live), "leave out --page");
}

}  // namespace weft::train
