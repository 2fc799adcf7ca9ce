#include "train/metric_line.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace weft::train {
namespace {

using nlohmann::json;

double number_of(const json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>()
                                                   : std::numeric_limits<double>::quiet_NaN();
}

// Why a line says nothing; empty if it does.
std::string fault_of(const std::string& text, const json& line) {
  if (line.is_discarded())
    return text.back() == '}' ? "is no JSON" : "is cut short, as by a crash or a full disk";
  if (!line.is_object()) return "is no JSON object";
  return number_of(line, "step") >= 0 ? "" : "has no number \"step\"";
}

}  // namespace

std::string MetricLines::take(const std::string& text) {
  const json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (std::string fault = fault_of(text, line); !fault.empty()) return fault;
  step_ = number_of(line, "step");
  const double tokens = number_of(line, "tokens"), rate = number_of(line, "tokens_per_second");
  if (tokens >= 0) {
    if (rate > 0 && tokens > tokens_) seconds_ += (tokens - tokens_) / rate;
    tokens_ = tokens;
  }
  numbers_.clear();
  for (const auto& [key, value] : line.items())
    if (key != "step" && key != "tokens" && value.is_number())
      numbers_.emplace_back(key, value.get<double>());
  return "";
}

}  // namespace weft::train
