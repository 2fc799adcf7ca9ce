// Names for what runs: each operation stands in a scope, which a profiler may listen to. Without
// one a scope costs a comparison.
#pragma once

#include <string>

namespace weft {

struct TraceListener {
  void (*enter)(const char* name) = nullptr;
  void (*leave)() = nullptr;
};

// Of the whole program; null where nobody listens. Set while no other thread runs operations.
inline const TraceListener* trace_listener = nullptr;

class TraceScope {
 public:
  explicit TraceScope(const char* name) : listener_(trace_listener) {
    if (listener_) listener_->enter(name);
  }
  explicit TraceScope(const std::string& name) : TraceScope(name.c_str()) {}
  ~TraceScope() {
    if (listener_) listener_->leave();
  }
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  const TraceListener* listener_;
};

}  // namespace weft
