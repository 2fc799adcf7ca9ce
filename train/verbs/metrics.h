// What a run wrote down as it went: metrics.jsonl, read for pictures and comparisons.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace weft::train {

// A metric over a run, at the steps that tell of it.
struct MetricSeries {
  std::vector<double> step, tokens, seconds, value;
};

struct RunMetrics {
  std::string name;  // the folder's own
  std::string path;  // of the file
  int colour = 0;    // in pictures
  // By the key of the file: "loss", "eval_loss", "lr", "norm", "tokens_per_second", "peak_bytes"...
  std::map<std::string, MetricSeries> metrics;
  std::vector<std::string> skipped;  // lines that could not be read, each with its place and why

  bool has(const std::string& metric) const { return metrics.count(metric) > 0; }
};

// `run` is a run's folder or its metrics.jsonl. Seconds are those of training steps, from tokens
// and tokens a second: the time of evaluations is not in the file. Lines that cannot be read are
// skipped and told. Throws Error where no file is there, or no line of it can be used.
RunMetrics read_metrics(const std::string& run);

// The middle of a list of numbers; NaN where it is empty.
double median(std::vector<double> values);

}  // namespace weft::train
