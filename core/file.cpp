#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// --- Where a name leads --------------------------------------------------------------------------

struct Place {
  std::string path;     // links followed; there may be nothing yet
  int descriptor = -1;  // of this process, where the name is one's: /dev/stdout, /dev/fd/3
  bool exists = false;
  struct stat status {};

  bool is(mode_t kind) const { return exists && (status.st_mode & S_IFMT) == kind; }
  bool same(const Place& other) const {
    return exists && other.exists && status.st_dev == other.status.st_dev &&
           status.st_ino == other.status.st_ino;
  }
};

// The number of the descriptor that a link of /proc/PID/fd stands for, or -1.
int descriptor_of(const std::string& link) {
  std::error_code failed;
  const fs::path folder = fs::canonical(folder_of(link), failed);
  if (failed || folder != fs::path("/proc") / std::to_string(::getpid()) / "fd") return -1;
  const std::string name = fs::path(link).filename().string();
  int number = -1;
  const auto parsed = std::from_chars(name.data(), name.data() + name.size(), number);
  return parsed.ec == std::errc{} && parsed.ptr == name.data() + name.size() ? number : -1;
}

Place place_of(const std::string& path) {
  constexpr int kMostLinks = 40;  // as the system itself
  Place place;
  place.path = path;
  std::error_code failed;
  for (int links = 0; fs::is_symlink(fs::symlink_status(place.path, failed)); ++links) {
    place.descriptor = descriptor_of(place.path);
    if (place.descriptor >= 0) break;
    require_call(links < kMostLinks ? 0 : ELOOP, path, ": cannot be opened");
    const fs::path next = fs::read_symlink(place.path, failed);
    require_call(failed.value(), path, ": the link cannot be read");
    place.path = (fs::path(place.path).parent_path() / next).string();
  }
  place.exists = (place.descriptor >= 0 ? ::fstat(place.descriptor, &place.status)
                                        : ::stat(place.path.c_str(), &place.status)) == 0;
  return place;
}

bool goes_through(const Place& place) {
  return place.descriptor >= 0 || place.is(S_IFIFO) || place.is(S_IFCHR);
}

// Throws Error where no file can be written. Nothing is made or opened.
void require_writable(const std::string& path, const Place& place) {
  require(!path.empty(), "the name of the file to write is empty");
  require(!place.is(S_IFDIR), path, ": is a folder, expected a file to write");
  if (place.descriptor >= 0) return;
  for (const auto& [kind, name] : {std::pair{S_IFBLK, "block device"}, {S_IFSOCK, "socket"}})
    require(!place.is(static_cast<mode_t>(kind)), path, ": is a ", name,
            ", expected a file to write");
  if (place.exists)
    require_call(code_of(::access(place.path.c_str(), W_OK)), path, ": cannot be written");
  if (goes_through(place)) return;
  const std::string folder = folder_of(place.path);
  std::error_code ignored;
  require(fs::is_directory(folder, ignored), path, ": cannot be written: there is no folder \"",
          folder, "\"");
  require_call(code_of(::access(folder.c_str(), W_OK | X_OK)), path,
               ": cannot be written: the folder \"", folder, "\" takes no files");
}

Descriptor open_through(const std::string& path, const Place& place) {
  if (place.descriptor < 0) return {place.path, O_WRONLY | O_NOCTTY};
  const int flags = ::fcntl(place.descriptor, F_GETFL);
  require_call(code_of(flags), path, ": cannot be written");
  require((flags & O_ACCMODE) != O_RDONLY, path, ": is open for reading alone");
  const int copy = ::fcntl(place.descriptor, F_DUPFD_CLOEXEC, 3);
  return Descriptor(copy, code_of(copy));
}

// A file elsewhere, for what must be whole before it is copied on.
Descriptor make_elsewhere(const std::string& path, std::string& name) {
  std::error_code ignored;
  name = (fs::temp_directory_path(ignored) / "weft-XXXXXX").string();
  const int fd = ::mkostemp(name.data(), O_CLOEXEC);
  require_call(code_of(fd), path, ": cannot be made ready in ", folder_of(name));
  return Descriptor(fd);
}

bool is_hdf5(const std::string& path) {
  const Descriptor file(path, O_RDONLY | O_NONBLOCK);
  char begin[8];
  size_t done = 0;
  return file.open() && file.read(begin, sizeof begin, done) == 0 && done == sizeof begin &&
         std::string_view(begin, sizeof begin) == "\x89HDF\r\n\x1a\n";
}

// The text of a folder that is the file `out` itself, "" if none is. Text is never in HDF5: a
// dataset may be made again in the folder of its text.
std::string text_in_folder(const std::string& folder, const Place& out) {
  std::error_code failed;
  for (auto at = fs::recursive_directory_iterator(
           folder, fs::directory_options::skip_permission_denied, failed);
       !failed && at != fs::end(at); at.increment(failed)) {
    std::error_code ignored;
    if (at->is_regular_file(ignored) && out.same(place_of(at->path().string())) &&
        !is_hdf5(out.path))
      return at->path().string();
  }
  return "";
}

}  // namespace

// --- Reading -------------------------------------------------------------------------------------

std::string read_file(const std::string& path) {
  std::error_code ignored;
  require(!fs::is_directory(path, ignored), path, ": is a folder, expected a file");
  const Descriptor file(path, O_RDONLY);
  require_call(file.code(), path, ": cannot be read");
  std::string bytes;
  struct stat status {};
  if (::fstat(file.get(), &status) == 0 && status.st_size > 0)
    bytes.resize(static_cast<size_t>(status.st_size) + 1);  // + 1: the end is seen at once
  for (size_t done = 0, n = 0;; done += n) {
    if (done == bytes.size()) bytes.resize(bytes.size() + 65536);
    require_call(file.read(bytes.data() + done, bytes.size() - done, n), path, ": cannot be read");
    if (n == 0) return bytes.resize(done), bytes;
  }
}

