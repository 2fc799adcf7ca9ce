// Caching by exact rounded size: sizes repeat from step to step, so lists by size waste nothing.
#include "core/allocator.h"

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <unordered_map>

#include "core/error.h"
#include "core/sizes.h"

namespace weft {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kMost = int64_t{1} << 56;  // bytes: rounding and sums stay within 64 bits

// Names of owners, given out once; an owner is an index into them.
struct OwnerNames {
  std::mutex mutex;
  std::vector<std::string> names{"other"};
  std::unordered_map<std::string, int> indices{{"other", 0}};

  int index_of(std::string_view name) {
    const std::lock_guard lock(mutex);
    const auto [found, fresh] = indices.emplace(std::string(name), static_cast<int>(names.size()));
    if (fresh) names.emplace_back(name);
    return found->second;
  }
  std::string name_of(int index) {
    const std::lock_guard lock(mutex);
    return names[static_cast<size_t>(index)];
  }
};

OwnerNames& owners() {
  static OwnerNames all;
  return all;
}

thread_local int owner_of_thread = 0;

std::vector<Owned> largest_first(const std::vector<int64_t>& by_owner) {
  std::vector<Owned> list;
  for (size_t i = 0; i < by_owner.size(); ++i)
    if (by_owner[i] > 0) list.push_back({owners().name_of(static_cast<int>(i)), by_owner[i]});
  std::stable_sort(list.begin(), list.end(),
                   [](const Owned& a, const Owned& b) { return a.bytes > b.bytes; });
  return list;
}

}  // namespace

struct Allocator::State {
  Device device;
  mutable std::mutex mutex;
  std::map<int64_t, std::vector<void*>> cache;
  int64_t current = 0, peak = 0, cached = 0;
  std::vector<int64_t> by_owner, at_peak;
  std::vector<int> changed;  // owners who hold something else than at the peak; each stands here
  std::vector<bool> is_changed;  // once. A new peak costs what changed since, not all there are
  bool poison = false;
  int64_t emptied = 0;

  void hold(int owner, int64_t bytes) {
    const auto i = static_cast<size_t>(owner);
    if (by_owner.size() <= i) {
      by_owner.resize(i + 1, 0);
      at_peak.resize(i + 1, 0);
      is_changed.resize(i + 1, false);
    }
    by_owner[i] += bytes;
    current += bytes;
    if (!is_changed[i]) changed.push_back(owner);
    is_changed[i] = true;
  }
  void take_peak() {
    peak = current;
    for (const int owner : changed) {
      const auto i = static_cast<size_t>(owner);
      at_peak[i] = by_owner[i];
      is_changed[i] = false;
    }
    changed.clear();
  }

  void drop_cache() {
    for (auto& [bytes, blocks] : cache)
      for (void* data : blocks) backend(device).release(data, static_cast<size_t>(bytes));
    cache.clear();
    cached = 0;
    ++emptied;
  }
};

Allocator::Allocator(Device device) : state_(new State{}) { state_->device = device; }

Allocator::~Allocator() {
  state_->drop_cache();
  delete state_;
}

Allocator::Block Allocator::allocate(int64_t bytes) {
  require(bytes >= 0 && bytes <= kMost, owners().name_of(owner_of_thread), " asked for ",
          bytes < 0 ? "more than 2^63" : std::to_string(bytes),
          " bytes, more than any machine has; a size in the recipe, an option or a file is too "
          "large");
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  // At least one unit, so that an empty tensor has an address too.
  const int64_t rounded = std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
  if (s.current > std::numeric_limits<int64_t>::max() - rounded)
    too_many(concat(bytes, " bytes that ", owners().name_of(owner_of_thread), " asks for on ",
                    s.device, " beside ", s.current));
  Block block{nullptr, rounded, owner_of_thread};
  if (!s.device.is_meta()) {
    auto found = s.cache.find(rounded);
    if (found != s.cache.end() && !found->second.empty()) {
      block.data = found->second.back();
      found->second.pop_back();
      s.cached -= rounded;
    } else {
      block.data = backend(s.device).allocate(static_cast<size_t>(rounded));
      if (!block.data) {
        s.drop_cache();
        block.data = backend(s.device).allocate(static_cast<size_t>(rounded));
      }
      if (!block.data) {
        std::string held;
        for (const Owned& o : largest_first(s.by_owner))
          held += concat("\n  ", o.bytes / 1048576, " MiB held by ", o.owner);
        throw OutOfMemory(concat(
            "out of memory on ", s.device, ": ", owners().name_of(owner_of_thread), " asked for ",
            rounded / 1048576, " MiB, ", s.current / 1048576, " MiB are in use:", held,
            "\nUse a smaller batch or context; `weft inspect RECIPE` shows what "
            "a recipe needs."));
      }
    }
    if (s.poison)
      backend(s.device).fill(block.data, 0xff, static_cast<size_t>(rounded),
                             current_stream(s.device));
  }
  s.hold(block.owner, rounded);
  if (s.current > s.peak) s.take_peak();
  return block;
}

void Allocator::release(const Block& block) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  s.hold(block.owner, -block.bytes);
  if (block.data) {
    s.cache[block.bytes].push_back(block.data);
    s.cached += block.bytes;
  }
}

MemoryStats Allocator::stats() const {
  const std::lock_guard lock(state_->mutex);
  return {state_->current, state_->peak, state_->cached, largest_first(state_->at_peak)};
}

void Allocator::reset_peak() {
  const std::lock_guard lock(state_->mutex);
  state_->take_peak();
}

void Allocator::empty_cache() {
  const std::lock_guard lock(state_->mutex);
  state_->drop_cache();
}

int64_t Allocator::times_emptied() const {
  const std::lock_guard lock(state_->mutex);
  return state_->emptied;
}

void Allocator::set_poison(bool on) {
  const std::lock_guard lock(state_->mutex);
  state_->poison = on;
}

Allocator& allocator(Device device) {
  // Never destroyed: tensors with static lifetime may outlive any order of destruction.
  static Allocator* const cpu = new Allocator(kCpu);
  static Allocator* const meta = new Allocator(kMeta);
  static Allocator* const meta_cuda = new Allocator(kMetaCuda);
  if (device.is_cpu()) return *cpu;
  if (device.is_meta()) return device == kMeta ? *meta : *meta_cuda;
  static std::mutex mutex;
  static std::map<int, Allocator*>* const gpus = new std::map<int, Allocator*>;
  const std::lock_guard lock(mutex);
  Allocator*& gpu = (*gpus)[device.index];
  if (!gpu) {
    backend(device);  // throws where there is none
    gpu = new Allocator(device);
  }
  return *gpu;
}

OwnerScope::OwnerScope(std::string_view owner) : before_(owner_of_thread) {
  owner_of_thread = owners().index_of(owner);
}
OwnerScope::~OwnerScope() { owner_of_thread = before_; }

std::string current_owner() { return owners().name_of(owner_of_thread); }

}  // namespace weft
