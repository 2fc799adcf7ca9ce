// A library that the tests load before the C library (LD_PRELOAD): it stands between a program and
// its calls of the system. By the environment it lets one call fail, or writes down what a loss of
// power could forget.
//   SHIM_FAIL=CALL:N:ERRNO:TEXT  the Nth CALL on a path that holds TEXT fails with ERRNO
//   SHIM_RECORD=FOLDER           calls on paths below SHIM_WATCH go to FOLDER/log, one a line, with
//                                the bytes of every flushed file in FOLDER/0, FOLDER/1, ...
// In the log: make FILE, folder FOLDER, flush FILE N, names FOLDER (a folder was flushed),
// rename A B, link A B, unlink FILE, told N (standard output, a file, has N bytes).
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <string>

namespace {

template <class F>
F* real(F*, const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

std::string of_descriptor(int fd) {
  char path[PATH_MAX];
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t n = readlink(link.c_str(), path, sizeof path);
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "";
}

std::string absolute(const char* path) {
  if (path[0] == '/') return path;
  char folder[PATH_MAX];
  return getcwd(folder, sizeof folder) ? std::string(folder) + "/" + path : path;
}

// True once: for the call that is to fail. errno is set then.
bool fails(const char* call, const std::string& path) {
  static const char* const wanted = getenv("SHIM_FAIL");
  static std::atomic<int> seen{0};
  if (!wanted) return false;
  char name[32] = "", text[256] = "";
  int nth = 0, code = 0;
  if (sscanf(wanted, "%31[^:]:%d:%d:%255s", name, &nth, &code, text) < 3) return false;
  if (strcmp(name, call) != 0 || path.find(text) == std::string::npos) return false;
  if (++seen != nth) return false;
  errno = code;
  return true;
}

// --- The record ----------------------------------------------------------------------------------

std::string watched(const std::string& path) {  // the path below the folder watched, or ""
  static const char* const folder = getenv("SHIM_WATCH");
  const std::string start = folder ? std::string(folder) + "/" : "";
  return folder && path.compare(0, start.size(), start) == 0 ? path.substr(start.size()) : "";
}

void note(const std::string& line, const std::string& bytes = "", bool with_bytes = false) {
  static const char* const folder = getenv("SHIM_RECORD");
  static std::mutex mutex;
  static int count = 0;
  if (!folder) return;
  static auto* const real_open = real(&::open, "open");
  static auto* const real_write = real(&::write, "write");
  static auto* const real_close = real(&::close, "close");
  const std::lock_guard lock(mutex);
  const auto append = [&](const std::string& path, const std::string& text) {
    const int fd = real_open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    for (size_t done = 0; fd >= 0 && done < text.size();) {
      const ssize_t n = real_write(fd, text.data() + done, text.size() - done);
      if (n <= 0) break;
      done += static_cast<size_t>(n);
    }
    if (fd >= 0) real_close(fd);
  };
  if (with_bytes) append(std::string(folder) + "/" + std::to_string(count), bytes);
  append(std::string(folder) + "/log",
         line + (with_bytes ? " " + std::to_string(count++) : "") + "\n");
}

void note_path(const char* what, const std::string& path, const std::string& to = "") {
  const int code = errno;
  const std::string name = watched(path), other = watched(to);
  if (!name.empty()) note(std::string(what) + " " + name + (to.empty() ? "" : " " + other));
  errno = code;
}

std::string bytes_of(const std::string& path) {
  static auto* const real_open = real(&::open, "open");
  static auto* const real_close = real(&::close, "close");
  std::string bytes;
  const int fd = real_open(path.c_str(), O_RDONLY | O_CLOEXEC);
  char buffer[65536];
  for (ssize_t n; fd >= 0 && (n = read(fd, buffer, sizeof buffer)) > 0;)
    bytes.append(buffer, static_cast<size_t>(n));
  if (fd >= 0) real_close(fd);
  return bytes;
}

void note_flush(int fd) {
  const int code = errno;
  const std::string path = of_descriptor(fd);
  struct stat status {};
  const bool folder = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
  if (folder && !watched(path + "/.").empty())
    note("names " + (watched(path).empty() ? "." : watched(path)));
  else if (!watched(path).empty())
    note("flush " + watched(path), bytes_of(path), true);
  errno = code;
}

template <class Open>
int opened(const char* path, int flags, const Open& open) {
  const std::string whole = absolute(path);
  if (fails("open", whole)) return -1;
  const bool fresh = (flags & O_CREAT) && access(path, F_OK) != 0;
  const int fd = open();
  if (fd >= 0 && fresh) note_path("make", whole);
  return fd;
}

}  // namespace

// --- Calls ---------------------------------------------------------------------------------------

extern "C" {

int open(const char* path, int flags, ...) {
  static auto* const real_open = real(&::open, "open");
  va_list more;
  va_start(more, flags);
  const mode_t mode = va_arg(more, mode_t);
  va_end(more);
  return opened(path, flags, [&] { return real_open(path, flags, mode); });
}

int open64(const char* path, int flags, ...) {
  static auto* const real_open64 = real(&::open64, "open64");
  va_list more;
  va_start(more, flags);
  const mode_t mode = va_arg(more, mode_t);
  va_end(more);
  return opened(path, flags, [&] { return real_open64(path, flags, mode); });
}

ssize_t write(int fd, const void* data, size_t n) {
  static auto* const real_write = real(&::write, "write");
  if (fails("write", of_descriptor(fd))) return -1;
  return real_write(fd, data, n);
}

int fflush(FILE* stream) {
  static auto* const real_fflush = real(&::fflush, "fflush");
  const int done = real_fflush(stream);
  const int code = errno;
  struct stat status {};
  if (stream == stdout && fstat(STDOUT_FILENO, &status) == 0 && S_ISREG(status.st_mode))
    note("told " + std::to_string(status.st_size));
  errno = code;
  return done;
}

ssize_t pwrite(int fd, const void* data, size_t n, off_t at) {
  static auto* const real_pwrite = real(&::pwrite, "pwrite");
  return fails("pwrite", of_descriptor(fd)) ? -1 : real_pwrite(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void* data, size_t n, off64_t at) {
  static auto* const real_pwrite64 = real(&::pwrite64, "pwrite64");
  return fails("pwrite", of_descriptor(fd)) ? -1 : real_pwrite64(fd, data, n, at);
}

int fsync(int fd) {
  static auto* const real_fsync = real(&::fsync, "fsync");
  if (fails("fsync", of_descriptor(fd))) return -1;
  const int done = real_fsync(fd);
  if (done == 0) note_flush(fd);
  return done;
}

int close(int fd) {
  static auto* const real_close = real(&::close, "close");
  const bool failing = fails("close", of_descriptor(fd));
  const int code = errno, done = real_close(fd);
  if (!failing) return done;
  errno = code;
  return -1;
}

int rename(const char* from, const char* to) {
  static auto* const real_rename = real(&::rename, "rename");
  if (fails("rename", absolute(to))) return -1;
  const int done = real_rename(from, to);
  if (done == 0) note_path("rename", absolute(from), absolute(to));
  return done;
}

int link(const char* from, const char* to) {
  static auto* const real_link = real(&::link, "link");
  if (fails("link", absolute(to))) return -1;
  const int done = real_link(from, to);
  if (done == 0) note_path("link", absolute(from), absolute(to));
  return done;
}

int unlink(const char* path) {
  static auto* const real_unlink = real(&::unlink, "unlink");
  const int done = real_unlink(path);
  if (done == 0) note_path("unlink", absolute(path));
  return done;
}

int remove(const char* path) {
  static auto* const real_remove = real(&::remove, "remove");
  if (fails("remove", absolute(path))) return -1;
  const int done = real_remove(path);
  if (done == 0) note_path("unlink", absolute(path));
  return done;
}

int unlinkat(int folder, const char* path, int flags) {
  static auto* const real_unlinkat = real(&::unlinkat, "unlinkat");
  const int done = real_unlinkat(folder, path, flags);
  const std::string in = folder == AT_FDCWD || path[0] == '/' ? "" : of_descriptor(folder) + "/";
  if (done == 0) note_path("unlink", in.empty() ? absolute(path) : in + path);
  return done;
}

int mkdir(const char* path, mode_t mode) {
  static auto* const real_mkdir = real(&::mkdir, "mkdir");
  if (fails("mkdir", absolute(path))) return -1;
  const int done = real_mkdir(path, mode);
  if (done == 0) note_path("folder", absolute(path));
  return done;
}

int ftruncate(int fd, off_t size) {
  static auto* const real_ftruncate = real(&::ftruncate, "ftruncate");
  return fails("ftruncate", of_descriptor(fd)) ? -1 : real_ftruncate(fd, size);
}

int ftruncate64(int fd, off64_t size) {
  static auto* const real_ftruncate64 = real(&::ftruncate64, "ftruncate64");
  return fails("ftruncate", of_descriptor(fd)) ? -1 : real_ftruncate64(fd, size);
}

int truncate(const char* path, off_t size) {
  static auto* const real_truncate = real(&::truncate, "truncate");
  return fails("truncate", absolute(path)) ? -1 : real_truncate(path, size);
}

int truncate64(const char* path, off64_t size) {
  static auto* const real_truncate64 = real(&::truncate64, "truncate64");
  return fails("truncate", absolute(path)) ? -1 : real_truncate64(path, size);
}

int fallocate(int fd, int mode, off_t at, off_t n) {
  static auto* const real_fallocate = real(&::fallocate, "fallocate");
  return fails("fallocate", of_descriptor(fd)) ? -1 : real_fallocate(fd, mode, at, n);
}

int fallocate64(int fd, int mode, off64_t at, off64_t n) {
  static auto* const real_fallocate64 = real(&::fallocate64, "fallocate64");
  return fails("fallocate", of_descriptor(fd)) ? -1 : real_fallocate64(fd, mode, at, n);
}

}  // extern "C"
