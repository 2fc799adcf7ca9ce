// What an install puts where, and a program outside that finds it, trains and checks.
#include <filesystem>

#include "tests/catch.h"
#include "tests/train/shell.h"

using namespace weft::tests;

namespace {

namespace fs = std::filesystem;

fs::path build_folder() { return fs::path(program_path()).parent_path(); }

// Installs into a stage under `f`; the files' places, from the stage on.
std::set<std::string> installed(const Folder& f, const std::string& prefix) {
  const Ran ran = run_shell(f, "DESTDIR=$PWD/stage cmake --install '" + build_folder().string() +
                                   "' --prefix '" + prefix + "'");
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  std::set<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(f / "stage"))
    if (!entry.is_directory())
      files.insert(entry.path().lexically_relative(f / "stage").generic_string());
  return files;
}

}  // namespace

TEST_CASE("install: a stage holds all of it under its prefix, and an outside program uses it") {
  const Folder f;
  if (!fs::exists(build_folder() / "libweft.so")) SKIP("this build has no shared library");
  const std::set<std::string> files = installed(f, "/any/where");
  for (const char* file :
       {"bin/weft", "include/weft/weft.h", "share/man/man1/weft.1",
        "share/bash-completion/completions/weft", "share/zsh/site-functions/_weft",
        "share/fish/vendor_completions.d/weft.fish", "share/weft/recipes/quickstart.toml",
        "share/weft/recipes/tasks/mqar.toml", "share/doc/weft/README.md",
        "share/doc/weft/recipes/README.md"}) {
    INFO(file);
    CHECK(files.count(std::string("any/where/") + file) == 1);
  }
  for (const std::string& file : files) {
    INFO(file);
    CHECK(file.starts_with("any/where/"));
  }
  const std::string prefix = f / "stage/any/where";
  CHECK(run_shell(f, "stage/any/where/bin/weft version").status == 0);
  const Ran ran = run_shell(f, "cmake -S '" + source_path("examples") +
                                   "' -B build -G Ninja -DCMAKE_PREFIX_PATH='" + prefix +
                                   "' && cmake --build build && build/train");
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK_THAT(ran.text, ContainsSubstring("step 10: loss") && ContainsSubstring("all is well"));
}

TEST_CASE("install: the header is C99, and alone") {
  const Folder f;
  f.write("c.c",
          "#include <weft/weft.h>\nint main(void) { weft_call c = {0}; return c.stream != 0; }\n");
  fs::create_directories(f / "include/weft");
  fs::copy_file(source_path("library/weft.h"), f / "include/weft/weft.h");
  if (run_shell(f, "gcc --version").status != 0) SKIP("there is no gcc");
  const Ran ran = run_shell(f,
                            "gcc -std=c99 -pedantic-errors -Wall -Wextra -Werror -Iinclude "
                            "-fsyntax-only c.c && g++ -std=c++11 -pedantic-errors -Wall -Wextra "
                            "-Werror -Wno-missing-field-initializers -Iinclude -fsyntax-only -x "
                            "c++ c.c");
  INFO(ran.text);
  CHECK(ran.status == 0);
}