// --- Writing -------------------------------------------------------------------------------------

PendingFile::PendingFile(const std::string& path) : path_(path) {
  const Place place = place_of(path);
  require_writable(path, place);
  if (goes_through(place)) {
    target_ = open_through(path, place);
    require_call(target_.code(), path, ": cannot be written");
    copied_ = make_elsewhere(path, elsewhere_);
    return;
  }
  place_ = place.path;
  beside_.emplace(place_);
  if (place.exists)
    ::chmod(beside_->name().c_str(), 0600);  // until it has the old one's permissions
}

PendingFile::~PendingFile() {
  if (copied_.open()) ::unlink(elsewhere_.c_str());
}

// What is replaced keeps its permissions, and its owner where we may give files away.
void PendingFile::keep_permissions(const Descriptor& file) const {
  const Place old = place_of(place_);
  if (!old.exists) return;
  [[maybe_unused]] const int ignored = ::fchown(file.get(), old.status.st_uid, old.status.st_gid);
  require_call(code_of(::fchmod(file.get(), old.status.st_mode & 07777)), path_,
               ": its permissions cannot be kept");
}

void PendingFile::copy_through() {
  std::vector<char> bytes(1 << 20);
  require_call(code_of(::lseek(copied_.get(), 0, SEEK_SET)), path_, ": cannot be written");
  for (size_t n = 1; n > 0;) {
    require_call(copied_.read(bytes.data(), bytes.size(), n), path_, ": cannot be made ready");
    require_call(target_.write(bytes.data(), n), path_, ": cannot be written");
  }
  require_call(target_.close(), path_, ": cannot be written");
}

void PendingFile::commit() {
  if (copied_.open()) return copy_through();
  Descriptor file(temporary(), O_RDWR);
  require_call(file.code(), path_, ": cannot be written");
  keep_permissions(file);
  require_call(code_of(::fsync(file.get())), path_, ": cannot be flushed to the disk");
  require_call(file.close(), path_, ": cannot be written");
  require_call(code_of(::rename(temporary().c_str(), place_.c_str())), path_,
               ": cannot be put in place");
  flush_folder(folder_of(place_));
}

void write_file(const std::string& path, std::string_view bytes) {
  PendingFile pending(path);
  Descriptor file(pending.temporary(), O_WRONLY);
  require_call(file.code(), path, ": cannot be written");
  require_call(file.write(bytes.data(), bytes.size()), path, ": cannot be written");
  require_call(file.close(), path, ": cannot be written");
  pending.commit();
}

void require_output(const std::string& path, const std::vector<std::string>& inputs) {
  const Place out = place_of(path);
  require_writable(path, out);
  if (out.is(S_IFCHR)) return;  // nothing is lost in a device, as /dev/null
  for (const std::string& input : inputs) {
    const Place in = place_of(input);
    const std::string found = in.is(S_IFDIR) ? text_in_folder(input, out)
                              : in.same(out) ? input
                                             : "";
    require(found.empty(), path, ": is the input ", found == path ? "itself" : found,
            ", which is never overwritten; name another file to write");
  }
}

bool same_file(const std::string& a, const std::string& b) { return place_of(a).same(place_of(b)); }

bool is_standard_output(const std::string& path) {
  const Place out = place_of(path);
  if (out.descriptor == STDOUT_FILENO) return true;
  Place standard;
  standard.exists = ::fstat(STDOUT_FILENO, &standard.status) == 0;
  return out.same(standard) && (!out.is(S_IFCHR) || ::isatty(STDOUT_FILENO));
}

// --- Folders -------------------------------------------------------------------------------------

void flush_folder(const std::string& folder) {
  const Descriptor file(folder, O_RDONLY | O_DIRECTORY);
  if (file.code() == EACCES) return;  // one that may not be listed cannot be flushed
  require_call(file.code(), folder, ": the folder cannot be flushed to the disk");
  const int code = code_of(::fsync(file.get()));
  if (code != EINVAL && code != ENOTSUP && code != EROFS)  // these have no such call
    require_call(code, folder, ": the folder cannot be flushed to the disk");
}

void make_folders(const std::string& path) {
  const fs::path named = path, whole = named.has_filename() ? named : named.parent_path();
  if (whole.empty() || !whole.has_filename()) return;  // "" or "/"
  const std::string parent = folder_of(whole.string());
  if (parent != ".") make_folders(parent);
  const int code = code_of(::mkdir(whole.c_str(), 0777));
  std::error_code ignored;
  const bool there = fs::is_directory(whole, ignored);
  require_call(there ? 0 : code, whole.string(), ": the folder cannot be made");
  // Also where it was there: who made it may have ended before this.
  flush_folder(parent);
}

void share_file(const std::string& from, const std::string& to) {
  std::error_code error;
  // Renaming one name of a file to another of the same file does nothing, and leaves both.
  if (fs::equivalent(from, to, error)) return;
  const std::string fresh = temporary_name(to);
  fs::create_hard_link(from, fresh, error);
  if (error) {
    PendingFile copy(to);
    fs::copy_file(from, copy.temporary(), fs::copy_options::overwrite_existing, error);
    require(!error, to, ": cannot be copied from ", from, ": ", error.message());
    return copy.commit();
  }
  fs::rename(fresh, to, error);
  if (error) ::unlink(fresh.c_str());
  require(!error, to, ": cannot be put in place: ", error.message());
  flush_folder(folder_of(to));
}

}  // namespace weft
