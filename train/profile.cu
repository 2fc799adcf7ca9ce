// CUPTI, the profiling library of the CUDA toolkit, opened when it is asked for.
#include "train/profile.h"

#include <cupti.h>
#include <cxxabi.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "core/cuda.cuh"
#include "core/library.h"
#include "core/trace.h"

namespace weft::train {
namespace {

struct Library {
  decltype(&cuptiActivityRegisterCallbacks) callbacks;
  decltype(&cuptiActivityEnable) enable;
  decltype(&cuptiActivityDisable) disable;
  decltype(&cuptiActivityFlushAll) flush;
  decltype(&cuptiActivityGetNextRecord) next;
  decltype(&cuptiGetTimestamp) timestamp;
};

const Library& library() {
  static const Library all = [] {
    const std::string name = concat("libcupti.so.", CUDART_VERSION / 1000);
    void* const handle = open_library({name});
    require(handle != nullptr, name, " was not found: it comes with the CUDA toolkit (CUPTI). ",
            "Install it, name its folder in LD_LIBRARY_PATH, or leave out --profile");
    Library l{};
    find_function(handle, "cuptiActivityRegisterCallbacks", l.callbacks);
    find_function(handle, "cuptiActivityEnable", l.enable);
    find_function(handle, "cuptiActivityDisable", l.disable);
    find_function(handle, "cuptiActivityFlushAll", l.flush);
    find_function(handle, "cuptiActivityGetNextRecord", l.next);
    find_function(handle, "cuptiGetTimestamp", l.timestamp);
    return l;
  }();
  return all;
}

struct Record {
  std::mutex mutex;
  std::vector<TraceBar> bars;
  std::vector<std::pair<std::string, uint64_t>> open;  // operations of the host under way
};
Record& record() {
  static Record all;
  return all;
}

// "void weft::kernels::(anonymous namespace)::update(...)" as "update".
std::string short_name(const char* mangled) {
  int status = 0;
  char* const plain = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 ? plain : mangled;
  std::free(plain);
  name = name.substr(0, name.rfind('('));
  const size_t arguments = name.find('<');
  const size_t colons = name.substr(0, arguments).rfind("::");
  return colons == std::string::npos ? name : name.substr(colons + 2);
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* records) {
  *size = size_t{4} << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, *size));
  *records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  Record& r = record();
  const std::lock_guard lock(r.mutex);
  CUpti_Activity* a = nullptr;
  while (library().next(buffer, valid, &a) == CUPTI_SUCCESS) {
    if (a->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto* const k = reinterpret_cast<const CUpti_ActivityKernel9*>(a);
      r.bars.push_back({short_name(k->name), k->start, k->end, true});
    } else if (a->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      const auto* const c = reinterpret_cast<const CUpti_ActivityMemcpy5*>(a);
      r.bars.push_back({"copy", c->start, c->end, true});
    } else if (a->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
      const auto* const f = reinterpret_cast<const CUpti_ActivityMemset4*>(a);
      r.bars.push_back({"fill", f->start, f->end, true});
    }
  }
  std::free(buffer);
}

void enter(const char* name) {
  nvtxRangePushA(name);
  uint64_t now = 0;
  library().timestamp(&now);
  Record& r = record();
  const std::lock_guard lock(r.mutex);
  r.open.emplace_back(name, now);
}

void leave() {
  nvtxRangePop();
  uint64_t now = 0;
  library().timestamp(&now);
  Record& r = record();
  const std::lock_guard lock(r.mutex);
  r.bars.push_back({r.open.back().first, r.open.back().second, now, false});
  r.open.pop_back();
}

constexpr CUpti_ActivityKind kKinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                                         CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET};
constexpr TraceListener kListener{enter, leave};

GpuUse use_of(std::vector<TraceBar> bars, uint64_t from) {
  std::erase_if(bars, [from](const TraceBar& b) { return !b.on_gpu || b.begin < from; });
  std::sort(bars.begin(), bars.end(),
            [](const TraceBar& a, const TraceBar& b) { return a.begin < b.begin; });
  GpuUse use;
  if (bars.empty()) return use;
  std::map<std::string, GpuUse::Part> parts;
  uint64_t reached = bars[0].begin, busy = 0;
  for (const TraceBar& b : bars) {
    if (b.end > reached) busy += b.end - std::max(b.begin, reached);
    reached = std::max(reached, b.end);
    GpuUse::Part& p = parts[b.name];
    p.name = b.name;
    p.seconds += static_cast<double>(b.end - b.begin) * 1e-9;
    ++p.count;
  }
  use.seconds = static_cast<double>(reached - bars[0].begin) * 1e-9;
  use.busy = static_cast<double>(busy) * 1e-9;
  use.kernels = static_cast<int64_t>(bars.size());
  for (const auto& [name, p] : parts) use.parts.push_back(p);
  std::sort(use.parts.begin(), use.parts.end(),
            [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return use;
}

class CuptiProfiler final : public Profiler {
 public:
  CuptiProfiler() {
    require(library().callbacks(give_buffer, take_buffer) == CUPTI_SUCCESS,
            "CUPTI does not start; is another profiler at work?");
  }
  ~CuptiProfiler() override { trace_listener = nullptr; }

  void start() override {
    cuda_check(cudaDeviceSynchronize());
    record().bars.clear();
    settled_ = 0;
    for (const CUpti_ActivityKind kind : kKinds)
      require(library().enable(kind) == CUPTI_SUCCESS,
              "CUPTI: it may not record; profiling may be "
              "kept to the administrator (NVreg_RestrictProfilingToAdminUsers)");
    trace_listener = &kListener;
  }

  void settle() override { library().timestamp(&settled_); }

  Profile stop() override {
    cuda_check(cudaDeviceSynchronize());
    trace_listener = nullptr;
    library().flush(0);
    for (const CUpti_ActivityKind kind : kKinds) library().disable(kind);
    const std::lock_guard lock(record().mutex);
    return {use_of(record().bars, settled_), record().bars};
  }

 private:
  uint64_t settled_ = 0;
};

}  // namespace

std::unique_ptr<Profiler> make_profiler() { return std::make_unique<CuptiProfiler>(); }

}  // namespace weft::train
