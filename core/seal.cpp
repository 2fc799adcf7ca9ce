#include "core/seal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/hash.h"

namespace weft {
namespace {

constexpr int64_t kBytes = 64;
constexpr size_t kBuffer = size_t{1} << 20;
constexpr std::string_view kStart = "weft seal 1 xxh64 ";

class Bytes {
 public:
  Bytes(const std::string& path, int flags)
      : path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC)) {
    require(fd_ >= 0, path, ": cannot be read: ", std::strerror(errno));
  }
  ~Bytes() { close(); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  bool close() {
    const int fd = std::exchange(fd_, -1);
    return fd < 0 || ::close(fd) == 0;
  }

  int64_t size() const {
    struct stat status {};
    require(::fstat(fd_, &status) == 0, path_, ": cannot be read: ", std::strerror(errno));
    return status.st_size;
  }

  // Fewer than asked for at the file's end.
  size_t read(int64_t at, char* to, size_t bytes) const {
    size_t done = 0;
    while (done < bytes) {
      const ssize_t n = ::pread(fd_, to + done, bytes - done, at + static_cast<int64_t>(done));
      if (n < 0 && errno == EINTR) continue;
      require(n >= 0, path_, ": cannot be read: ", std::strerror(errno));
      if (n == 0) break;
      done += static_cast<size_t>(n);
    }
    return done;
  }

  void write(int64_t at, std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), at);
      if (n < 0 && errno == EINTR) continue;
      require(n > 0, path_, ": cannot be written: ", std::strerror(n < 0 ? errno : ENOSPC));
      bytes.remove_prefix(static_cast<size_t>(n)), at += n;
    }
  }

  uint64_t hash(int64_t size) const {
    ::posix_fadvise(fd_, 0, size, POSIX_FADV_SEQUENTIAL);
    std::vector<char> buffer(kBuffer);
    Hash64 hash;
    for (int64_t at = 0; at < size;) {
      const auto wanted = static_cast<size_t>(std::min<int64_t>(size - at, kBuffer));
      const size_t n = read(at, buffer.data(), wanted);
      hash.update(buffer.data(), n);
      if (n < wanted) break;  // somebody makes it shorter: the sum will not fit
      at += static_cast<int64_t>(n);
    }
    return hash.digest();
  }

 private:
  std::string path_;
  int fd_;
};

std::string seal_for(uint64_t hash, int64_t size) {
  const std::string digits = std::to_string(size);
  return concat(kStart, to_hex(hash), " bytes ", std::string(22 - digits.size(), '0'), digits,
                "\n");
}

}  // namespace

void put_seal(const std::string& path) {
  Bytes file(path, O_RDWR);
  const int64_t size = file.size();
  file.write(size, seal_for(file.hash(size), size));
  require(file.close(), path, ": cannot be written: ", std::strerror(errno));
}

Seal seal_of(const std::string& path) {
  const Bytes file(path, O_RDONLY);
  const int64_t size = file.size() - kBytes;
  if (size < 0) return Seal::none;
  std::string seal(kBytes, '\0');
  seal.resize(file.read(size, seal.data(), kBytes));
  if (!seal.starts_with(kStart)) return Seal::none;
  return seal == seal_for(file.hash(size), size) ? Seal::holds : Seal::broken;
}

}  // namespace weft
