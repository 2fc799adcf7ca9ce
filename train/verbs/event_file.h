// The metrics of a run as an event file of TensorBoard: records of protocol buffers, each framed by
// its length and checksums (masked CRC-32C). Source: tensorflow/core/util/event.proto and
// tensorflow/core/lib/io/record_writer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "train/verbs/metrics.h"

namespace weft::train {

uint32_t crc32c(std::string_view bytes);
// One record: length, checksum of the length, bytes, checksum of the bytes.
std::string event_record(const std::string& bytes);
// The whole file. A metric is a scalar of its name, at its step; its time is the seconds of
// training from the beginning.
std::string event_file(const RunMetrics& run);

}  // namespace weft::train
