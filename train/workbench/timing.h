// How long something takes on this machine.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace weft::train {

struct Seconds {
  double median = 0, best = 0;
};

// How long f takes, repeated for about `budget` seconds, after one run not counted.
template <class F>
Seconds seconds_of(double budget, const F& f) {
  using Clock = std::chrono::steady_clock;
  f();
  std::vector<double> times;
  double sum = 0;
  while (times.size() < 3 || (sum < budget && times.size() < 1000)) {
    const auto start = Clock::now();
    f();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    sum += times.back();
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

}  // namespace weft::train
