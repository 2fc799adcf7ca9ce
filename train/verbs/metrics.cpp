#include "train/verbs/metrics.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <sstream>

#include "core/error.h"
#include "core/file.h"
#include "train/metric_line.h"

namespace weft::train {
namespace {

namespace fs = std::filesystem;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

void take(RunMetrics& run, const MetricLines& line) {
  for (const auto& [key, value] : line.numbers()) {
    MetricSeries& s = run.metrics[key];
    s.step.push_back(line.step());
    s.tokens.push_back(line.tokens());
    s.seconds.push_back(line.seconds());
    s.value.push_back(value);
  }
}

std::string name_of_run(const fs::path& file) {
  const fs::path folder = fs::absolute(file).lexically_normal().parent_path();
  return folder.filename().string();
}

}  // namespace

RunMetrics read_metrics(const std::string& run) {
  std::error_code ignored;
  RunMetrics m;
  m.path = fs::is_directory(run, ignored) ? (fs::path(run) / "metrics.jsonl").string() : run;
  require(fs::exists(m.path, ignored), run,
          fs::exists(run, ignored) ? ": holds no metrics.jsonl" : ": is not there",
          "; expected the folder of a run, as `weft train` makes it");
  m.name = name_of_run(m.path);
  std::istringstream in(read_file(m.path));
  MetricLines lines;
  int64_t number = 0;
  for (std::string text; std::getline(in, text);) {
    ++number;
    if (text.empty()) continue;
    const std::string fault = lines.take(text);
    if (!fault.empty()) {
      m.skipped.push_back(concat(m.path, ":", number, ": the line ", fault, "; skipped"));
      continue;
    }
    take(m, lines);
  }
  require(!m.metrics.empty(), m.path,
          number == 0 ? ": is empty; the run has logged no step yet"
                      : concat(": none of its ", number, " lines tells of a step",
                               m.skipped.empty() ? "" : "; " + m.skipped.front()));
  return m;
}

double median(std::vector<double> values) {
  std::erase_if(values, [](double v) { return !std::isfinite(v); });
  if (values.empty()) return kNone;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace weft::train
