#include "core/json.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "tests/catch.h"

using weft::json_line;

TEST_CASE("json: a value is one line, its keys in their order") {
  CHECK(json_line({{"name", "a"}, {"at", {1, 2}}}) == "{\"name\":\"a\",\"at\":[1,2]}");
  CHECK(json_line("a\"b\\c\n") == "\"a\\\"b\\\\c\\n\"");
}

TEST_CASE("json: a number that is not finite is null") {
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(json_line({{"x", infinity}}) == "{\"x\":null}");
  CHECK(json_line({{"x", std::numeric_limits<double>::quiet_NaN()}}) == "{\"x\":null}");
}

TEST_CASE("json: text that is not UTF-8 is written all the same") {
  CHECK(json_line("a\xe9") == "\"a\xef\xbf\xbd\"");
}
