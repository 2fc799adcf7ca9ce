// The CPU and the meta device.
#include "core/device.h"

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
  void zero(void* to, size_t bytes, Stream) override {
    if (bytes) std::memset(to, 0, bytes);
  }
  void synchronize(Stream) override {}
};

class MetaBackend final : public Backend {
 public:
  void* allocate(size_t) override { return nullptr; }
  void release(void*, size_t) override {}
  void copy(void*, const void*, size_t, Stream) override {}
  void zero(void*, size_t, Stream) override {}
  void synchronize(Stream) override {}
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
  fail("unknown device \"", name, "\"; this build has: cpu meta");
}

Backend& backend(Device device) {
  static CpuBackend cpu;
  static MetaBackend meta;
  if (device.is_cpu()) return cpu;
  if (device.is_meta()) return meta;
  fail("device ", device, ": this build has no such device; use cpu");
}

Stream current_stream(Device) { return stream_of_thread; }

StreamScope::StreamScope(Stream stream) : before_(stream_of_thread) { stream_of_thread = stream; }
StreamScope::~StreamScope() { stream_of_thread = before_; }

}  // namespace weft
