// Loops over the CPU's threads. Work is cut by shape alone, never by the number of threads, so that
// sums come out the same on any machine.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace weft {

// How many threads a parallel loop may use; scratch memory is sized by it.
inline int thread_count() { return omp_get_max_threads(); }

inline int thread_index() { return omp_get_thread_num(); }

// Calls f(i) for each i in [0, n), spread over threads. `f` must not allocate tensors. Runs inline
// when n is 1 or when already inside a parallel loop. The first exception is thrown to the caller.
template <class F>
void parallel_for(int64_t n, const F& f) {
  if (n <= 1 || omp_in_parallel() || thread_count() == 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) {
    try {
      f(i);
    } catch (...) {
#pragma omp critical
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// Calls f(begin, end) over [0, n) in pieces of `grain`: for loops whose single step is short.
template <class F>
void parallel_ranges(int64_t n, int64_t grain, const F& f) {
  const int64_t pieces = (n + grain - 1) / grain;
  parallel_for(pieces, [&](int64_t i) { f(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace weft
