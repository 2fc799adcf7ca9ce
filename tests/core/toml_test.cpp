#include "core/toml.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/message.h"

namespace {

using weft::toml_from_text;
using weft::TomlTable;
using weft::TomlType;
using weft::tests::message;

constexpr weft::Integers kAny{0, std::numeric_limits<int64_t>::max()};
constexpr weft::Numbers kReal{-1e300, 1e300};

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

}  // namespace

TEST_CASE("toml: values come back with their types") {
  const TomlTable t = toml_from_text(kText, "x.toml");
  CHECK(t.string("name") == "small");
  CHECK(t.table("model").integer("width", kAny) == 64);
  CHECK(t.table("model").number("width", kReal) == 64.0);
  CHECK(t.table("model").number("scale", kReal) == 0.5);
  CHECK(t.table("model").strings("pattern") ==
        std::vector<std::string>{"gated_linear", "attention"});
  CHECK(t.tables("stage").at(1).integer("steps", kAny) == 20);
  CHECK(t.tables("none").empty());
  CHECK(t.table("absent").integer("x", kAny, 7) == 7);
  CHECK(t.table("model").type("scale") == TomlType::number);
  CHECK(t.keys() == std::vector<std::string>{"name", "model", "gated_linear", "stage"});
}

TEST_CASE("toml: an unknown key is told with its place and the nearest known name") {
  const TomlTable t = toml_from_text(kText, "recipes/x.toml");
  const TomlTable linear = t.table("gated_linear");
  linear.integer("heads", kAny, 4), linear.integer("key_width", kAny, 64);
  const std::string expected =
      "recipes/x.toml:9:1: unknown key \"head\" in [gated_linear]; did you mean \"heads\"? "
      "known: heads, key_width";
  CHECK(message([&] { linear.finish(); }) == expected);
}

TEST_CASE("toml: finish looks into every sub-table, and at tables nobody opened") {
  const TomlTable t = toml_from_text(kText, "x.toml");
  t.string("name");
  for (const char* key : {"width", "pattern", "scale"}) t.table("model").has(key);
  for (const TomlTable& stage : t.tables("stage")) stage.integer("steps", kAny);
  CHECK(message([&] { t.finish(); }) ==
        "x.toml:8:2: unknown key \"gated_linear\"; known: name, model, stage");
  t.table("gated_linear").has("head");
  CHECK_NOTHROW(t.finish());
}

TEST_CASE("toml: a wrong type says what is and what was expected") {
  const TomlTable t =
      toml_from_text("[a]\nheads = \"4\"\nlist = [1, true]\nday = 1979-05-27", "x.toml");
  const TomlTable a = t.table("a");
  CHECK(message([&] {
          a.integer("heads", {1, 9});
        }) == "x.toml:2:9: \"heads\" in [a] is a string (\"4\"), expected an integer from 1 to 9");
  CHECK(message([&] {
          a.integers("list", {1, 9}, {});
        }) == "x.toml:3:12: \"list\" in [a] holds a boolean (true), expected an array of integers");
  CHECK(message([&] { a.boolean("list"); }) ==
        "x.toml:3:8: \"list\" in [a] is an array of 2 values, expected true or false");
  CHECK(message([&] { a.string("day"); }) ==
        "x.toml:4:7: \"day\" in [a] is a date (1979-05-27), expected a string");
  CHECK(message([&] { a.table("heads"); }) ==
        "x.toml:2:9: \"heads\" in [a] is a string (\"4\"), expected a table");
  CHECK(message([&] {
          a.number("lr", {0, 1});
        }) == "x.toml:1:1: [a] lacks \"lr\", a number from 0 to 1");
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
  CHECK(t.table("model").integer("width", kAny) == 128);
  CHECK(t.table("train").table("schedule").string("name") == "cosine");
  CHECK(t.table("model").strings("pattern") == std::vector<std::string>{"delta"});
  CHECK(t.table("data").integer("seed", kAny) == 3);
  t.set("model.width", "wide");
  CHECK(message([&] { t.table("model").integer("width", kAny); }) ==
        "--set model.width=wide: \"width\" in [model] is a string (\"wide\"), expected an integer "
        "from 0 to 9223372036854775807");
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
  CHECK(back.number("a", kReal) == 1e-3);
  CHECK(back.type("b") == TomlType::number);
  CHECK(std::isinf(back.number("c", {-INFINITY, INFINITY})));
  CHECK(back.string("odd key") == t.string("odd key"));
  CHECK(back.table("outer").table("inner").integer("deep", kAny) == 9223372036854775807);
  CHECK(back.table("outer").tables("list").at(0).table("sub").integer("y", kAny) == 16);
  CHECK(back.table("outer").tables("list").size() == 2);
  CHECK(back.table("outer").table("new").number("value", kReal) == 0.1);
}

