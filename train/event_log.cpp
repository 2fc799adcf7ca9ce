#include "train/event_log.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <sstream>

#include "core/error.h"
#include "core/file.h"
#include "train/run_folder.h"

namespace weft::train {
namespace {

std::string little_endian(uint64_t v, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(v >> (8 * i) & 0xff);
  return out;
}

template <class Number>
std::string bits_of(Number v) {
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof v);
  return little_endian(bits, sizeof v);
}

// Protocol buffers: a field is a key (its number and kind) and its value.
enum Kind : uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string varint(uint64_t v) {
  std::string out;
  for (; v >= 128; v >>= 7) out += static_cast<char>(v | 128);
  return out + static_cast<char>(v);
}

std::string key(uint64_t field, Kind kind) { return varint(field << 3 | kind); }

std::string bytes_field(uint64_t field, const std::string& bytes) {
  return key(field, kBytes) + varint(bytes.size()) + bytes;
}

std::string event(double seconds, int64_t step, const std::string& what) {
  return key(1, kFixed64) + bits_of(seconds) + key(2, kVarint) +
         varint(static_cast<uint64_t>(step)) + what;
}

std::string scalar(const std::string& name, double value) {
  const std::string v =
      bytes_field(1, name) + key(2, kFixed32) + bits_of(static_cast<float>(value));
  return bytes_field(5, bytes_field(1, v));  // summary { value { tag, simple_value } }
}

uint32_t masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

std::string event_record(const std::string& bytes) {
  const std::string length = little_endian(bytes.size(), 8);
  return length + little_endian(masked(crc32c(length)), 4) + bytes +
         little_endian(masked(crc32c(bytes)), 4);
}

std::string event_header(const std::string& made_by) {
  return event_record(event(0, 0, bytes_field(3, "brain.Event:2"))) +
         event_record(event(0, 0, bytes_field(10, bytes_field(1, made_by))));
}

std::string event_scalar(double seconds, int64_t step, const std::string& name, double value) {
  return event_record(event(seconds, step, scalar(name, value)));
}

std::string EventLog::events_of(const std::string& line) {
  std::string events;
  if (line.empty() || !lines_.take(line).empty()) return events;
  for (const auto& [name, value] : lines_.numbers())
    events += event_scalar(lines_.seconds(), static_cast<int64_t>(lines_.step()), name, value);
  return events;
}

EventLog::EventLog(const std::string& folder, const std::string& lines) {
  const std::string path = folder + "/" + kEventFile;
  require_own(path);
  std::error_code none;
  require(!std::filesystem::exists(path, none) ||
              read_file(path).find("made by weft") != std::string::npos,
          path, ": is not this program's, and is not replaced; move it away");
  std::string file = event_header("made by weft train");
  std::istringstream in(lines);
  for (std::string line; std::getline(in, line);) file += events_of(line);
  write_file(path, file);
  file_ = Descriptor(path, O_WRONLY | O_APPEND);
  require_call(file_.code(), path, ": cannot be written");
}

int EventLog::write(const std::string& line) {
  const std::string events = events_of(line);
  return file_.write(events.data(), events.size());
}

int EventLog::flush() const { return code_of(::fsync(file_.get())); }

}  // namespace weft::train
