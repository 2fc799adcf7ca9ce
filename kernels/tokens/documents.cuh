// Which of the documents packed into a row a token lies in, as a kernel asks it.
#pragma once

#include <cstdint>

namespace weft::kernels {

// n with cu[n] <= t < cu[n + 1]; cu [N + 1] is cu_seqlens, 0 <= t < cu[N].
__device__ __forceinline__ int document_at(const int32_t* cu, int N, int64_t t) {
  int low = 0, high = N;  // cu[low] <= t < cu[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (cu[middle] <= t ? low : high) = middle;
  }
  return low;
}

}  // namespace weft::kernels
