// Where softmax attention cuts its work on the CPU: tests derive from these numbers the sizes that
// lie below, at and above each border (tests/kernels/borders_test.cpp).
#pragma once

#include <cstdint>

namespace weft::kernels {

inline constexpr int64_t kSoftmaxTile = 64;   // queries and keys
inline constexpr int64_t kSoftmaxStrip = 16;  // queries of a tile that the band cuts
inline constexpr int64_t kSoftmaxUnits = 4;   // of backward's work: key heads times parts, at least
inline constexpr int64_t kSoftmaxSumGrain = 4096;  // numbers of a sum of dq that a thread takes

}  // namespace weft::kernels
