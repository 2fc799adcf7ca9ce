#include "core/seal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/hash.h"
#include "core/system.h"

namespace weft {
namespace {

constexpr int64_t kBytes = 64;
constexpr size_t kBuffer = size_t{1} << 20;
constexpr std::string_view kStart = "weft seal 1 xxh64 ";

class Bytes {
 public:
  Bytes(const std::string& path, int flags) : path_(path), file_(path, flags) {
    require_call(file_.code(), path, ": cannot be read");
  }

  int close() { return file_.close(); }

  int64_t size() const {
    struct stat status {};
    require_call(code_of(::fstat(file_.get(), &status)), path_, ": cannot be read");
    return status.st_size;
  }

  // Fewer than asked for at the file's end.
  size_t read(int64_t at, char* to, size_t bytes) const {
    size_t done = 0;
    while (done < bytes) {
      const ssize_t n =
          ::pread(file_.get(), to + done, bytes - done, at + static_cast<int64_t>(done));
      const int code = code_of(n);
      if (code == EINTR) continue;
      require_call(code, path_, ": cannot be read");
      if (n == 0) break;
      done += static_cast<size_t>(n);
    }
    return done;
  }

  void write(int64_t at, std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t n = ::pwrite(file_.get(), bytes.data(), bytes.size(), at);
      const int code = n == 0 ? ENOSPC : code_of(n);
      if (code == EINTR) continue;
      require_call(code, path_, ": cannot be written");
      bytes.remove_prefix(static_cast<size_t>(n)), at += n;
    }
  }

  uint64_t hash(int64_t size) const {
    ::posix_fadvise(file_.get(), 0, size, POSIX_FADV_SEQUENTIAL);
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
  Descriptor file_;
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
  require_call(file.close(), path, ": cannot be written");
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
