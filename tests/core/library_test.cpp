#include "core/library.h"

#include "tests/catch.h"

using namespace weft;

TEST_CASE("library: a library is found by its name, or is not there") {
  CHECK(find_library({"libno-such-thing.so", "libm.so.6"}).find("libm") != std::string::npos);
  CHECK(find_library({"libno-such-thing.so"}).empty());
}
