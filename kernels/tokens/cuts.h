// Where decode steps on the CPU cut their work: tests derive from these numbers the sizes that lie
// below, at and above each border (tests/kernels/borders_test.cpp).
#pragma once

#include <algorithm>
#include <cstdint>

namespace weft::kernels {

// Numbers of the heads' states that are worth a thread. A few heads of a small model are not.
inline constexpr int64_t kStateGrain = 1 << 15;

// The heads that a thread takes at least, whose states are [K, V].
inline int64_t head_grain(int64_t K, int64_t V) {
  return std::max<int64_t>(1, kStateGrain / (K * V));
}

}  // namespace weft::kernels
