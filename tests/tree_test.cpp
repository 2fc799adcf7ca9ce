#include <string_view>
#include "tests/catch.h"
TEST_CASE("tree: placeholder") { CHECK(std::string_view("a") == std::string_view("a")); }
