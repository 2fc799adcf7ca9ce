// A caching allocator, one per device, that counts what it hands out: now, at most, and for whom.
// Freed blocks are kept by size and handed out again, so that a steady training step asks the
// system for nothing. The counts are of what callers hold, not of the cache, and follow the same
// rule on every device: hence the plan made on the meta device equals the real run to the byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/device.h"

namespace weft {

// Bytes held for one owner (a part of the model or of the run, named by OwnerScope).
struct Owned {
  std::string owner;
  int64_t bytes = 0;
};

struct MemoryStats {
  int64_t current = 0;         // bytes handed out and not returned
  int64_t peak = 0;            // the most that `current` was since reset_peak
  int64_t cached = 0;          // bytes kept for reuse
  std::vector<Owned> at_peak;  // who held what at the peak, largest first
};

class Allocator {
 public:
  explicit Allocator(Device device);
  ~Allocator();
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  struct Block {
    void* data = nullptr;
    int64_t bytes = 0;  // as counted: the size asked for, rounded up to 64
    int owner = 0;
  };

  // Uninitialised memory (NaN-filled when poison is on). Throws Error when there is none: the
  // message names who asked, how much, and who holds what.
  Block allocate(int64_t bytes);
  void release(const Block& block);

  MemoryStats stats() const;
  void reset_peak();
  void empty_cache();
  // How often the cache was given back to the system. A recorded CUDA graph holds addresses of
  // freed blocks: it is good only while this number stands.
  int64_t times_emptied() const;
  // Fills what is handed out with NaN bytes, so that tests see reads of unwritten memory.
  void set_poison(bool on);

 private:
  struct State;
  State* state_;
};

Allocator& allocator(Device device);

// Names the owner of what this thread allocates while the scope lives.
class OwnerScope {
 public:
  explicit OwnerScope(std::string_view owner);
  ~OwnerScope();
  OwnerScope(const OwnerScope&) = delete;
  OwnerScope& operator=(const OwnerScope&) = delete;

 private:
  int before_;
};

// The name given by the innermost OwnerScope of this thread ("other" where there is none).
std::string current_owner();

}  // namespace weft
