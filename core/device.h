// Devices, and the few verbs that a device must know.
// `cpu` and `cuda` compute. `meta` holds no memory and computes nothing, but follows every shape
// and every allocation, so that a training step can be planned before it is run: kMeta plans for
// the CPU, kMetaCuda for a GPU, whose operations want other memory. Each verb that touches memory
// takes the stream it is ordered on, and nothing here waits except synchronize().
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
  bool is_cuda() const { return type == DeviceType::cuda; }
  // The CUDA forms of operations run (or are planned) here.
  bool takes_cuda_forms() const { return is_cuda() || (is_meta() && index == 1); }
  bool operator==(const Device&) const = default;
};

inline constexpr Device kCpu{DeviceType::cpu, 0};
inline constexpr Device kMeta{DeviceType::meta, 0};
inline constexpr Device kMetaCuda{DeviceType::meta, 1};
inline constexpr Device kCuda{DeviceType::cuda, 0};

// Was this program built with a CUDA compiler? Calls into CUDA stand behind `if constexpr
// (has_cuda)`.
#ifdef WEFT_HAS_CUDA
inline constexpr bool has_cuda = true;
#else
inline constexpr bool has_cuda = false;
#endif

// How many GPUs this program can use: 0 without a driver, and in a build without CUDA.
int cuda_device_count();
// Empty where the GPU can be used, else what is missing and what to do, in one line.
std::string why_no_cuda(int index = 0);

std::ostream& operator<<(std::ostream& out, Device device);

// "cpu", "cuda", "cuda:1", "meta", or "auto": a GPU where one can be used, else the CPU. Throws
// Error that says what there is, or why there is no GPU.
Device device_from(std::string_view name);
// Bytes of memory that the device has, used or not; 0 where nobody knows (meta).
int64_t memory_of(Device device);
// The meta device that plans for `device`.
Device meta_of(Device device);

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
  virtual void fill(void* to, int byte, size_t bytes, Stream stream) = 0;
  virtual void synchronize(Stream stream) = 0;
  virtual int64_t memory() const = 0;
};

// Throws Error for a device that this build lacks.
Backend& backend(Device device);

// Of a GPU; defined in builds that have CUDA.
Backend& cuda_backend(int index);

// The stream that this thread's work on the device is ordered on; StreamScope changes it. The null
// handle stands for the device's own.
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
