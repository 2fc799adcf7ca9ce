// One line of a terminal that is redrawn in place, for what takes a while.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace weft {

// Writes to a stream; the caller flushes it and looks at its errors. Where the stream is no
// terminal, each line that is drawn is a line of its own.
class LiveLine {
 public:
  explicit LiveLine(std::FILE* to);

  bool terminal() const { return terminal_; }
  // A terminal is redrawn at most ten times a second: true where it is time to.
  bool due() const;
  void draw(const std::string& line);
  // Prints a line that stays, above the live one.
  void say(const std::string& line);
  // Leaves the live line as it stands; what is printed afterwards stands below it.
  void finish();
  // Removes the live line.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::FILE* to_;
  bool terminal_;
  Clock::time_point drawn_{};
  std::string line_;
};

}  // namespace weft
