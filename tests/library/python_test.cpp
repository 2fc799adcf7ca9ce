// The Python package on the shared library, where this machine has a Python.
#include <filesystem>

#include "tests/catch.h"
#include "tests/train/shell.h"

using namespace weft::tests;

namespace {

// The shared library beside the program; a build with sanitizers has none.
std::string library_path() {
  return (std::filesystem::path(program_path()).parent_path() / "libweft.so").string();
}

}  // namespace

TEST_CASE("python: the package computes, differentiates and refuses as the library does") {
  const Folder f;
  if (!std::filesystem::exists(library_path())) SKIP("this build has no shared library");
  if (run_shell(f, "python3 -c 'import ctypes'").status != 0) SKIP("there is no Python 3");
  const Ran ran = run_shell(f, "WEFT_LIBRARY='" + library_path() + "' python3 -B '" +
                                   source_path("tests/library/check_python.py") + "'");
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK_THAT(ran.text, ContainsSubstring("checked with"));
}

TEST_CASE("python: a library of another version, or none, is told by its path") {
  const Folder f;
  if (run_shell(f, "python3 -c 'import ctypes'").status != 0) SKIP("there is no Python 3");
  f.write("none.so", "no library");
  const Ran ran = run_shell(f, "WEFT_LIBRARY=./none.so PYTHONPATH='" +
                                   source_path("library/python") + "' python3 -B -c 'import weft'");
  CHECK(ran.status == 1);
  CHECK_THAT(ran.text, ContainsSubstring("the shared library of Weft was not found") &&
                           ContainsSubstring("./none.so"));
}

TEST_CASE("python: the wheel is the same every time, and holds the library that it loads") {
  const Folder f;
  if (!std::filesystem::exists(library_path())) SKIP("this build has no shared library");
  if (run_shell(f, "python3 -c 'import ctypes'").status != 0) SKIP("there is no Python 3");
  for (const char* folder : {"a", "b"}) {
    std::filesystem::create_directories(f / folder);
    const Ran ran = run_shell(f, "WEFT_LIBRARY='" + library_path() + "' python3 -B '" +
                                     source_path("library/python/build_weft.py") + "' " + folder);
    INFO(ran.text);
    REQUIRE(ran.status == 0);
  }
  const Ran ran = run_shell(
      f,
      "cmp a/*.whl b/*.whl && python3 -m zipfile -e a/*.whl site && unset WEFT_LIBRARY && "
      "PYTHONPATH=site python3 -B -c 'import weft; print(weft.library_path(), "
      "len(weft.operations()), \"operations\")'");
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK_THAT(ran.text,
             ContainsSubstring("site/weft/libweft.so") && ContainsSubstring("operations"));
}
