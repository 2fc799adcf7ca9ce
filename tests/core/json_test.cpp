#include "core/json.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tests/catch.h"

using weft::json_line;
using weft::parse_json;

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

TEST_CASE("json: text is read whole, and refused with its place where it is no JSON") {
  CHECK(parse_json("{\"a\": [1, {\"a\": 2}]} ", "x")["a"][1]["a"] == 2);
  const auto refused = [](const std::string& text) {
    try {
      parse_json(text, "x.json");
    } catch (const weft::Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  CHECK(refused("{\"a\":}") == "x.json is no JSON: it cannot be read from byte 6 on");
  CHECK(refused("") == "x.json is no JSON: it cannot be read from byte 1 on");
  CHECK(refused("{} {}") == "x.json is no JSON: it cannot be read from byte 4 on");
  CHECK(refused("\"a\xe9\"") == "x.json is not UTF-8 from byte 2 on");
  CHECK(refused("1e999") == "x.json holds a number that no 64 bits hold");
  CHECK(refused("{\"a\":{\"b\":1,\"c\":{\"b\":1}},\"b\":1}") == "no error");
  CHECK(refused("[{\"a\":1,\"b\":2,\"a\":1}]") == "x.json holds the key \"a\" twice in one object");
  CHECK_THAT(refused(std::string(100000, '[')), ContainsSubstring("levels"));
}
