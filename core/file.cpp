#include "core/file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "core/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMark = ".tmp-";

std::string reason(int code) { return std::strerror(code); }

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }

 private:
  int fd_;
};

std::string folder_of(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace

std::string read_file(const std::string& path) {
  std::error_code ignored;
  require(!fs::is_directory(path, ignored), path, ": is a folder, expected a file");
  const Descriptor file(path, O_RDONLY);
  require(file.open(), path, ": cannot be read: ", reason(errno));
  std::string bytes;
  size_t done = 0;
  struct stat status {};
  if (::fstat(file.get(), &status) == 0 && status.st_size > 0)
    bytes.resize(static_cast<size_t>(status.st_size) + 1);  // + 1: the end is seen at once
  for (;;) {
    if (done == bytes.size()) bytes.resize(bytes.size() + 65536);
    const ssize_t n = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    require(n >= 0, path, ": cannot be read: ", reason(errno));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

PendingFile::PendingFile(const std::string& path) : path_(path) {
  static std::atomic<int> count{0};
  const int nth = count++;  // two threads may write the same path; the last rename wins
  temporary_ = path + (nth ? "." + std::to_string(nth) : "") + std::string(kMark) +
               std::to_string(::getpid());
  std::error_code ignored;
  require(!fs::is_directory(path, ignored), path, ": is a folder, expected a file to write");
  const std::string folder = folder_of(path);
  require(fs::is_directory(folder, ignored), path, ": cannot be written: there is no folder \"",
          folder, "\"");
  const Descriptor file(temporary_, O_WRONLY | O_CREAT | O_TRUNC);
  require(file.open(), path, ": cannot be written: ", reason(errno));
}

PendingFile::~PendingFile() {
  if (!committed_) ::unlink(temporary_.c_str());
}

void PendingFile::commit() {
  {
    const Descriptor file(temporary_, O_RDWR);
    require(file.open() && ::fsync(file.get()) == 0, path_, ": cannot be written: ", reason(errno));
  }
  require(::rename(temporary_.c_str(), path_.c_str()) == 0, path_,
          ": cannot be put in place: ", reason(errno));
  committed_ = true;
  // The name itself reaches the disk with its folder. Some file systems refuse this: then the
  // rename is as durable as they make it.
  const Descriptor folder(folder_of(path_), O_RDONLY | O_DIRECTORY);
  if (folder.open()) ::fsync(folder.get());
}

void write_file(const std::string& path, std::string_view bytes) {
  PendingFile pending(path);
  {
    const Descriptor file(pending.temporary(), O_WRONLY);
    require(file.open(), path, ": cannot be written: ", reason(errno));
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = ::write(file.get(), bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      require(n > 0, path, ": cannot be written: ", reason(errno));
      done += static_cast<size_t>(n);
    }
  }
  pending.commit();
}

int remove_abandoned_files(const std::string& folder) {
  int removed = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const size_t at = name.rfind(kMark);
    if (at == std::string::npos || !entry.is_regular_file(error)) continue;
    const char* begin = name.data() + at + kMark.size();
    const char* end = name.data() + name.size();
    pid_t pid = 0;
    const auto parsed = std::from_chars(begin, end, pid);
    if (begin == end || parsed.ptr != end || parsed.ec != std::errc{} || pid <= 0) continue;
    if (::kill(pid, 0) != 0 && errno == ESRCH && fs::remove(entry.path(), error)) ++removed;
  }
  return removed;
}

}  // namespace weft
