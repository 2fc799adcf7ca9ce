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
#include "train/event_log.h"
#include "train/pages/page.h"
#include "train/verbs/curves.h"
#include "train/verbs/run_page.h"
#include "train/verbs/verbs.h"

namespace weft::train {
namespace {

std::string picture_of(const Runs& runs, const std::string& metric, const std::string& against) {
  constexpr double kRow = 18;
  const Chart chart = chart_of(runs, metric, against);
  std::string inside = chart_inside(chart);
  double y = kChartHeight + 10;
  for (const RunMetrics& r : runs) {
    const double held = last_of(r, "eval_loss");
    inside +=
        concat("<path class=\"curve c", r.colour % 8, "\" d=\"M52 ", y - 4,
               "h24\"/><text x=\"84\" y=\"", y, "\">", escaped(r.name),
               std::isfinite(held) ? number_text(", held-out loss %.3f", held) : "", "</text>\n");
    y += kRow;
  }
  return picture("plot", concat(chart.title, " against ", chart.across), kChartWidth, y, inside);
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
    r.colour = static_cast<int>(runs.size());
    runs.push_back(std::move(r));
  }
  return runs;
}

std::string event_file(const RunMetrics& run) {
  std::string file = event_header("made by weft plot");
  for (const auto& [name, s] : run.metrics)
    for (size_t i = 0; i < s.value.size(); ++i)
      file += event_scalar(s.seconds[i], static_cast<int64_t>(s.step[i]), name, s.value[i]);
  return file;
}

// One folder for each run, as TensorBoard wants them.
void write_event_files(const PlotArguments& a, const Runs& runs,
                       const std::vector<std::string>& metrics) {
  const std::string out = a.out.empty() ? "tensorboard" : a.out;
  std::vector<std::string> paths;
  for (const RunMetrics& r : runs) {
    std::string name = r.name;
    std::replace(name.begin(), name.end(), '/', '_');
    make_folders(concat(out, "/", name));
    paths.push_back(concat(out, "/", name, "/", kEventFile));
    require_page_output(paths.back(), {r.path}, a.overwrite);
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    RunMetrics run = runs[i];
    std::erase_if(run.metrics, [&](const auto& m) { return !contains(metrics, m.first); });
    write_file(paths[i], event_file(run));
  }
  std::printf("%s: event files of %zu runs; look at them with tensorboard --logdir %s\n",
              out.c_str(), runs.size(), out.c_str());
}

}  // namespace

int run_plot(const PlotArguments& a) {
  require(a.svg + a.csv + a.json + a.tensorboard <= 1,
          "--svg, --csv, --json and --tensorboard each name the form of the output; "
          "expected one of them");
  require_axis(a.against);
  const Runs runs = read_all(a.runs);
  std::vector<std::string> metrics = metrics_of(runs);
  if (!a.metric.empty()) {
    require(contains(metrics, a.metric), "--metric: ", unknown_name("metric", a.metric, metrics));
    metrics = {a.metric};
  }
  if (a.tensorboard) {
    write_event_files(a, runs, metrics);
    return 0;
  }
  const bool printed = a.out.empty() && (a.csv || a.json);  // on standard output
  const std::string out = !a.out.empty() ? a.out : a.svg ? "plot.svg" : "plot.html";
  std::vector<std::string> inputs;
  for (const RunMetrics& r : runs) inputs.push_back(r.path);
  if (!printed) require_page_output(out, inputs, a.overwrite);
  const std::string text =
      a.csv    ? csv_of(runs, metrics)
      : a.json ? json_line(curves_json(runs, metrics, false)) + "\n"
      : a.svg  ? picture_of(runs, contains(metrics, "loss") ? "loss" : metrics[0], a.against)
               : run_page(runs, metrics, a.against);
  if (printed)
    std::fwrite(text.data(), 1, text.size(), stdout);
  else if (a.csv || a.json)
    write_file(out, text);
  else
    write_page(out, text, "plot fewer runs, or one --metric");
  if (!printed && !is_standard_output(out))
    std::printf("%s: %s, %s\n", out.c_str(),
                runs.size() == 1 ? "1 run" : concat(runs.size(), " runs").c_str(),
                bytes_text(double(text.size())).c_str());
  return 0;
}

}  // namespace weft::train
