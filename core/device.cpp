// The CPU and the meta device.
#include "core/device.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/error.h"

namespace weft {
namespace {

class CpuBackend final : public Backend {
 public:
  void* allocate(size_t bytes) override {
    return ::operator new(bytes, std::align_val_t(64), std::nothrow);
  }
  void release(void* data, size_t) override { ::operator delete(data, std::align_val_t(64)); }
  void copy(void* to, const void* from, size_t bytes, Stream) override {
    if (bytes) std::memcpy(to, from, bytes);
  }
  void fill(void* to, int byte, size_t bytes, Stream) override {
    if (bytes) std::memset(to, byte, bytes);
  }
  void synchronize(Stream) override {}
  int64_t memory() const override {
    return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  }
};

class MetaBackend final : public Backend {
 public:
  void* allocate(size_t) override { return nullptr; }
  void release(void*, size_t) override {}
  void copy(void*, const void*, size_t, Stream) override {}
  void fill(void*, int, size_t, Stream) override {}
  void synchronize(Stream) override {}
  int64_t memory() const override { return 0; }
};

thread_local Stream stream_of_thread;

}  // namespace

std::ostream& operator<<(std::ostream& out, Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return out << "cpu";
    case DeviceType::meta:
      return out << "meta";
    case DeviceType::cuda:
      return out << "cuda:" << device.index;
  }
  return out;
}

Device device_from(std::string_view name) {
  if (name == "cpu") return kCpu;
  if (name == "meta") return kMeta;
  if (name == "auto") return cuda_device_count() > 0 ? kCuda : kCpu;
  if (name == "cuda") name = "cuda:0";
  const std::string_view index = name.substr(std::min(name.size(), size_t{5}));
  require(name.starts_with("cuda:") && !index.empty() && index.size() < 3 &&
              index.find_first_not_of("0123456789") == std::string_view::npos,
          "unknown device \"", name, "\"; known: cpu cuda cuda:N auto");
  const int i = std::stoi(std::string(index));
  const std::string why = why_no_cuda(i);
  require(why.empty(), "device ", name, ": ", why);
  return {DeviceType::cuda, i};
}

int64_t memory_of(Device device) { return backend(device).memory(); }

Device meta_of(Device device) { return device.takes_cuda_forms() ? kMetaCuda : kMeta; }

Backend& backend(Device device) {
  static CpuBackend cpu;
  static MetaBackend meta;
  if (device.is_cpu()) return cpu;
  if (device.is_meta()) return meta;
  if constexpr (has_cuda) return cuda_backend(device.index);
  fail("device ", device, ": ", why_no_cuda());
}

#ifndef WEFT_HAS_CUDA
int cuda_device_count() { return 0; }
std::string why_no_cuda(int) {
  return "this program was built without CUDA; build it where a CUDA toolkit is installed (nvcc)";
}
#endif

Stream current_stream(Device) { return stream_of_thread; }

StreamScope::StreamScope(Stream stream) : before_(stream_of_thread) { stream_of_thread = stream; }
StreamScope::~StreamScope() { stream_of_thread = before_; }

}  // namespace weft
