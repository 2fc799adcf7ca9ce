// What a long task shows: one live line on a terminal, plain lines elsewhere, and metrics.jsonl.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "core/live_line.h"
#include "core/system.h"
#include "train/event_log.h"

namespace weft::train {

// Prints a line. What cannot be printed, as into a pipe that nobody reads any more, is dropped: a
// run goes on without.
void show_line(const std::string& line);

class Progress {
 public:
  // `steps` in all, of which `done` were done before (a resumed run).
  Progress(int64_t steps, int64_t done);

  // Shows "step 120/2000 | loss ... | 12.3k tok/s | 3m 20s left". On a terminal the line is redrawn
  // in place at most ten times a second; elsewhere a line is printed only when `log` is set.
  void step(int64_t step, const std::string& text, double tokens, bool log);
  // Prints a line of its own, above the live line. What the run did since the last step (an
  // evaluation, say) is not counted as the time of the next, unless `counted`.
  void say(const std::string& line, bool counted = false);
  // Ends the live line; what is said afterwards stands below it.
  void finish();

  double tokens_per_second() const { return tokens_per_second_; }
  double seconds_left() const;

 private:
  using Clock = std::chrono::steady_clock;

  LiveLine live_;
  int64_t steps_, begun_, step_ = 0;
  Clock::time_point last_step_;
  double tokens_per_second_ = 0, seconds_per_step_ = 0;
};

// Appends lines to OUT/metrics.jsonl, and with `events` what they tell to an event file of
// TensorBoard. A run first drops the lines of steps after `step`, where it
// goes on from, and all of them if that is 0, so that the file reads as if the run had never
// stopped.
class Metrics {
 public:
  Metrics(const std::string& folder, int64_t step, bool events = false);
  // A line goes to the file in one piece. Both return 0, or why they failed (a full disk): the run
  // goes on.
  int write(const std::string& json_line);
  int flush();  // to the disk, before a checkpoint of the same step
  // The file that one of these failed at.
  const std::string& failed() const { return failed_; }
  // Says how many lines were dropped; empty if none was.
  const std::string& dropped() const { return dropped_; }
  // True where the file goes on and tells of no evaluation at the step gone on from.
  bool lacks_evaluation() const { return lacks_evaluation_; }

 private:
  int told(int metrics, int events);

  Descriptor file_;
  std::unique_ptr<EventLog> events_;
  std::string dropped_, failed_ = "metrics.jsonl";
  bool lacks_evaluation_ = false;
};

}  // namespace weft::train
