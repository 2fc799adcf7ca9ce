// What verbs that take a while and end in a table share: a live line, and text for tables and JSON.
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace weft::train {

// How far a task is, on stderr, so that stdout holds the result alone: on a terminal one line, redrawn
// in place with the time left; elsewhere a line whenever the label changes.
class LiveLine {
 public:
  explicit LiveLine(std::string task) : task_(std::move(task)), start_(Clock::now()) {}
  ~LiveLine();
  LiveLine(const LiveLine&) = delete;
  LiveLine& operator=(const LiveLine&) = delete;

  // `part` of the work is done, 0 to 1; `label` is what comes now.
  void show(double part, const std::string& label);

 private:
  using Clock = std::chrono::steady_clock;
  std::string task_, label_;
  Clock::time_point start_, drawn_{};
  bool shown_ = false;
};

// Rows of cells under a heading, columns as wide as their widest cell. Cells that start like a number
// stand to the right.
void print_table(std::ostream& out, const std::vector<std::string>& heading,
                 const std::vector<std::vector<std::string>>& rows);

// Throws Error if standard output has not taken all that was printed so far, by whatever means. Work
// that prints as it goes asks this after every piece; the program asks it once more at its end.
void flush_output();

// A string in quotes, and a number that JSON can hold (null where it is not finite).
std::string json_text(const std::string& text);
std::string json_number(double value);

// "%.3g" and the like for one number.
std::string printed(const char* format, double value);

}  // namespace weft::train
