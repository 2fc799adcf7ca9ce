// One synthetic task: what makes its examples. data/tasks.h lists the tasks.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/random.h"
#include "data/tasks.h"

namespace weft::data {

// The random numbers of one example: its own stretch of the counter.
class Draws {
 public:
  Draws(const Random& random, int64_t example)
      : random_(random), at_(static_cast<uint64_t>(example) << 24) {}
  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_.below(static_cast<uint64_t>(n), at_++));
  }
  double uniform() { return random_.uniform(at_++); }

  // `count` different numbers of 0 .. n-1, every choice as likely (Floyd), in random order.
  std::vector<int64_t> choice(int64_t n, int64_t count) {
    std::vector<int64_t> chosen;
    for (int64_t last = n - count; last < n; ++last) {
      const int64_t x = below(last + 1);
      const bool taken = std::find(chosen.begin(), chosen.end(), x) != chosen.end();
      chosen.push_back(taken ? last : x);
    }
    for (size_t i = chosen.size(); i > 1; --i)
      std::swap(chosen[i - 1], chosen[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    return chosen;
  }

  // `count` different numbers of 0 .. weights-1, drawn one after the other by weight: that is the
  // order of -log(u) / weight, smallest first (Efraimidis and Spirakis, 2006).
  std::vector<int64_t> weighted_choice(std::span<const double> weights, int64_t count) {
    std::vector<std::pair<double, int64_t>> keys;
    for (size_t i = 0; i < weights.size(); ++i)
      keys.push_back({-std::log1p(-uniform()) / weights[i], static_cast<int64_t>(i)});
    std::partial_sort(keys.begin(), keys.begin() + count, keys.end());
    std::vector<int64_t> chosen;
    for (int64_t i = 0; i < count; ++i) chosen.push_back(keys[static_cast<size_t>(i)].second);
    return chosen;
  }

 private:
  const Random& random_;
  uint64_t at_;
};

// Writes an example into rows of T tokens and T targets (all kIgnored); returns its slice.
class Task {
 public:
  virtual ~Task() = default;
  virtual int64_t make(int64_t example, Draws draws, std::span<int32_t> tokens,
                       std::span<int32_t> targets) const = 0;
};

using TaskPtr = std::unique_ptr<Task>;

// Throw Error where the task's sizes do not fit into `length` tokens. `vocabulary` is at least 2.
// `seed` is for what all examples of a task share.
TaskPtr recall_task(const TaskOptions& options, int64_t vocabulary, int64_t length, uint64_t seed);
TaskPtr sequence_task(const TaskOptions& options, int64_t vocabulary, int64_t length);

// Those that recall_task makes; sequence_task makes the others.
bool is_recall(const std::string& name);

}  // namespace weft::data
