// Documents and their names do not depend on where the blocks of a file end.
#include "data/cutter.h"

#include <utility>

#include "tests/data/helpers.h"

using namespace weft::data;

namespace {

using Named = std::vector<std::pair<std::string, std::string>>;

// The documents of a text that comes in blocks of so many bytes.
Named cut(std::string_view text, Cut how, size_t block) {
  Named all;
  Cutter cutter("f", text.size(), how,
                [&](Document&& d) { all.emplace_back(d.name, std::move(d.text)); });
  for (size_t at = 0; at < text.size(); at += block) cutter.add(text.substr(at, block));
  cutter.finish();
  return all;
}

}  // namespace

TEST_CASE("cutter: wherever a block ends, documents and names are those of the whole text") {
  for (const std::string text :
       {"a\r\nb\r\n\r\nc\r\n\r\n\r\nd", "a\n\nb\n\n\nc\n", "a\r\rb\r\r\rc\r",
        "a\n\r\nb\r\n\nc\n\rd", "a \t\r\n \t\r\n b\t\r\n\t\r\n\r\n", "\r\n\r\na\r\n", "no end",
        "\r", "\r\n", "\n\r\n\r\r\n"})
    for (const Cut how : {Cut::file, Cut::line, Cut::blank}) {
      const Named whole = cut(text, how, text.size());
      for (size_t block = 1; block < text.size(); ++block) {
        INFO(text << "\nin blocks of " << block);
        CHECK(cut(text, how, block) == whole);
      }
    }
}

TEST_CASE("cutter: a separator that a block cuts in two is one separator") {
  for (size_t block = 1; block < 12; ++block) {
    INFO("blocks of " << block);
    CHECK(cut("ab\r\n\r\ncd\r\n\r\nef", Cut::blank, block) ==
          Named{{"f#1", "ab"}, {"f#2", "cd"}, {"f#3", "ef"}});
    CHECK(cut("ab\r\n\r\n\r\ncd", Cut::blank, block) == Named{{"f#1", "ab"}, {"f#2", "\r\ncd"}});
    CHECK(cut("ab\r\ncd\r\nef", Cut::line, block) ==
          Named{{"f#1", "ab"}, {"f#2", "cd"}, {"f#3", "ef"}});
  }
}

TEST_CASE("cutter: a document is named by its number, blank ones counted, a whole file by itself") {
  CHECK(cut("a\n\n \nb\n", Cut::line, 3) == Named{{"f#1", "a"}, {"f#4", "b"}});
  CHECK(cut("a\n\nb", Cut::file, 2) == Named{{"f", "a\n\nb"}});
  CHECK(cut("", Cut::line, 2).empty());
  CHECK(cut(" \t\n\n \t", Cut::blank, 2).empty());
}

TEST_CASE("cutter: a line end at the very end of a text separates nothing") {
  for (const std::string end : {"\n", "\r\n", "\r"}) {
    CHECK(cut("a" + end + "b" + end, Cut::line, 1) == Named{{"f#1", "a"}, {"f#2", "b"}});
    CHECK(cut("a" + end + end, Cut::blank, 1) == Named{{"f#1", "a"}});
    CHECK(cut("a" + end, Cut::blank, 1) == Named{{"f#1", "a" + end}});
  }
}