TEST_CASE("toml: a number lies in its range, ends included, and what is no number in none") {
  const TomlTable t = toml_from_text(
      "[a]\nsize = 0\nmany = 9\nlist = [1, 0]\nrate = nan\nhuge = inf\ntop = 0.0\nheld = 1",
      "x.toml");
  const TomlTable a = t.table("a");
  CHECK(a.integer("many", {1, 9}) == 9);
  CHECK(message([&] {
          a.integer("size", {1, 9});
        }) == "x.toml:2:8: size = 0 in [a], expected at least 1");
  CHECK(message([&] {
          a.integer("many", {1, 8});
        }) == "x.toml:3:8: many = 9 in [a], expected at most 8");
  CHECK(message([&] {
          a.integers("list", {1, 9}, {});
        }) == "x.toml:4:12: list in [a] holds 0, expected at least 1");
  CHECK(message([&] {
          a.number("rate", {0, 1});
        }) == "x.toml:5:8: rate = nan in [a], expected a number from 0 to 1");
  CHECK(message([&] {
          a.number("huge", {0, 1});
        }).find("expected a number from 0 to 1") != std::string::npos);
  CHECK(message([&] { a.number("top", {.least = 0, .most = 1, .above = true}); }) ==
        "x.toml:7:7: top = 0 in [a], expected a number above 0, up to 1");
  CHECK(message([&] { a.number("held", {.least = 0, .most = 1, .below = true}); }) ==
        "x.toml:8:8: held = 1 in [a], expected a number from 0 to below 1");
  CHECK(a.number("held", {0, 1}) == 1);
}

TEST_CASE("toml: what set() is given is text, letter for letter, where text is wanted") {
  for (const char* given :
       {"2026-11-28", "07:32:00", "1979-05-27T07:32:00Z", "true", "inf", "-nan", "0xdeadbeef",
        "1e5", "1_000", "12", "007", "-0.50", "", " 5 ", "a # b", "1 # b", "{a = 1}", "a=b"}) {
    TomlTable t = toml_from_text("[train]\nout = \"x\"", "x.toml");
    t.set("train.out", given);
    INFO(given);
    CHECK(t.table("train").string("out") == given);
    CHECK(toml_from_text(t.to_text(), "again.toml").table("train").string("out") == given);
  }
  TomlTable t = toml_from_text("", "x.toml");
  t.set("train.out", "\"quoted # text\"");
  CHECK(t.table("train").string("out") == "quoted # text");
  t.set("train.on", "2026-11-28");
  CHECK(message([&] { t.table("train").boolean("on"); }) ==
        "--set train.on=2026-11-28: \"on\" in [train] is a date (2026-11-28), expected true or "
        "false");
}

