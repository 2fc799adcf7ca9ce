// The process that writes a temporary file holds a lock on it to the end. A process that gets this
// lock therefore knows that the writer is gone, and may remove the file.
#include "core/temporary.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <string_view>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/hash.h"
#include "core/lock.h"
#include "core/system.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMark = ".tmp-";
constexpr size_t kDigits = 8, kTail = kMark.size() + kDigits + 1 + kDigits;
constexpr time_t kLongAgo = 3600;  // seconds

enum class Owner { alive, gone, unknown };

uint64_t chance() {
  uint64_t bits = 0;
  if (::getrandom(&bits, sizeof bits, 0) != sizeof bits)
    bits = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  return bits;
}

std::string machine_tag() { return to_hex(hash64(machine_id())).substr(0, kDigits); }

// "a.h5.tmp-0123abcd-4567cdef" -> "a.h5"; empty for every other name.
std::string_view target_of(std::string_view name) {
  const auto digits = [](std::string_view text) {
    return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  };
  if (name.size() <= kTail) return {};
  const std::string_view tail = name.substr(name.size() - kTail);
  const bool ours = tail.starts_with(kMark) && digits(tail.substr(kMark.size(), kDigits)) &&
                    tail[kMark.size() + kDigits] == '-' &&
                    digits(tail.substr(kMark.size() + kDigits + 1));
  return ours ? name.substr(0, name.size() - kTail) : std::string_view();
}

// The files under way in a folder: all, or those of one file. A folder that cannot be listed has
// none that could be removed.
std::vector<std::string> under_way(const fs::path& folder, const std::string& target = "") {
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    const std::string_view of = target_of(name);
    if (!of.empty() && (target.empty() || of == target)) found.push_back(at->path().string());
  }
  return found;
}

// Removes the file if its owner is gone.
Owner settle(const std::string& path, bool alone) {
  const int file = ::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return Owner::unknown;
  struct stat status {};
  Owner owner = Owner::unknown;
  const Lock lock = lock_file(file);
  if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    owner = Owner::unknown;  // not made by us
  } else if (lock == Lock::held) {
    owner = Owner::alive;
  } else {
    const bool of_here = lock == Lock::ours && path.find(kMark.data() + machine_tag() + "-",
                                                         path.size() - kTail) != std::string::npos;
    if (alone || of_here || std::time(nullptr) - status.st_mtime > kLongAgo) owner = Owner::gone;
  }
  if (owner == Owner::gone && (!has_name(file, path) || ::unlink(path.c_str()) != 0))
    owner = Owner::unknown;
  ::close(file);
  return owner;
}

// Removes what killed writers of `path` left. Does a living one write it?
bool has_writer(const std::string& path, const std::string& but = "") {
  bool alive = false;
  for (const std::string& file : under_way(folder_of(path), fs::path(path).filename().string()))
    if (fs::path(file).filename() != fs::path(but).filename())
      alive = settle(file, false) == Owner::alive || alive;
  return alive;
}

}  // namespace

std::string temporary_name(const std::string& path) {
  return concat(path, kMark, machine_tag(), "-", to_hex(chance()).substr(0, kDigits));
}

// Two that begin at once may see each other: then both draw back, and try again at times of their
// own.
TemporaryFile::TemporaryFile(const std::string& path) {
  for (int tries = 0; tries < 20 && !has_writer(path); ++tries) {
    make(path);
    if (!has_writer(path, name_)) return;
    remove();
    std::this_thread::sleep_for(std::chrono::milliseconds(1 + chance() % 64));
  }
  fail(path, ": another process is writing it; wait for its end, or write another file");
}

TemporaryFile::~TemporaryFile() { remove(); }

void TemporaryFile::make(const std::string& path) {
  for (;;) {
    name_ = temporary_name(path);
    descriptor_ = ::open(name_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    const int code = code_of(descriptor_);
    if (code == EEXIST || code == EINTR) continue;
    require_call(code, path, ": cannot be written");
    // Between open and lock it looks abandoned, and somebody may have removed it.
    if (lock_file(descriptor_) != Lock::held && has_name(descriptor_, name_)) return;
    remove();
  }
}

void TemporaryFile::remove() {
  if (descriptor_ < 0) return;
  if (has_name(descriptor_, name_)) ::unlink(name_.c_str());
  ::close(descriptor_);
  descriptor_ = -1;
}

int remove_abandoned_files(const std::string& folder, bool alone) {
  int removed = 0;
  for (const std::string& file : under_way(folder)) removed += settle(file, alone) == Owner::gone;
  return removed;
}

}  // namespace weft
