// What the program says and returns where the machine gives it no more memory.
#include "tests/catch.h"
#include "tests/train/program.h"

using namespace weft::tests;

namespace {

// Runs `weft ARGUMENTS` (words of a shell) with so many MiB of address space.
Ran run_within(const Folder& folder, int mib, const std::string& arguments) {
  const std::string out = folder / "printed";
  const std::string command = "cd '" + folder.path() + "'; ulimit -c 0; ulimit -v " +
                              std::to_string(mib * 1024) + "; exec '" + program_path() + "' " +
                              arguments + " > '" + out + "' 2>&1";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), folder.read("printed")};
}

// A sanitizer takes terabytes of address space, so that nothing runs within a limit.
void skip_under_sanitizers(const Folder& folder) {
  if (run_within(folder, 64 << 10, "version").status != 0) SKIP("no program runs within a limit");
}

}  // namespace

TEST_CASE("main: a text larger than the memory ends with a message and status 2") {
  const Folder f;
  skip_under_sanitizers(f);
  f.write("text.txt", "text");
  std::filesystem::resize_file(f / "text.txt", uintmax_t{200} << 30);  // no room on the disk
  const Ran ran = run_within(f, 64 << 10, "data text.txt --out out.h5");
  INFO(ran.text);
  CHECK(ran.status == 2);
  CHECK_THAT(ran.text, ContainsSubstring("weft data: out of memory"));
  CHECK_THAT(ran.text, ContainsSubstring("ulimit -v allows 65536 MiB"));
  CHECK_FALSE(std::filesystem::exists(f / "out.h5"));
}

TEST_CASE("main: a limit of memory that no library can start with is told, and nothing waits") {
  const Folder f;
  skip_under_sanitizers(f);
  for (const int mib : {90, 130}) {
    const Ran ran = run_within(f, mib, "version");
    INFO(ran.text);
    CHECK(ran.status == 2);
    CHECK_THAT(ran.text, ContainsSubstring("ulimit -v"));
  }
}
