#include "core/toml.h"

#include <cmath>
#include <string>
#include <vector>

#include "tests/catch.h"

namespace {

using weft::toml_from_text;
using weft::TomlTable;
using weft::TomlType;

const char* kText = R"(# a recipe
name = "small"
[model]
width   = 64
pattern = ["gated_linear", "attention"]
scale   = 0.5

[gated_linear]
head = 4

[[stage]]
steps = 10
[[stage]]
steps = 20
)";

template <class F>
std::string message(const F& f) {
  try {
    f();
  } catch (const weft::Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("toml: values come back with their types") {
  const TomlTable t = toml_from_text(kText, "x.toml");
  CHECK(t.string("name") == "small");
  CHECK(t.table("model").integer("width") == 64);
  CHECK(t.table("model").number("width") == 64.0);
  CHECK(t.table("model").number("scale") == 0.5);
  CHECK(t.table("model").strings("pattern") ==
        std::vector<std::string>{"gated_linear", "attention"});
  CHECK(t.tables("stage").at(1).integer("steps") == 20);
  CHECK(t.tables("none").empty());
  CHECK(t.table("absent").integer("x", 7) == 7);
  CHECK(t.table("model").type("scale") == TomlType::number);
  CHECK(t.keys() == std::vector<std::string>{"name", "model", "gated_linear", "stage"});
}

TEST_CASE("toml: an unknown key is told with its place and the nearest known name") {
  const TomlTable t = toml_from_text(kText, "recipes/x.toml");
  const TomlTable linear = t.table("gated_linear");
  linear.integer("heads", 4), linear.integer("key_width", 64);
  const std::string expected =
      "recipes/x.toml:9:1: unknown key \"head\" in [gated_linear]; did you mean \"heads\"? "
      "known: heads, key_width";
  CHECK(message([&] { linear.finish(); }) == expected);
  CHECK(message([&] { linear.check_known({"heads", "key_width"}); }) == expected);
}

TEST_CASE("toml: finish looks into every sub-table, and at tables nobody opened") {
  const TomlTable t = toml_from_text(kText, "x.toml");
  t.string("name");
  for (const char* key : {"width", "pattern", "scale"}) t.table("model").has(key);
  for (const TomlTable& stage : t.tables("stage")) stage.integer("steps");
  CHECK(message([&] { t.finish(); }) ==
        "x.toml:8:2: unknown key \"gated_linear\"; did you mean \"name\"? "
        "known: name, model, stage");
  t.table("gated_linear").has("head");
  CHECK_NOTHROW(t.finish());
}

TEST_CASE("toml: a wrong type says what is and what was expected") {
  const TomlTable t =
      toml_from_text("[a]\nheads = \"4\"\nlist = [1, true]\nday = 1979-05-27", "x.toml");
  const TomlTable a = t.table("a");
  CHECK(message([&] { a.integer("heads"); }) ==
        "x.toml:2:9: \"heads\" in [a] is a string (\"4\"), expected an integer");
  CHECK(message([&] { a.integers("list"); }) ==
        "x.toml:3:12: \"list\" in [a] holds a boolean (true), expected an array of integers");
  CHECK(message([&] { a.boolean("list"); }) ==
        "x.toml:3:8: \"list\" in [a] is an array of 2 values, expected true or false");
  CHECK(message([&] { a.string("day"); }) ==
        "x.toml:4:7: \"day\" in [a] is a date (1979-05-27), expected a string");
  CHECK(message([&] { a.table("heads"); }) ==
        "x.toml:2:9: \"heads\" in [a] is a string (\"4\"), expected a table");
  CHECK(message([&] { a.number("lr"); }) == "x.toml:1:1: [a] lacks \"lr\", a number");
  CHECK(message([&] { a.refuse("heads", "too many"); }) == "x.toml:2:9: too many");
}

TEST_CASE("toml: what is not TOML is told with line and column") {
  const std::string open = message([] { toml_from_text("a = 1\nb = \"x\nc = 2", "x.toml"); });
  INFO(open);
  CHECK(open.find("x.toml:2:") == 0);
  CHECK(open.find("quotation mark missing") != std::string::npos);
  const std::string twice = message([] { toml_from_text("a = 1\na = 2", "x.toml"); });
  INFO(twice);
  CHECK(twice.find("x.toml:2:") == 0);
  CHECK(message([] { weft::toml_from_file("no/such.toml"); }) ==
        "no/such.toml: cannot be read: No such file or directory");
}

TEST_CASE("toml: set overrides, adds and says where a value came from") {
  TomlTable t = toml_from_text(kText, "x.toml");
  t.set("model.width", "128");
  t.set("train.schedule.name", "cosine");  // quotes may be left out
  t.set("model.pattern", "[\"delta\"]");
  t.set("data", "{seed = 3}");
  CHECK(t.table("model").integer("width") == 128);
  CHECK(t.table("train").table("schedule").string("name") == "cosine");
  CHECK(t.table("model").strings("pattern") == std::vector<std::string>{"delta"});
  CHECK(t.table("data").integer("seed") == 3);
  t.set("model.width", "wide");
  CHECK(message([&] { t.table("model").integer("width"); }) ==
        "--set model.width=wide: \"width\" in [model] is a string (\"wide\"), expected an integer");
  CHECK(message([&] { t.set("name.x", "1"); }) ==
        "--set name.x=1: \"name\" is a string (\"small\"), not a table");
  CHECK(message([&] { t.set("a..b", "1"); }).find("names no key") != std::string::npos);
  t.set("trian.steps", "1");
  t.table("train").table("schedule"), t.table("model"), t.table("data");
  CHECK(message([&] { t.table("trian").finish(); }).find("--set trian.steps=1: unknown key") == 0);
}

TEST_CASE("toml: to_text reads back as the same values") {
  TomlTable t = toml_from_text(R"(
a = 1e-3
b = 3.0
c = -inf
"odd key" = "tab\t, quote \" and \\ and \u0001 and é"
day = 1979-05-27T07:32:00Z
mixed = [1, {x = 2, y = [true]}, "z"]
empty = []
[outer.inner]
deep = 9223372036854775807
[[outer.list]]
x = 1
[outer.list.sub]
y = 0x10
[[outer.list]]
)",
                               "x.toml");
  t.set("outer.new.value", "0.1");
  const std::string text = t.to_text();
  const TomlTable back = toml_from_text(text, "again.toml");
  CHECK(back.to_text() == text);
  CHECK(back.number("a") == 1e-3);
  CHECK(back.type("b") == TomlType::number);
  CHECK(std::isinf(back.number("c")));
  CHECK(back.string("odd key") == t.string("odd key"));
  CHECK(back.table("outer").table("inner").integer("deep") == 9223372036854775807);
  CHECK(back.table("outer").tables("list").at(0).table("sub").integer("y") == 16);
  CHECK(back.table("outer").tables("list").size() == 2);
  CHECK(back.table("outer").table("new").number("value") == 0.1);
}

TEST_CASE("toml: text that is not UTF-8, or holds a zero, is refused with its place") {
  CHECK_THROWS_WITH(toml_from_text("a = 1\nb = \"caf\xe9\"\n", "r.toml"),
                    ContainsSubstring("r.toml:2:9") && ContainsSubstring("\\xE9"));
  CHECK_THROWS_WITH(toml_from_text("# caf\xe9\n", "r.toml"), ContainsSubstring("r.toml:1:6"));
  CHECK_THROWS_WITH(toml_from_text(std::string("\xff\xfe") + "a", "r.toml"),
                    ContainsSubstring("r.toml:1:1") && ContainsSubstring("UTF-16"));
  CHECK_THROWS_WITH(toml_from_text("a = \"\xed\xa0\x80\"", "r.toml"), ContainsSubstring("UTF-8"));
  CHECK_THROWS_WITH(toml_from_text("[t]\na = [\"x\", \"a\\u0000b\"]", "r.toml"),
                    ContainsSubstring("r.toml:2:11") && ContainsSubstring("u0000"));
  CHECK_THROWS_WITH(toml_from_text("\"a\\u0000\" = 1", "r.toml"), ContainsSubstring("u0000"));
  CHECK_THROWS_AS(toml_from_text(std::string("a = \"x\0y\"", 9), "r.toml"), weft::Error);
}

TEST_CASE("toml: a mark of byte order at the start is no part of the text") {
  CHECK(toml_from_text("\xef\xbb\xbf"
                       "a = 1",
                       "r.toml")
            .integer("a") == 1);
}

TEST_CASE("toml: set takes UTF-8 alone") {
  TomlTable t = toml_from_text("a = \"x\"", "r.toml");
  CHECK_THROWS_WITH(t.set("a", "caf\xe9"),
                    ContainsSubstring("--set a=caf\\xE9") && ContainsSubstring("UTF-8"));
  CHECK_THROWS_WITH(t.set("a", "\"caf\xe9\""), ContainsSubstring("UTF-8"));
  CHECK_THROWS_WITH(t.set("b\xe9", "1"), ContainsSubstring("UTF-8"));
  CHECK_THROWS_WITH(t.set("a", "\"x\\u0000\""), ContainsSubstring("u0000"));
  t.set("a", "caf\xc3\xa9");
  CHECK(toml_from_text(t.to_text(), "again").string("a") == "caf\xc3\xa9");
}
