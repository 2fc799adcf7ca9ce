// Work in a process of its own: for calls into a library that damaged input can crash.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace weft {

struct ChildResult {
  bool ended_itself = true;  // false: a signal ended it, or it was out of time
  std::string message;       // "" if the work returned; else what it threw, or what ended it

  bool ok() const { return ended_itself && message.empty(); }
};

// Runs `work` in a forked copy of this process and waits for its end. A crash, or more than so many
// seconds of the processor's time, ends the copy alone. The copy has only the calling thread, so
// that `work` must wait for no other, allocate no Tensor and touch no GPU; what it changes in
// memory is gone. Where the system has no room for a copy, `work` runs here: it is then as safe as
// it is by itself.
ChildResult in_child(const std::function<void()>& work, int64_t processor_seconds);

}  // namespace weft
