#include "data/text.h"

#include <stdlib.h>
#include <sys/stat.h>

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
  const auto all = read_text({folder.path()});
  REQUIRE(all.size() == 3);
  CHECK(all[0].text == "first");
  CHECK(all[1].name == folder / "b/x.txt");
  CHECK(all[2].text == "third");
  CHECK(read_text({folder.path()}, {.suffixes = {".md"}}).size() == 1);
  const auto twice = read_text({folder / "c.txt", folder / "a.md"});
  CHECK(twice.at(0).text == "third");
}

namespace {

std::vector<std::string> cut(const std::string& text, Cut how) {
  const Folder folder;
  write_file(folder / "a.txt", text);
  std::vector<std::string> parts;
  for_each_document({folder / "a.txt"}, {.document = how},
                    [&](Document&& document) { parts.push_back(document.text); });
  return parts;
}

std::string with_line_ends(const std::string& text, const std::string& end) {
  std::string changed;
  for (const char c : text) changed += c == '\n' ? end : std::string(1, c);
  return changed;
}

using Parts = std::vector<std::string>;

}  // namespace

TEST_CASE("text: lines and blank lines end with LF, CR LF or CR alike") {
  const std::string text = "one\ntwo\n\n\nthree\n\n  \nfour\n\t\n\nfive\n";
  for (const Cut how : {Cut::line, Cut::blank})
    for (const std::string end : {"\r\n", "\r"}) {
      Parts expected;
      for (const std::string& part : cut(text, how)) expected.push_back(with_line_ends(part, end));
      CHECK(cut(with_line_ends(text, end), how) == expected);
    }
  CHECK(cut("a\r\nb\rc\nd", Cut::line) == Parts{"a", "b", "c", "d"});
  CHECK(cut("a\r\n\nb\n\r\nc\n\rd\r\re", Cut::blank) == Parts{"a", "b", "c", "d", "e"});
}

TEST_CASE("text: documents keep their own line ends, and an LF text is cut at two LF") {
  CHECK(cut("a\nb\n\nc\n\n\nd\n", Cut::blank) == Parts{"a\nb", "c", "\nd\n"});
  CHECK(cut("a\r\nb\r\n\r\nc\r\n", Cut::blank) == Parts{"a\r\nb", "c\r\n"});
  CHECK(cut("a\r\n\r\nb", Cut::file) == Parts{"a\r\n\r\nb"});
}

TEST_CASE("text: a line of spaces and tabs is blank") {
  CHECK(cut("a\n \t\nb", Cut::blank) == Parts{"a", "b"});
  CHECK(cut(" \n\na\n\n  \n\nb\n ", Cut::blank) == Parts{"a", "b\n "});
  CHECK(cut("  \na \n\t\n b\n", Cut::line) == Parts{"a ", " b"});
}

TEST_CASE("text: a file of many blocks is cut as it would be in one") {
  // Documents of all lengths around the borders of blocks, one of them most of the file.
  std::string text, line;
  Parts expected;
  for (int i = 0; i < 4000; ++i) {
    line = std::string(static_cast<size_t>(1 + i * 37 % 1900), static_cast<char>('a' + i % 26));
    if (i == 2000) line = std::string(5'000'000, 'x');
    expected.push_back(line);
    text += line + "\r\n";
  }
  CHECK(cut(text, Cut::line) == expected);
  CHECK(cut(with_line_ends(text, "\n\r"), Cut::blank) == expected);
  CHECK(cut(text, Cut::file).at(0).size() == text.size());
}

TEST_CASE("text: what of a folder is no text is left out and told once") {
  const Folder folder;
  namespace fs = std::filesystem;
  write_file(folder / "a.txt", "text");
  write_file(folder / "empty.txt", "");
  write_file(folder / "binary.bin", std::string(2'000'000, 'x') + std::string("\0y", 2));
  write_file(folder / "set.h5", "\x89HDF\r\n\x1a\n and more");
  fs::create_symlink("loop", folder / "loop");
  fs::create_symlink("nowhere", folder / "dangling");
  fs::create_directories(folder / "run/checkpoints");
  write_file(folder / "run/recipe.toml", "steps = 1");
  fs::create_directories(folder / "new_run");
  write_file(folder / "new_run/lock", "1");
  fs::create_directory_symlink(folder / "run", folder / "link");
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);  // opening it would wait for ever
  std::vector<std::string> names;
  const LeftOut left_out =
      for_each_document({folder.path()}, {.run_folder = folder / "new_run"},
                        [&](Document&& document) { names.push_back(document.name); });
  CHECK(names == std::vector<std::string>{folder / "a.txt"});
  for (const std::string& part : std::vector<std::string>{
           "1 empty (" + (folder / "empty.txt") + ")", "1 binary (" + (folder / "binary.bin") + ")",
           "1 HDF5, as checkpoints and datasets are (", "2 folders of runs (",
           "2 links that lead nowhere (", folder / "loop", "1 links to folders (",
           "1 pipes, sockets or devices ("})
    contains(left_out.text(), part);
  fs::create_directories(folder / "other");
  write_file(folder / "other/b.txt", "text");
  contains(for_each_document({folder.path(), folder / "other"}, {.run_folder = folder / "new_run"},
                             [](Document&&) {})
               .text(),
           "1 empty (" + (folder / "empty.txt") + ")");
  fs::remove_all(folder / "other");
  fs::remove(folder / "a.txt");
  const TextOptions options{.run_folder = folder / "new_run"};
  contains(message([&] { read_text({folder.path()}, options); }),
           "without files of text; left out:");
}

