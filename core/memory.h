// What memory this process may still take, and what it said when there was none.
#pragma once

#include <cstdint>
#include <string>

namespace weft {

// Bytes: the least of what the machine has free, what the process's own limit (ulimit -v) leaves,
// and what its control group leaves.
int64_t available_memory();

// From now on a failed `new` notes how much memory the process held, and throws std::bad_alloc as
// ever.
void note_failed_allocations();

// After std::bad_alloc: "out of memory: ...", with what was noted.
std::string out_of_memory_text();

}  // namespace weft
