#include "data/text.h"

#include <stdlib.h>

#include "core/file.h"
#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

TEST_CASE("text: a file is a document, a folder all of its files in order") {
  const Folder folder;
  std::filesystem::create_directories(folder / "b/.git");
  write_file(folder / "c.txt", "third");
  write_file(folder / "a.md", "first");
  write_file(folder / "b/x.txt", "second");
  write_file(folder / "b/.git/x.txt", "hidden");
  const auto all = read_text({folder.path.string()});
  REQUIRE(all.size() == 3);
  CHECK(all[0].text == "first");
  CHECK(all[1].name == folder / "b/x.txt");
  CHECK(all[2].text == "third");
  CHECK(read_text({folder.path.string()}, {.suffixes = {".md"}}).size() == 1);
  const auto twice = read_text({folder / "c.txt", folder / "a.md"});
  CHECK(twice.at(0).text == "third");
}

TEST_CASE("text: a separator cuts a file into documents") {
  const Folder folder;
  write_file(folder / "a.txt", "one\n--\n--\ntwo\nmore\n--\n");
  const auto parts = read_text({folder / "a.txt"}, {.separator = "--\n"});
  REQUIRE(parts.size() == 2);
  CHECK(parts[0].text == "one\n");
  CHECK(parts[1].text == "two\nmore\n");
  CHECK(parts[1].name == folder / "a.txt#3");
}

TEST_CASE("text: what is missing, empty or binary is told") {
  const Folder folder;
  const auto read = [](const std::string& source) { return message([&] { read_text({source}); }); };
  CHECK(contains(read(folder / "no.txt"), "no.txt: cannot be read: No such file or directory"));
  write_file(folder / "empty.txt", "");
  CHECK(contains(read(folder / "empty.txt"), "empty.txt: is empty, expected text"));
  write_file(folder / "binary.txt", std::string("abc\0def", 7));
  CHECK(contains(read(folder / "binary.txt"),
                 "binary.txt: is not text: byte 3 is zero; expected UTF-8 text"));
  std::filesystem::create_directory(folder / "none");
  CHECK(contains(read(folder / "none"), "is a folder without files"));
  CHECK(contains(message([] { read_text({}); }), "no text is named"));
}

TEST_CASE("text: kjv is the Bible, a chapter a document, or says what to install") {
  const std::string path = ::getenv("PATH");
  ::setenv("PATH", "/nowhere", 1);
  const std::string missing = message([] { read_text({"kjv"}); });
  ::setenv("PATH", path.c_str(), 1);
  CHECK(contains(missing, "\"bible\" is missing; install it (apt-get install bible-kjv)"));

  std::vector<Document> chapters;
  try {
    chapters = read_text({"kjv"});
  } catch (const Error& error) {
    SKIP(error.what());
  }
  REQUIRE(chapters.size() == 1189);
  CHECK(chapters[0].name == "Ge1");
  CHECK(chapters[0].text.starts_with(
      "In the beginning God created the heaven and the earth.\nAnd the earth was"));
  CHECK(chapters.back().name == "Rev22");
  CHECK(chapters.back().text.ends_with("\n"));
  const auto marked = read_text({"kjv"}, {.references = true});
  CHECK(marked[1].text.starts_with("Ge2:1 Thus"));
}
