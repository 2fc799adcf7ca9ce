#include "core/system.h"

#include <unistd.h>

#include <filesystem>
#include <system_error>
#include <utility>

namespace weft {

std::string reason_of(int code) { return std::generic_category().message(code); }

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

Descriptor::Descriptor(const std::string& path, int flags, unsigned mode) {
  do {
    fd_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    code_ = code_of(fd_);
  } while (code_ == EINTR);  // a signal came while a FIFO waited for its reader
}

Descriptor::Descriptor(Descriptor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), code_(other.code_) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_), std::swap(code_, other.code_);
  return *this;
}

int Descriptor::write(const char* bytes, size_t n) const {
  while (n > 0) {
    const ssize_t written = ::write(fd_, bytes, n);
    const int code = code_of(written);
    if (code == EINTR) continue;
    if (code != 0) return code;
    if (written == 0) return EIO;  // no progress and no reason
    bytes += written, n -= static_cast<size_t>(written);
  }
  return 0;
}

int Descriptor::read(char* bytes, size_t n, size_t& done) const {
  for (;;) {
    const ssize_t count = ::read(fd_, bytes, n);
    const int code = code_of(count);
    if (code == EINTR) continue;
    done = count > 0 ? static_cast<size_t>(count) : 0;
    return code;
  }
}

// Linux closes even where it is interrupted.
int Descriptor::close() {
  if (fd_ < 0) return 0;
  const int code = code_of(::close(std::exchange(fd_, -1)));
  return code == EINTR ? 0 : code;
}

}  // namespace weft
