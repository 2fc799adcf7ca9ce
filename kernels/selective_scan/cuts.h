// Where the CPU's form cuts its work: tests derive from these numbers the sizes that lie below, at
// and above each border (tests/kernels/borders_test.cpp).
#pragma once

#include <cstdint>

namespace weft::kernels::selective_scan {

inline constexpr int64_t kSegment = 64;   // tokens between two states that are kept
inline constexpr int64_t kBlock = 64;     // channels of a block at least
inline constexpr int64_t kBlocks = 16;    // blocks at most, each with sums of dB and dC of its own
inline constexpr int64_t kSumRows = 256;  // tokens of those sums that a thread takes
inline constexpr int64_t kStepGrain =
    2048;  // states times tokens of a lane that are worth a thread

}  // namespace weft::kernels::selective_scan
