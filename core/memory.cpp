// Nothing here may allocate where memory has just run out: files are read with read(2) into a
// buffer on the stack.
#include "core/memory.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "core/error.h"

namespace weft {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

std::atomic<int64_t> held_at_failure{0};

// The first number behind `key` in a file; `absent` where there is none.
int64_t number_in(const char* path, const char* key, int64_t absent) {
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return absent;
  std::array<char, 4096> text{};
  const ssize_t n = ::read(file, text.data(), text.size() - 1);
  ::close(file);
  const char* const at = n > 0 ? std::strstr(text.data(), key) : nullptr;
  if (!at) return absent;
  char* end = nullptr;
  const long long number = std::strtoll(at + std::strlen(key), &end, 10);
  return end == at + std::strlen(key) ? absent : number;  // "max"
}

// Of address space, which is what ulimit -v counts.
int64_t held() { return number_in("/proc/self/statm", "", 0) * ::sysconf(_SC_PAGESIZE); }

int64_t limit() {
  rlimit most{};
  if (::getrlimit(RLIMIT_AS, &most) != 0 || most.rlim_cur == RLIM_INFINITY) return kUnlimited;
  return static_cast<int64_t>(std::min<rlim_t>(most.rlim_cur, kUnlimited));
}

}  // namespace

int64_t available_memory() {
  int64_t free = number_in("/proc/meminfo", "MemAvailable:", kUnlimited >> 10) << 10;
  if (limit() != kUnlimited) free = std::min(free, limit() - held());
  const int64_t group = number_in("/sys/fs/cgroup/memory.max", "", kUnlimited);
  if (group != kUnlimited)
    free = std::min(free, group - number_in("/sys/fs/cgroup/memory.current", "", 0));
  return std::max<int64_t>(0, free);
}

void note_failed_allocations() {
  std::set_new_handler([] {
    held_at_failure = held();
    throw std::bad_alloc();
  });
}

std::string out_of_memory_text() {
  std::string text = "out of memory: the system refused more";
  if (held_at_failure > 0) text += concat(" when ", held_at_failure >> 20, " MiB were taken");
  if (limit() != kUnlimited) text += concat("; ulimit -v allows ", limit() >> 20, " MiB");
  return text + "; use a smaller batch, context, vocabulary or text, or a machine with more";
}

}  // namespace weft
