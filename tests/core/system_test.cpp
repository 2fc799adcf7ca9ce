#include "core/system.h"

#include "core/file.h"
#include "tests/catch.h"

using namespace weft;

TEST_CASE("system: the reason of a call is the one that it left behind") {
  CHECK(code_of(0) == 0);
  errno = ENOSPC;
  CHECK(code_of(-1) == ENOSPC);
  CHECK(code_of(7) == 0);
  CHECK_NOTHROW(require_call(0, "never"));
  CHECK_THROWS_WITH(require_call(ENOSPC, "a file", ": cannot be written"),
                    "a file: cannot be written: No space left on device");
}

TEST_CASE("system: a descriptor says why it is not open, and how closing went") {
  const Descriptor absent("/no/such/file", O_RDONLY);
  CHECK_FALSE(absent.open());
  CHECK(absent.code() == ENOENT);
  Descriptor full("/dev/full", O_WRONLY);
  REQUIRE(full.open());
  CHECK(full.write("x", 1) == ENOSPC);
  CHECK(full.close() == 0);
  CHECK(full.close() == 0);
  CHECK(full.write("x", 1) == EBADF);
}

TEST_CASE("system: a missing file is told as missing, and a folder as a folder") {
  CHECK_THROWS_WITH(read_file("/no/such/file"),
                    "/no/such/file: cannot be read: No such file or directory");
  CHECK_THROWS_WITH(write_file("/no/such/file", "x"), ContainsSubstring("there is no folder"));
  CHECK_THROWS_WITH(write_file("/tmp", "x"), ContainsSubstring("is a folder"));
  CHECK_THROWS_WITH(make_folders("/dev/null/x"), ContainsSubstring("/dev/null"));
}
