// Calls of the operating system: why one failed is read before anything else can change it, and
// told.
#pragma once

#include <fcntl.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "core/error.h"

namespace weft {

// The reason of a call that has just returned: 0, or its errno. Written around the call itself, as
// `code_of(::fsync(fd))`: what stands beside it as an argument may run before or after it.
inline int code_of(int64_t result) noexcept { return result < 0 ? errno : 0; }

// "No space left on device".
std::string reason_of(int code);

// Throws Error of the parts and the reason, unless the code is 0.
template <class... Parts>
void require_call(int code, const Parts&... parts) {
  if (code != 0) [[unlikely]]
    fail(parts..., ": ", reason_of(code));
}

// The folder that a file lies in: "." for a bare name.
std::string folder_of(const std::string& path);

// An open file. It is closed at the end; who has written asks close() how that went.
class Descriptor {
 public:
  Descriptor() = default;
  Descriptor(const std::string& path, int flags, unsigned mode = 0666);
  explicit Descriptor(int fd, int code = 0) : fd_(fd), code_(code) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  int code() const { return code_; }  // why it is not open

  // Each returns 0, or the reason.
  int write(const char* bytes, size_t n) const;         // all of them
  int read(char* bytes, size_t n, size_t& done) const;  // at most n; none at the end of the file
  int close();

 private:
  int fd_ = -1, code_ = 0;
};

}  // namespace weft