TEST_CASE("toml: a list of text that set() is given needs no quotes either") {
  const auto list = [](const std::string& given) {
    TomlTable t = toml_from_text("", "x.toml");
    t.set("list", given);
    const auto all = t.strings("list");
    CHECK(toml_from_text(t.to_text(), "again.toml").strings("list") == all);
    return all;
  };
  using Texts = std::vector<std::string>;
  CHECK(list("[a, b*3]") == Texts{"a", "b*3"});
  CHECK(list("[2026-11-28, 1e5, true,]") == Texts{"2026-11-28", "1e5", "true"});
  CHECK(list("[\"a, b\", 'c', d e]") == Texts{"a, b", "c", "d e"});
  CHECK(list("[\"a\", \"b\"]") == Texts{"a", "b"});
  CHECK(message([&] { list("a"); }).find("expected an array of strings") != std::string::npos);
  CHECK(message([&] { list("[a,,b]"); }).find("expected an array of strings") != std::string::npos);

  const auto some = [](const std::string& given) {
    TomlTable t = toml_from_text("", "x.toml");
    t.set("source", given);
    return t.one_or_more("source");
  };
  CHECK(some("a.txt") == Texts{"a.txt"});
  CHECK(some("2026-11-28") == Texts{"2026-11-28"});
  CHECK(some("[a.txt, 1]") == Texts{"a.txt", "1"});
  CHECK(toml_from_text("s = [\"a\"]", "x").one_or_more("s") == Texts{"a"});
  CHECK(message([&] { toml_from_text("s = 1", "x").one_or_more("s"); }).find("expected a string") !=
        std::string::npos);
}

TEST_CASE(
    "toml: what is of no use is refused with the reason, or dropped where an override says so") {
  TomlTable t = toml_from_text("a = 1\nb = 2\n[delta]\nheads = 4", "x.toml");
  t.integer("a", kAny);
  t.unused("b", "there is a", false);
  t.unused("delta", "nothing names it", false);
  CHECK(message([&] { t.finish(); }) == "x.toml:2:1: \"b\" is not used: there is a");
  t.unused("b", "there is a", true);
  CHECK(message([&] { t.finish(); }) == "x.toml:3:2: [delta] is not used: nothing names it");
  t.unused("delta", "nothing names it", true);
  CHECK_NOTHROW(t.finish());
  CHECK(t.to_text() == "a = 1\n");
  t.set("detla", "1");
  CHECK(message([&] { t.finish(); }).find("did you mean \"delta\"?") != std::string::npos);
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
            .integer("a", {0, 9}) == 1);
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

TEST_CASE("toml: values are what readers took, however it was written") {
  const auto read = [](const std::string& text) {
    const TomlTable t = toml_from_text(text, "t");
    const TomlTable a = t.table("a");
    a.number("rate", {0, 1}, 1e-3);
    a.integer("steps", {0, 100}, 5);
    a.boolean("on", true);
    a.string("name", "it");
    a.one_or_more("list", "one");
    t.integers("sizes", {0, 9}, {1, 2});
    return t.values();
  };
  const auto absent = read(""), given = read(R"(
sizes = [0x1, 2]
[a]
list = ["one"]
name = 'it'
on = true
steps = 0b101
rate = 1e-3
unread = 3
)");
  CHECK(absent.size() == 6);
  REQUIRE(given.size() == 6);
  for (const auto& [key, value] : absent) {
    INFO(key);
    CHECK(value.text == given.at(key).text);
    CHECK_FALSE(value.given);
    CHECK(given.at(key).given);
  }
  CHECK(absent.at("a.rate").text == "0.001");
  CHECK(absent.at("a.list").text == "[\"one\"]");
  CHECK(absent.at("sizes").text == "[1, 2]");
  CHECK(read("a = {rate = 1}").at("a.rate").text == read("a = {rate = 1.0}").at("a.rate").text);
  CHECK(read("a = {rate = 0.5}").at("a.rate").text == "0.5");
}

TEST_CASE("toml: a number is written with the digits that it has") {
  const std::pair<double, const char*> numbers[] = {{0.1, "0.1"},
                                                    {0.1234567890123, "0.1234567890123"},
                                                    {1.0 / 3, "0.3333333333333333"},
                                                    {16777217, "16777217.0"},
                                                    {1e300, "1e+300"},
                                                    {5e-324, "5e-324"},
                                                    {-2.5, "-2.5"},
                                                    {3, "3.0"}};
  for (const auto& [number, text] : numbers) {
    TomlTable t = toml_from_text("", "x.toml");
    t.set("a", text);
    CHECK(t.to_text() == std::string("a = ") + text + "\n");
    CHECK(toml_from_text(t.to_text(), "again").number("a", kReal) == number);
    t.number("a", kReal);
    CHECK(t.values().at("a").text == text);
  }
  TomlTable odd = toml_from_text("a = nan\nb = -inf\nc = inf", "x.toml");
  CHECK(odd.to_text() == "a = nan\nb = -inf\nc = inf\n");
}

