// Small files as wholes, folders, and what is the same file.
#include "core/file.h"

#include <sys/stat.h>

#include <filesystem>

#include "core/error.h"
#include "tests/catch.h"
#include "tests/folder.h"

using namespace weft;
using weft::tests::Folder;
namespace fs = std::filesystem;

namespace {

unsigned mode_of(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
}

}  // namespace

TEST_CASE("file: bytes of any number come back as they were written, and nothing lies beside") {
  const Folder f;
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{65535}, size_t{65536}, size_t{65537}, size_t{1'000'003}}) {
    std::string bytes(size, '\0');
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 31 + i / 256);
    write_file(f / "a", bytes);
    CHECK((read_file(f / "a") == bytes));
  }
  CHECK(f.names() == std::set<std::string>{"a"});
  CHECK(read_file("/proc/self/stat").size() > 10);  // its size is told as 0
  CHECK_THROWS_WITH(read_file(f.path()), ContainsSubstring("is a folder, expected a file"));
}

TEST_CASE("file: what is replaced keeps its permissions, and a link leads on") {
  const Folder f;
  write_file(f / "a", "old");
  for (const unsigned mode : {0600u, 0640u, 0755u}) {
    ::chmod((f / "a").c_str(), mode);
    write_file(f / "a", concat("mode ", mode));
    CHECK(mode_of(f / "a") == mode);
    CHECK(f.read("a") == concat("mode ", mode));
  }
  fs::create_symlink("a", f / "link");
  fs::create_symlink("link", f / "link of link");
  write_file(f / "link of link", "new");
  CHECK(fs::is_symlink(f / "link of link"));
  CHECK(fs::is_symlink(f / "link"));
  CHECK(f.read("a") == "new");
  CHECK(mode_of(f / "a") == 0755u);
  fs::create_symlink("absent", f / "dangling");
  write_file(f / "dangling", "made");
  CHECK(f.read("absent") == "made");
}

TEST_CASE("file: without commit nothing changes, and nothing stays") {
  const Folder f;
  write_file(f / "a", "old");
  {
    const PendingFile pending(f / "a");
    CHECK(fs::exists(pending.temporary()));
    CHECK(pending.path() == f / "a");
    CHECK(f.read("a") == "old");
    CHECK(f.names().size() == 2);
  }
  CHECK(f.names() == std::set<std::string>{"a"});
  CHECK(f.read("a") == "old");
  CHECK_THROWS_WITH(PendingFile(""), ContainsSubstring("is empty"));
}

TEST_CASE("file: one file is the same by each of its names, two are not") {
  const Folder f;
  write_file(f / "a", "x");
  write_file(f / "b", "x");
  fs::create_symlink("a", f / "link");
  fs::create_hard_link(f / "a", f / "hard");
  for (const char* name : {"a", "link", "hard"}) {
    CHECK(same_file(f / "a", f / name));
    CHECK(same_file(f / name, f.path() + "/./a"));
    CHECK_FALSE(same_file(f / name, f / "b"));
    CHECK_THROWS_WITH(require_output(f / name, {f / "b", f / "a"}),
                      ContainsSubstring("which is never overwritten"));
  }
  CHECK_FALSE(same_file(f / "none", f / "none"));  // there is nothing
  CHECK_NOTHROW(require_output(f / "b", {f / "a"}));
  CHECK_NOTHROW(require_output(f / "new", {f / "a", f / "b"}));
  CHECK_NOTHROW(require_output("/dev/null", {"/dev/null"}));
  CHECK_THROWS_WITH(require_output(f / "a", {f.path()}), ContainsSubstring("is the input"));
  write_file(f / "set.h5", "\x89HDF\r\n\x1a\n");
  CHECK_NOTHROW(require_output(f / "set.h5", {f.path()}));  // no text of that folder
}

TEST_CASE("file: folders are made with those above them, and what is there stays") {
  const Folder f;
  make_folders(f / "a/b/c");
  CHECK(fs::is_directory(f / "a/b/c"));
  write_file(f / "a/b/x", "x");
  make_folders(f / "a/b/c/");
  make_folders(f / "a/b");
  CHECK(f.read("a/b/x") == "x");
  CHECK_NOTHROW(make_folders(""));
  CHECK_NOTHROW(make_folders("/"));
  CHECK_THROWS_WITH(make_folders(f / "a/b/x"), ContainsSubstring("cannot be made"));
  CHECK_THROWS_AS(make_folders(f / "a/b/x/y"), Error);
  CHECK_NOTHROW(flush_folder(f.path()));
  CHECK_THROWS_WITH(flush_folder(f / "none"), ContainsSubstring("cannot be flushed"));
}

TEST_CASE("file: a shared file is one under two names, whatever stood there before") {
  const Folder f;
  write_file(f / "a", "new");
  write_file(f / "b", "old");
  share_file(f / "a", f / "b");
  CHECK(f.read("b") == "new");
  CHECK(same_file(f / "a", f / "b"));
  share_file(f / "a", f / "c");
  CHECK(fs::hard_link_count(f / "a") == 3);
  share_file(f / "a", f / "c");
  CHECK(f.names() == std::set<std::string>{"a", "b", "c"});
  CHECK_THROWS_AS(share_file(f / "none", f / "b"), Error);
  CHECK(f.read("b") == "new");
}
