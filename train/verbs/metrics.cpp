#include "train/verbs/metrics.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/file.h"

namespace weft::train {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Where the run is as the lines go by.
struct Place {
  double step = 0, tokens = 0, seconds = 0;
};

double number_of(const json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : kNone;
}

// Why a line says nothing; empty if it does.
std::string fault_of(const std::string& text, const json& line) {
  if (line.is_discarded())
    return text.back() == '}' ? "is no JSON" : "is cut short, as by a crash or a full disk";
  if (!line.is_object()) return "is no JSON object";
  return number_of(line, "step") >= 0 ? "" : "has no number \"step\"";
}

void advance(Place& at, const json& line) {
  at.step = number_of(line, "step");
  const double tokens = number_of(line, "tokens"), rate = number_of(line, "tokens_per_second");
  if (!(tokens >= 0)) return;
  if (rate > 0 && tokens > at.tokens) at.seconds += (tokens - at.tokens) / rate;
  at.tokens = tokens;
}

void take(RunMetrics& run, const Place& at, const json& line) {
  for (const auto& [key, value] : line.items()) {
    if (key == "step" || key == "tokens" || !value.is_number()) continue;
    MetricSeries& s = run.metrics[key];
    s.step.push_back(at.step);
    s.tokens.push_back(at.tokens);
    s.seconds.push_back(at.seconds);
    s.value.push_back(value.get<double>());
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
  Place at;
  int64_t number = 0;
  for (std::string text; std::getline(in, text);) {
    ++number;
    if (text.empty()) continue;
    const json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    const std::string fault = fault_of(text, line);
    if (!fault.empty()) {
      m.skipped.push_back(concat(m.path, ":", number, ": the line ", fault, "; skipped"));
      continue;
    }
    advance(at, line);
    take(m, at, line);
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
