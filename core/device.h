// Devices, and the few verbs that a device must know.
// `cpu` computes. `meta` holds no memory and computes nothing, but follows every shape and every
// allocation, so that a training step can be planned before it is run. `cuda` stands behind the same
// interface: each verb that touches memory takes the stream it is ordered on, and nothing here waits
// except synchronize().
#pragma once

#include <cstddef>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>

namespace weft {

enum class DeviceType : uint8_t { cpu, meta, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;  // which GPU; 0 elsewhere

  bool is_meta() const { return type == DeviceType::meta; }
  bool is_cpu() const { return type == DeviceType::cpu; }
  bool operator==(const Device&) const = default;
};

inline constexpr Device kCpu{DeviceType::cpu, 0};
inline constexpr Device kMeta{DeviceType::meta, 0};

std::ostream& operator<<(std::ostream& out, Device device);

// "cpu" or "meta" ("cuda" where built for it). Throws Error that lists what there is.
Device device_from(std::string_view name);

// An order of work on a device. The CPU and meta devices have one, which is always done.
struct Stream {
  void* handle = nullptr;
};

// What a device must provide. One object per device lives for the whole run.
class Backend {
 public:
  virtual ~Backend() = default;
  // At least 64-byte aligned. Returns null when there is no memory: the allocator then frees its
  // cache and asks again. A meta device returns null for every size, and no one may look at it.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* data, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes, Stream stream) = 0;
  virtual void zero(void* to, size_t bytes, Stream stream) = 0;
  virtual void synchronize(Stream stream) = 0;
};

// Throws Error for a device that this build lacks.
Backend& backend(Device device);

// The stream that this thread's work on the device is ordered on; StreamScope changes it.
Stream current_stream(Device device);

class StreamScope {
 public:
  explicit StreamScope(Stream stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  Stream before_;
};

}  // namespace weft
