// One line of metrics.jsonl after the other, and the place of the run that each tells of.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace weft::train {

class MetricLines {
 public:
  // Takes the next line. Returns why it says nothing, or "" where what follows is of this line.
  std::string take(const std::string& text);

  double step() const { return step_; }
  double tokens() const { return tokens_; }
  // Of training steps so far, from tokens and tokens a second: evaluations are not in the file.
  double seconds() const { return seconds_; }
  // The line's metrics by name, without step and tokens.
  const std::vector<std::pair<std::string, double>>& numbers() const { return numbers_; }

 private:
  double step_ = 0, tokens_ = 0, seconds_ = 0;
  std::vector<std::pair<std::string, double>> numbers_;
};

}  // namespace weft::train
