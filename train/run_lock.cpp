// Who holds a run's folder is known in two ways. The kernel's lock on run.lock goes with its
// process, and is decisive on one machine, containers included. Another host may not see it (NFS
// mounted with local locks), and some file systems have none: there a holder is alive while the
// time of run.lock moves, which the holder sees to every few seconds.
#include "train/run_lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/lock.h"
#include "core/system.h"

namespace weft::train {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFirstLine = "weft run lock\n";
constexpr time_t kLongAgo = 600;  // seconds without a sign of life: not worth waiting for another

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  char text[32] = "?";
  if (::gmtime_r(&now, &parts)) std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

std::string own_text() {
  return concat(kFirstLine, "process ", ::getpid(), "\nhost ", host_name(), "\nmachine ",
                machine_id(), "\nsince ", now_text(), "\n");
}

// "host" -> "node7", from the lines above.
std::string value_of(const std::string& text, const std::string& key) {
  const size_t at = text.find("\n" + key + " ");
  if (at == std::string::npos) return "?";
  const size_t begin = at + key.size() + 2;
  return text.substr(begin, text.find('\n', begin) - begin);
}

std::string read_all(int descriptor) {
  char text[4096];
  const ssize_t n = ::pread(descriptor, text, sizeof text, 0);
  return {text, n > 0 ? static_cast<size_t>(n) : 0};
}

time_t age_of(const struct stat& status) { return std::time(nullptr) - status.st_mtime; }

}  // namespace

RunLock::RunLock(const std::string& out, Time patience)
    : out_(out), path_((fs::path(out) / "run.lock").string()), patience_(patience) {
  try {
    take();
    heart_ = std::thread([this] { beat(); });
  } catch (...) {
    give_back();
    throw;
  }
}

RunLock::~RunLock() {
  {
    const std::lock_guard guard(mutex_);
    over_ = true;
  }
  ended_.notify_all();
  heart_.join();
  if (has_name(descriptor_, path_)) ::unlink(path_.c_str());
  give_back();
}

// Closes the file; the folders that were made for it go, if nothing else came into them.
void RunLock::give_back() {
  if (descriptor_ >= 0) ::close(descriptor_);
  for (const std::string& folder : made_) ::rmdir(folder.c_str());
}

void RunLock::make_folder() {
  std::error_code failed;
  std::vector<std::string> missing;
  for (fs::path at = out_; !at.empty() && !fs::exists(at, failed); at = at.parent_path())
    missing.push_back(at.string());
  fs::create_directories(out_, failed);
  require(!failed, out_, ": the run's folder cannot be made: ", failed.message(),
          "; choose another with --set train.out=FOLDER");
  made_.insert(made_.end(), missing.begin(), missing.end());
}

// Opens run.lock, which is made if there is none. False: ask again, it has just gone.
bool RunLock::open() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
  if (descriptor_ < 0 && (errno == ENOENT || errno == EINTR)) return false;
  if (descriptor_ < 0)
    fail(path_, ": the run's lock cannot be made: ", std::strerror(errno),
         "; choose another folder with --set train.out=FOLDER");
  struct stat status {};
  const std::string text = read_all(descriptor_);
  require(::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode) &&
              (text.empty() || text.starts_with(kFirstLine)),
          path_,
          ": is not a lock of this program, expected none or a run's; move it away, or choose "
          "another folder with --set train.out=FOLDER");
  return true;
}

void RunLock::take() {
  for (int nth = 0;; ++nth) {
    make_folder();
    if (!open()) {
      require(nth < 100, path_, ": the run's lock cannot be made: the folder goes again and again");
      continue;
    }
    const Lock lock = lock_file(descriptor_);
    const std::string text = read_all(descriptor_);
    if (lock == Lock::held) {
      if (nth < (text.empty() ? 100 : 3)) {  // its holder may not have written its name yet
        std::this_thread::sleep_for(Time(5));
        continue;
      }
      refuse(text);
    }
    if (!has_name(descriptor_, path_)) continue;  // given back between open and lock
    const bool of_here = lock == Lock::ours && value_of(text, "machine") == machine_id();
    if (!text.empty() && !of_here && !watched(text)) continue;
    if (lock == Lock::ours) return write(own_text());
    return write_alone();
  }
}

// Waits for a sign of life of a holder on another machine. True: there was none for long enough.
bool RunLock::watched(const std::string& text) {
  struct stat status {};
  require_call(code_of(::fstat(descriptor_, &status)), path_, ": cannot be read");
  const std::string sign = concat(text, status.st_mtim.tv_sec, ".", status.st_mtim.tv_nsec);
  if (age_of(status) > kLongAgo) return true;
  const auto now = std::chrono::steady_clock::now();
  if (seen_.empty()) {
    seen_ = sign;
    until_ = now + patience_;
    std::printf("%s: waits to see whether process %s on host %s still trains there\n", out_.c_str(),
                value_of(text, "process").c_str(), value_of(text, "host").c_str());
    std::fflush(stdout);
  }
  if (sign != seen_) refuse(text);
  if (now >= until_) return true;
  std::this_thread::sleep_for(std::min(Time(1000), patience_ / 8));
  return false;
}

// Where the file system has no locks: everybody who saw a free folder puts his name there, waits
// longer than it takes to do so, and then he stays whose name is left (Fischer's algorithm, from L.
// Lamport, A fast mutual exclusion algorithm, 1987).
void RunLock::write_alone() {
  const std::string name = temporary_name(path_);
  ::close(descriptor_);
  descriptor_ = ::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0 || ::rename(name.c_str(), path_.c_str()) != 0)
    fail(path_, ": the run's lock cannot be made: ", std::strerror(errno));
  write(own_text());
  std::this_thread::sleep_for(std::min(Time(2000), patience_ / 4));
  if (!has_name(descriptor_, path_)) {
    std::string text;
    try {
      text = read_file(path_);
    } catch (const Error&) {
    }
    refuse(text);
  }
}

void RunLock::write(const std::string& text) const {
  const auto size = static_cast<ssize_t>(text.size());
  if (::ftruncate(descriptor_, 0) == 0 &&
      ::pwrite(descriptor_, text.data(), text.size(), 0) == size)
    return;
  const int why = errno;
  if (has_name(descriptor_, path_)) ::unlink(path_.c_str());
  fail(path_, ": the run's lock cannot be written: ", std::strerror(why));
}

void RunLock::refuse(const std::string& text) const {
  struct stat status {};
  const bool silent = ::stat(path_.c_str(), &status) == 0 && age_of(status) > kLongAgo;
  fail(out_, ": another run is at work in this folder: process ", value_of(text, "process"),
       " on host ", value_of(text, "host"), ", since ", value_of(text, "since"),
       silent ? concat("; it gave no sign of life for ", age_of(status),
                       " seconds: if it is certainly gone, remove ", path_)
              : "",
       ". Wait for its end or stop it, or choose another folder with --set train.out=FOLDER");
}

// The time of run.lock, set by the file system's own clock, is the sign of life.
void RunLock::beat() {
  std::unique_lock guard(mutex_);
  while (!ended_.wait_for(guard, patience_ / 6, [this] { return over_; }))
    ::futimens(descriptor_, nullptr);
}

}  // namespace weft::train
