#include "train/verbs/event_file.h"

#include <cstring>

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

std::string event_file(const RunMetrics& run) {
  // The version that readers ask for, and whose file it is.
  std::string file = event_record(event(0, 0, bytes_field(3, "brain.Event:2")));
  file += event_record(event(0, 0, bytes_field(10, bytes_field(1, "made by weft plot"))));
  for (const auto& [name, s] : run.metrics)
    for (size_t i = 0; i < s.value.size(); ++i)
      file += event_record(
          event(s.seconds[i], static_cast<int64_t>(s.step[i]), scalar(name, s.value[i])));
  return file;
}

}  // namespace weft::train