TEST_CASE("text: a file that is named and is no text is refused by what it is") {
  const Folder folder;
  std::filesystem::create_symlink("loop", folder / "loop");
  std::filesystem::create_symlink("nowhere", folder / "dangling");
  write_file(folder / "set.bin", "\x89HDF\r\n\x1a\n");
  const auto read = [](const std::string& source) { return message([&] { read_text({source}); }); };
  contains(read(folder / "loop"), "loop: cannot be read: Too many levels of symbolic links");
  contains(read(folder / "dangling"), "dangling: is a link to \"nowhere\", which is not there");
  contains(read("/dev/zero"), "/dev/zero: is a device, expected a file of text");
  contains(read(folder / "set.bin"), "set.bin: is an HDF5 file, expected text");
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

TEST_CASE("text: four of a kind are counted, and three of them named") {
  LeftOut left_out;
  CHECK(left_out.empty());
  CHECK(left_out.text().empty());
  left_out.add("empty", "a");
  CHECK_FALSE(left_out.empty());
  CHECK(left_out.text() == "1 empty (a)");
  left_out.add("empty", "b");
  left_out.add("binary", "x");
  left_out.add("empty", "c");
  CHECK(left_out.text() == "1 binary (x); 3 empty (a, b, c)");
  left_out.add("empty", "d");
  CHECK(left_out.text() == "1 binary (x); 4 empty (a, b, c, ...)");
}

TEST_CASE("text: paths are sorted by their bytes, and a name's end is its suffix") {
  const Folder folder;
  std::filesystem::create_directories(folder / "a");
  for (const char* name : {"a/z.txt", "a.txt", "B.txt", "a-b.txt", "b.md", "txt", "c.txt.bak"})
    write_file(folder / name, name);
  std::vector<std::string> texts;
  const auto read = [&](const TextOptions& options) {
    texts.clear();
    for (const Document& d : read_text({folder.path()}, options)) texts.push_back(d.text);
    return texts;
  };
  CHECK(read({}) == Parts{"B.txt", "a-b.txt", "a.txt", "a/z.txt", "b.md", "c.txt.bak", "txt"});
  CHECK(read({.suffixes = {".txt"}}) == Parts{"B.txt", "a-b.txt", "a.txt", "a/z.txt"});
  CHECK(read({.suffixes = {".md", ".bak"}}) == Parts{"b.md", "c.txt.bak"});
  CHECK(contains(message([&] { read({.suffixes = {".rst"}}); }),
                 "is a folder without files of the suffixes asked for"));
}

TEST_CASE("text: sources come as they are named, the same one twice too") {
  const Folder folder;
  std::filesystem::create_directories(folder / "d");
  write_file(folder / "d/x.txt", "x");
  write_file(folder / "a.txt", "a");
  Parts texts;
  for (const Document& d : read_text({folder / "d", folder / "a.txt", folder / "d"}))
    texts.push_back(d.text);
  CHECK(texts == Parts{"x", "a", "x"});
}

TEST_CASE("text: a run's folder holds a recipe and a folder of checkpoints, both") {
  const Folder folder;
  namespace fs = std::filesystem;
  fs::create_directories(folder / "one/checkpoints");
  fs::create_directories(folder / "two");
  write_file(folder / "one/text.txt", "one");
  write_file(folder / "two/recipe.toml", "two");
  fs::create_directories(folder / "three/checkpoints");
  write_file(folder / "three/recipe.toml", "x");
  Parts texts;
  const LeftOut left_out =
      for_each_document({folder.path()}, {}, [&](Document&& d) { texts.push_back(d.text); });
  CHECK(texts == Parts{"one", "two"});
  CHECK(left_out.text() == "1 folders of runs (" + (folder / "three") + ")");
}

TEST_CASE("text: a zero byte is found wherever it lies, and told by its place") {
  const Folder folder;
  for (const size_t at : {size_t{0}, size_t{1} << 20, (size_t{1} << 20) + 7, size_t{2'500'000}}) {
    std::string bytes(2'600'000, 'x');
    bytes[at] = '\0';
    write_file(folder / "a.txt", bytes);
    CHECK(contains(message([&] { read_text({folder / "a.txt"}); }),
                   "byte " + std::to_string(at) + " is zero"));
  }
}
