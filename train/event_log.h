// Metrics as event files of TensorBoard: records of protocol buffers, each framed by its length and
// checksums (masked CRC-32C). Source: tensorflow/core/util/event.proto and
// tensorflow/core/lib/io/record_writer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/system.h"
#include "train/metric_line.h"

namespace weft::train {

// TensorBoard takes any file for one of its own that has "tfevents" in its name.
inline constexpr const char* kEventFile = "events.out.tfevents.0.weft";

uint32_t crc32c(std::string_view bytes);
// One record: length, checksum of the length, bytes, checksum of the bytes.
std::string event_record(const std::string& bytes);

// What a file begins with: the version that readers ask for, and whose file it is.
std::string event_header(const std::string& made_by);
// A metric at a step. Its time is the seconds of training from the beginning.
std::string event_scalar(double seconds, int64_t step, const std::string& name, double value);

// The event file that stands beside a run's metrics.jsonl and tells the same. It is made anew from
// the lines that the run goes on from, so that no step is in it twice.
class EventLog {
 public:
  // `lines` are whole lines of metrics.jsonl.
  EventLog(const std::string& folder, const std::string& lines);
  // Adds what a line of metrics.jsonl tells. Both return 0, or why they failed.
  int write(const std::string& line);
  int flush() const;

 private:
  std::string events_of(const std::string& line);

  MetricLines lines_;
  Descriptor file_;
};

}  // namespace weft::train
