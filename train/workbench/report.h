// What verbs that take a while and end in a table share.
#pragma once

#include <chrono>
#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

#include "core/live_line.h"

namespace weft::train {

// How far a task is, on stderr, so that stdout holds the result alone: on a terminal one line with
// the time left, elsewhere a line whenever the label changes.
class TaskProgress {
 public:
  explicit TaskProgress(std::string task)
      : live_(stderr), task_(std::move(task)), start_(Clock::now()) {}
  ~TaskProgress() { live_.clear(); }
  TaskProgress(const TaskProgress&) = delete;
  TaskProgress& operator=(const TaskProgress&) = delete;

  // `part` of the work is done, 0 to 1; `label` is what comes now.
  void show(double part, const std::string& label);

 private:
  using Clock = std::chrono::steady_clock;
  LiveLine live_;
  std::string task_, label_;
  Clock::time_point start_;
};

// Rows of cells under a heading, columns as wide as their widest cell. Cells that start like a
// number stand to the right.
void print_table(std::ostream& out, const std::vector<std::string>& heading,
                 const std::vector<std::vector<std::string>>& rows);

// Throws Error if standard output has not taken all that was printed so far, by whatever means.
// Work that prints as it goes asks this after every piece; the program asks it once more at its
// end.
void flush_output();

}  // namespace weft::train