TEST_CASE("toml: text, keys and tables are written as they read back") {
  TomlTable t = toml_from_text(
      "plain = \"x\"\n\"odd key\" = \"a\\\"b\\\\c\\n\\t\\u0001\\u007f\"\non = true\noff = false\n"
      "[a.b]\nx = 1\n[[c]]\ny = 2\n[[c]]\ny = 3\n",
      "x.toml");
  CHECK(t.to_text() ==
        "plain = \"x\"\n\"odd key\" = \"a\\\"b\\\\c\\n\\t\\u0001\\u007f\"\non = true\noff = false\n"
        "\n[a]\n\n[a.b]\nx = 1\n\n[[c]]\ny = 2\n\n[[c]]\ny = 3\n");
}

TEST_CASE("toml: a name out of a list is taken, another told with the nearest") {
  const TomlTable t = toml_from_text("a = \"wsd\"\nb = \"cosin\"", "x.toml");
  CHECK(t.one_of("a", {"cosine", "wsd"}, "cosine") == "wsd");
  CHECK(t.one_of("none", {"cosine", "wsd"}, "cosine") == "cosine");
  CHECK(message([&] {
          t.one_of("b", {"wsd", "cosine"}, "wsd");
        }) == "x.toml:2:5: b = \"cosin\"; did you mean \"cosine\"? known: wsd, cosine");
}

TEST_CASE("toml: places, titles and what was asked for are told of each table") {
  TomlTable t = toml_from_text("a = 1\n[b]\nc = 2\n[b.d]\ne = 3", "x.toml");
  CHECK(t.where("a") == "x.toml:1:5");
  CHECK(t.where("none") == t.where());
  CHECK(t.title() == "the file");
  CHECK(t.table("b").title() == "[b]");
  CHECK(t.table("b").table("d").title() == "[b.d]");
  CHECK(t.table("b").table("d").where("e") == "x.toml:5:5");
  CHECK(t.has("a"));
  CHECK_FALSE(t.has("z"));
  CHECK_FALSE(t.empty());
  CHECK(t.table("none").empty());
  CHECK(t.type("a") == TomlType::integer);
  CHECK(message([&] { t.type("z"); }).find("lacks \"z\"") != std::string::npos);
  CHECK_FALSE(t.overridden("a"));
  t.set("a", "5");
  t.set("b.f", "text");
  CHECK(t.overridden("a"));
  CHECK(t.table("b").overridden("f"));
  CHECK_FALSE(t.table("b").overridden("c"));
  CHECK(t.peek("b.f") == "text");
  CHECK(t.peek("b.c") == "");  // no text
  CHECK(t.peek("b.z") == "");
  t.integer("a", kAny);
  t.table("b").integer("c", kAny);
}

TEST_CASE("toml: both ends of a range of whole numbers are taken, in a list as well") {
  const TomlTable t = toml_from_text("a = 1\nb = 9\nl = [1, 9, 5]", "x.toml");
  CHECK(t.integer("a", {1, 9}) == 1);
  CHECK(t.integer("b", {1, 9}) == 9);
  CHECK(t.integers("l", {1, 9}, {}) == std::vector<int64_t>{1, 9, 5});
  CHECK(t.integers("none", {1, 9}, {3}) == std::vector<int64_t>{3});
  CHECK(t.integer("none", {1, 9}, 99) == 99);  // a standard is the program's own
  for (const auto& range : {weft::Integers{2, 9}, {1, 8}})
    CHECK(message([&] { t.integers("l", range, {}); }).find("l holds") != std::string::npos);
  CHECK(message([&] {
          t.integer("z", {1, 9});
        }) == "x.toml:1:1: the file lacks \"z\", an integer from 1 to 9");
}
