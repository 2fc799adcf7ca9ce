#include "train/run_lock.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/lock.h"
#include "tests/catch.h"
#include "tests/system_calls.h"
#include "tests/train/program.h"

using namespace weft;
using namespace weft::tests;
using weft::train::RunLock;
namespace fs = std::filesystem;
using std::chrono::milliseconds;

namespace {

std::string refusal(const std::string& out, milliseconds patience = std::chrono::seconds(60)) {
  try {
    const RunLock lock(out, patience);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// A process that holds the lock of a folder until it is killed.
pid_t holder_of(const std::string& out, bool kernel_locks = true) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (!kernel_locks && !refuse_call(SYS_fcntl, ENOLCK, F_OFD_SETLK)) ::_exit(1);
    const RunLock lock(out, milliseconds(600));
    if (::write(ends[1], "x", 1) == 1) ::pause();
    ::_exit(1);
  }
  ::close(ends[1]);
  char ready = 0;
  CHECK(::read(ends[0], &ready, 1) == 1);
  ::close(ends[0]);
  return child;
}

void kill_and_wait(pid_t child) {
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

// What a killed run on another machine leaves.
void leave_foreign_lock(const Folder& f) {
  fs::create_directory(f / "run");
  f.write("run/run.lock",
          "weft run lock\nprocess 1\nhost node7\nmachine another\nsince yesterday\n");
}

// How many of `count` processes that start at once get the lock.
int winners(const std::string& out, int count, bool kernel_locks) {
  int go[2], told[2];
  REQUIRE(::pipe(go) == 0);
  REQUIRE(::pipe(told) == 0);
  std::vector<pid_t> children;
  for (int i = 0; i < count; ++i) {
    children.push_back(::fork());
    if (children.back() != 0) continue;
    ::close(go[1]);
    char c = 0;
    if (!kernel_locks && !refuse_call(SYS_fcntl, ENOLCK, F_OFD_SETLK)) ::_exit(1);
    (void)!::read(go[0], &c, 1);  // ends when the parent closes
    try {
      const RunLock lock(out, milliseconds(8000));
      (void)!::write(told[1], "w", 1);
      ::pause();
    } catch (...) {
      (void)!::write(told[1], "l", 1);
    }
    ::_exit(0);
  }
  ::close(go[0]);
  ::close(go[1]);
  int won = 0;
  for (int i = 0; i < count; ++i) {
    char c = 0;
    if (::read(told[0], &c, 1) == 1) won += c == 'w';
  }
  for (const pid_t child : children) kill_and_wait(child);
  ::close(told[0]);
  ::close(told[1]);
  return won;
}

}  // namespace

TEST_CASE("run lock: a second run is refused by any path, with the process and host of the first") {
  const Folder f;
  fs::create_directory(f / "real");
  fs::create_directory_symlink(f / "real", f / "link");
  const pid_t holder = holder_of(f / "real/run");
  for (const char* path : {"real/run", "real/run/", "link/run", "link/../real/./run"}) {
    const std::string said = refusal(f / path);
    CHECK_THAT(said, ContainsSubstring(concat("process ", holder)));
    CHECK_THAT(said, ContainsSubstring("host " + host_name()));
    CHECK_THAT(said, ContainsSubstring("train.out"));
  }
  CHECK(refusal(f / "real/other").empty());
  kill_and_wait(holder);
}

TEST_CASE("run lock: a killed run's lock is taken over at once") {
  const Folder f;
  kill_and_wait(holder_of(f / "run"));
  REQUIRE(fs::exists(f / "run/run.lock"));
  CHECK(refusal(f / "run").empty());
}

TEST_CASE("run lock: it goes with its run, and so does a folder that was made for nothing") {
  const Folder f;
  {
    const RunLock lock(f / "a/b/run");
    CHECK(fs::exists(f / "a/b/run/run.lock"));
    CHECK_FALSE(refusal(f / "a/b/run").empty());
  }
  CHECK_FALSE(fs::exists(f / "a"));
  fs::create_directory(f / "kept");
  CHECK(refusal(f / "kept").empty());
  CHECK(fs::is_empty(f / "kept"));
  {
    const RunLock lock(f / "used/run");
    f.write("used/run/file", "x");
  }
  CHECK(fs::exists(f / "used/run/file"));
  CHECK_FALSE(fs::exists(f / "used/run/run.lock"));
}

TEST_CASE("run lock: of runs that start at the same moment exactly one goes on") {
  const Folder f;
  for (int i = 0; i < 10; ++i) CHECK(winners(f / concat("fresh", i), 6, true) == 1);
  for (int i = 0; i < 5; ++i) {
    kill_and_wait(holder_of(f / "stale"));
    CHECK(winners(f / "stale", 6, true) == 1);
  }
}

TEST_CASE("run lock: another machine's run holds while it gives signs of life, and no longer") {
  const Folder f;
  leave_foreign_lock(f);
  std::atomic<bool> over{false};
  std::thread living([&] {
    while (!over) {
      ::utimensat(AT_FDCWD, (f / "run/run.lock").c_str(), nullptr, 0);
      std::this_thread::sleep_for(milliseconds(5));
    }
  });
  const std::string said = refusal(f / "run");
  over = true;
  living.join();
  CHECK_THAT(said, ContainsSubstring("process 1 on host node7"));
  CHECK(refusal(f / "run", milliseconds(80)).empty());
  CHECK_FALSE(fs::exists(f / "run/run.lock"));
}

TEST_CASE("run lock: another machine's lock that is long silent is not waited for") {
  const Folder f;
  leave_foreign_lock(f);
  fs::last_write_time(f / "run/run.lock",
                      fs::file_time_type::clock::now() - std::chrono::minutes(11));
  CHECK(refusal(f / "run", std::chrono::hours(10)).empty());
}

TEST_CASE("run lock: the time of a living run's lock moves") {
  const Folder f;
  const RunLock lock(f / "run", milliseconds(60));
  struct stat before {
  }, after{};
  REQUIRE(::stat((f / "run/run.lock").c_str(), &before) == 0);
  do {
    REQUIRE(::stat((f / "run/run.lock").c_str(), &after) == 0);
  } while (before.st_mtim.tv_sec == after.st_mtim.tv_sec &&
           before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
}

TEST_CASE("run lock: a file system without locks keeps runs apart by signs of life") {
  const Folder f;
  if (in_child([] { return refuse_call(SYS_fcntl, ENOLCK, F_OFD_SETLK) ? 0 : 1; }) != 0)
    SKIP("the kernel refuses no call on request");
  CHECK(winners(f / "fresh", 5, false) == 1);
  const pid_t holder = holder_of(f / "run", false);
  CHECK(in_child([&] {
          refuse_call(SYS_fcntl, ENOLCK, F_OFD_SETLK);
          const std::string said = refusal(f / "run", milliseconds(1500));
          return said.find(concat("process ", holder)) == std::string::npos ? 1 : 0;
        }) == 0);
  kill_and_wait(holder);
  CHECK(in_child([&] {
          refuse_call(SYS_fcntl, ENOLCK, F_OFD_SETLK);
          return refusal(f / "run", milliseconds(200)).empty() ? 0 : 1;
        }) == 0);
}

TEST_CASE("run lock: where it cannot be made the message says so, and nothing is touched") {
  const Folder f;
  fs::create_directories(f / "folder/run.lock");
  CHECK_THAT(refusal(f / "folder"), ContainsSubstring("run.lock"));
  fs::create_directory(f / "text");
  f.write("text/run.lock", "a user's own");
  CHECK_THAT(refusal(f / "text"), ContainsSubstring("is not a lock of this program"));
  CHECK(f.read("text/run.lock") == "a user's own");
  fs::create_directory(f / "link");
  fs::create_symlink(f / "text/run.lock", f / "link/run.lock");
  CHECK_THAT(refusal(f / "link"), ContainsSubstring("run.lock"));
  CHECK(f.read("text/run.lock") == "a user's own");
  fs::create_directory(f / "pipe");
  REQUIRE(::mkfifo((f / "pipe/run.lock").c_str(), 0600) == 0);
  CHECK_THAT(refusal(f / "pipe"), ContainsSubstring("is not a lock of this program"));
  CHECK_THAT(refusal(f / "text/run.lock/run"),
             ContainsSubstring("the run's folder cannot be made"));
  CHECK_THAT(refusal(f / std::string(300, 'a')), ContainsSubstring("File name too long"));
  if (::access("/proc/self", W_OK) == 0)
    CHECK_THAT(refusal("/proc/self"), ContainsSubstring("the run's lock cannot be made"));
}
