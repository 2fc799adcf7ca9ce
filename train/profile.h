// `weft train --profile FILE`: a few steady steps as a trace that Perfetto (ui.perfetto.dev) and
// chrome://tracing show: the kernels and copies of the GPU, and the operations on the host that
// started them. While it records, operations are NVTX ranges too. In builds that have CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace weft::train {

// What the GPU did between two moments.
struct GpuUse {
  double seconds = 0;  // from the first kernel's start to the last one's end
  double busy = 0;     // of these, with a kernel or a copy at work
  int64_t kernels = 0;
  struct Part {
    std::string name;
    double seconds = 0;
    int64_t count = 0;
  };
  std::vector<Part> parts;  // by kernel, longest first
};

// One bar of a trace; nanoseconds by CUPTI's clock, which the processes of one host share.
struct TraceBar {
  std::string name;
  uint64_t begin = 0, end = 0;
  bool on_gpu = false;
};

struct Profile {
  GpuUse use;
  std::vector<TraceBar> bars;
};

class Profiler {
 public:
  virtual ~Profiler() = default;
  virtual void start() = 0;
  // What began before now stays out of GpuUse: the first launch under a profiler is slow.
  virtual void settle() = 0;
  // Waits for the GPU, and says what it did.
  virtual Profile stop() = 0;
};

// Throws Error where CUPTI is not installed.
std::unique_ptr<Profiler> make_profiler();

std::string text(const GpuUse& use, size_t rows);

// Bars as a text that a rank sends to another, and back.
std::string packed(const std::vector<TraceBar>& bars);
std::vector<TraceBar> unpacked(const std::string& text);

// The bars of all ranks as JSON in the format of chrome://tracing: a process a rank.
std::string trace_of(const std::vector<std::vector<TraceBar>>& by_rank);

}  // namespace weft::train
