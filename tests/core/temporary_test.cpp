#include "core/temporary.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include "core/error.h"
#include "core/file.h"
#include "core/lock.h"
#include "tests/catch.h"
#include "tests/folder.h"

using namespace weft;
using weft::tests::Folder;
namespace fs = std::filesystem;

namespace {

// Another process that has begun to write `path` and waits to be killed.
class Writer {
 public:
  explicit Writer(const std::string& path) {
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    child_ = ::fork();
    if (child_ == 0) {
      try {
        const TemporaryFile file(path);
        if (::write(ends[1], "x", 1) == 1) ::pause();
      } catch (const Error&) {
      }
      ::_exit(1);
    }
    ::close(ends[1]);
    char ready = 0;
    REQUIRE(::read(ends[0], &ready, 1) == 1);
    ::close(ends[0]);
  }
  ~Writer() { kill(); }
  void kill() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    child_ = -1;
  }

 private:
  pid_t child_ = -1;
};

std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void touch(const std::string& path) { std::ofstream(path) << "x"; }

}  // namespace

TEST_CASE("temporary: a killed writer's file is removed, a living one's is kept") {
  const Folder f;
  Writer killed(f / "a.h5"), living(f / "b.h5");
  CHECK(remove_abandoned_files(f.path()) == 0);
  CHECK(remove_abandoned_files(f.path(), /*alone=*/true) == 0);
  killed.kill();
  CHECK(remove_abandoned_files(f.path()) == 1);
  REQUIRE(f.names().size() == 1);
  CHECK_THAT(*f.names().begin(), ContainsSubstring("b.h5.tmp-"));
}

TEST_CASE("temporary: whoever writes a file next removes what its killed writers left") {
  const Folder f;
  for (int i = 0; i < 2; ++i) {
    Writer killed(f / "a.h5");
    killed.kill();
  }
  Writer(f / "other.h5").kill();
  REQUIRE(f.names().size() == 2);  // the second writer removed what the first left
  write_file(f / "a.h5", "whole");
  REQUIRE(f.names().size() == 2);
  CHECK(f.names().count("a.h5") == 1);
  write_file(f / "other.h5", "whole");
  CHECK(f.names() == std::set<std::string>{"a.h5", "other.h5"});
}

TEST_CASE("temporary: a file that another process is writing is refused by any of its paths") {
  const Folder f;
  fs::create_directory(f / "real");
  fs::create_directory_symlink(f / "real", f / "link");
  write_file(f / "real/a.h5", "old");
  Writer living(f / "real/a.h5");
  for (const char* path : {"real/a.h5", "link/a.h5", "link/../real/./a.h5"})
    CHECK_THAT(refusal([&] { write_file(f / path, "new"); }), ContainsSubstring("another process"));
  write_file(f / "real/b.h5", "another file");
  CHECK(read_file(f / "real/a.h5") == "old");
  living.kill();
  write_file(f / "link/a.h5", "new");
  CHECK(read_file(f / "real/a.h5") == "new");
}

TEST_CASE("temporary: of another machine, only what lies long untouched is taken for abandoned") {
  const Folder f;
  const std::string fresh = f / "a.h5.tmp-00000000-00000001",
                    old = f / "b.h5.tmp-00000000-00000002";
  touch(fresh), touch(old);
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(2));
  CHECK(remove_abandoned_files(f.path()) == 1);
  CHECK(f.names() == std::set<std::string>{"a.h5.tmp-00000000-00000001"});
  CHECK(remove_abandoned_files(f.path(), /*alone=*/true) == 1);
}

TEST_CASE("temporary: no name but our own is removed, and no folder or link of such a name") {
  const Folder f;
  const std::set<std::string> kept{
      "a.tmp-1",       "a.tmp-00000000",           ".tmp-00000000-00000001",
      "a.h5.tmp-mine", "a.tmp-00000000-0000000G",  "a.tmp-00000000-00000001.h5",
      "a.txt",         "a.tmp-00000000-00000001 ", "A.TMP-00000000-00000001"};
  for (const std::string& name : kept) touch(f / name);
  fs::create_directory(f / "d.tmp-00000000-00000001");
  fs::create_symlink(f / "a.txt", f / "l.tmp-00000000-00000001");
  CHECK(remove_abandoned_files(f.path(), /*alone=*/true) == 0);
  CHECK(f.names().size() == kept.size() + 2);
}

TEST_CASE("temporary: names do not hang on the process number") {
  const Folder f;
  std::set<std::string> names;
  for (int i = 0; i < 5; ++i) names.insert(temporary_name(f / "a"));
  CHECK(names.size() == 5);
  for (const std::string& name : names) CHECK(name.size() == (f / "a").size() + 22);
}

TEST_CASE("temporary: a folder that is not there or cannot be listed is no fault") {
  const Folder f;
  CHECK(remove_abandoned_files(f / "none") == 0);
  fs::create_symlink("loop", f / "loop");
  CHECK(remove_abandoned_files(f / "loop") == 0);
  CHECK_THAT(refusal([&] { const TemporaryFile file(f / "none/a"); }),
             ContainsSubstring("No such file or directory"));
}
