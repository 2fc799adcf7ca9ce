// Sources that are not plain text: packed files, JSON lines, the token files of llm.c.
#include <algorithm>

#include "core/file.h"
#include "data/dataset.h"
#include "data/llmc.h"
#include "tests/catch.h"
#include "tests/message.h"
#include "tests/train/shell.h"

using namespace weft;
using namespace weft::data;
using namespace weft::tests;

namespace {

std::vector<std::string> texts(const std::string& path, const TextOptions& options = {}) {
  std::vector<std::string> all;
  for (const Document& d : read_text({path}, options)) all.push_back(d.text);
  return all;
}

std::string little_endian(const std::vector<uint32_t>& numbers, int bytes) {
  std::string out;
  for (const uint32_t n : numbers)
    for (int i = 0; i < bytes; ++i) out += static_cast<char>(n >> (8 * i) & 0xff);
  return out;
}

std::string header(std::vector<uint32_t> numbers) {
  numbers.resize(256);
  return little_endian(numbers, 4);
}

// A vocabulary of four tokens, the last of which stands between documents.
std::string vocabulary() { return header({20240328, 2, 4, 3}) + std::string("\1a\2bc\1 \3end"); }

std::string tokens(const std::vector<uint32_t>& all) {
  return header({20240520, 1, static_cast<uint32_t>(all.size())}) + little_endian(all, 2);
}

}  // namespace

TEST_CASE("packed: a file that gzip or zstd packed is what it holds, alone and in a folder") {
  const Folder f;
  const std::string text = "one line\nand 'another'\n";
  f.write("it's.txt", text);
  for (const char* program : {"gzip", "zstd"}) {
    if (run_shell(f, std::string(program) + " --version").status != 0) continue;
    INFO(program);
    const std::string name = std::string("it's.txt") + (program[0] == 'g' ? ".gz" : ".zst");
    REQUIRE(run_shell(f, std::string(program) + " -c \"it's.txt\" > \"" + name + "\"").status == 0);
    CHECK(texts(f / name) == std::vector<std::string>{text});
    TextOptions lines;
    lines.document = Cut::line;
    CHECK(texts(f / name, lines) == std::vector<std::string>{"one line", "and 'another'"});
    lines.suffixes = {".txt"};
    CHECK(texts(f.path(), lines).size() >= 4);
    const std::string bytes = f.read(name);
    f.write("cut" + name, bytes.substr(0, bytes.size() - 5));
    CHECK_THAT(message([&] { texts(f / ("cut" + name)); }), ContainsSubstring("cannot unpack it"));
    std::filesystem::remove(f / ("cut" + name));
  }
  f.write("plain.gz", text);
  CHECK_THAT(message([&] { texts(f / "plain.gz"); }), ContainsSubstring("not what its name says"));
}

TEST_CASE("packed: a field of JSON lines is a document, and a line without it is refused") {
  const Folder f;
  TextOptions options;
  options.field = "text";
  f.write(
      "a.jsonl",
      "{\"id\":1,\"text\":\"one\\ntwo\"}\n\n{\"text\":\"\"}\r\n{\"text\":\"d\\u00e9j\\u00e0\"}");
  CHECK(texts(f / "a.jsonl", options) == std::vector<std::string>{"one\ntwo", "d\u00e9j\u00e0"});
  const auto refusal = [&](const std::string& line) {
    f.write("b.jsonl", "{\"text\":\"first\"}\n" + line + "\n");
    return message([&] { texts(f / "b.jsonl", options); });
  };
  CHECK_THAT(refusal("{\"txt\":\"x\"}"),
             ContainsSubstring("record 2 has no field \"text\"; did you mean \"txt\"?"));
  CHECK_THAT(refusal("{\"text\":3}"), ContainsSubstring("is number, expected text"));
  CHECK_THAT(refusal("[1]"), ContainsSubstring("record 2 is array, expected an object"));
  CHECK_THAT(refusal("{\"text\":\"x\""), ContainsSubstring("record 2 is no JSON"));
}

TEST_CASE("packed: weft data and a recipe take a field of packed JSON lines") {
  const Folder f;
  std::string lines;
  for (int i = 0; i < 60; ++i) lines += "{\"text\":\"number " + std::to_string(i) + " of it\"}\n";
  f.write("a.jsonl", lines);
  REQUIRE(run_shell(f, "gzip a.jsonl").status == 0);
  Ran ran = run_weft(f, {"data", "a.jsonl.gz", "--field", "text", "--out", "a.h5"});
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK(open_token_dataset(f / "a.h5").documents() == 60);
  f.write("recipe.toml", kSmallModel +
                             "field = \"text\"\npacked = true\n[train]\nsteps = 1\nbatch = 1\n"
                             "out = \"run\"\n");
  ran = run_weft(f, {"train", "recipe.toml", "--set", "data.source=a.jsonl.gz"});
  INFO(ran.text);
  CHECK(ran.status == 0);
  CHECK(
      run_weft(f, {"data", "a.jsonl.gz", "--field", "text", "--document", "line", "--out", "b.h5"})
          .status == 2);
}

TEST_CASE("packed: token files of llm.c keep their tokens, documents and bytes") {
  const Folder f;
  f.write("v.bin", vocabulary());
  f.write("t.bin", tokens({3, 0, 1, 2, 3, 1, 1}));
  const Ran ran = run_weft(f, {"data", "t.bin", "--tokenizer", "v.bin", "--out", "t.h5"});
  INFO(ran.text);
  REQUIRE(ran.status == 0);
  const TokenDataset set = open_token_dataset(f / "t.h5");
  CHECK(set.borders() == std::vector<int64_t>{0, 4, 7});
  CHECK(set.text_bytes() == 8);
  CHECK(set.all().tokens(0, 7) == std::vector<int32_t>{3, 0, 1, 2, 3, 1, 1});
  CHECK(set.all().text(0, 7) == "abc bcbc");
  CHECK_THAT(message([&] { set.tokenizer()->encode("a"); }), ContainsSubstring("no rule"));
  CHECK(tokenizer_from(set.tokenizer()->model(), "it")->kind() == kLlmc);
  f.write("long.bin", header({20240801, 7, 2}) + little_endian({3, 2}, 4));
  CHECK(run_weft(f, {"data", "long.bin", "--tokenizer", "v.bin", "--out", "l.h5"}).status == 0);
}

TEST_CASE("packed: a token file of llm.c that is not whole, or of another vocabulary, is refused") {
  const Folder f;
  f.write("v.bin", vocabulary());
  const auto refusal = [&](const std::string& file, const std::string& tokenizer = "v.bin") {
    f.write("t.bin", file);
    const Ran ran = run_weft(f, {"data", "t.bin", "--tokenizer", tokenizer, "--out", "t.h5"});
    CHECK(ran.status == 2);
    CHECK_FALSE(std::filesystem::exists(f / "t.h5"));
    return ran.text;
  };
  CHECK_THAT(refusal(tokens({0, 1, 4})), ContainsSubstring("token 2 is 4, the vocabulary has 4"));
  CHECK_THAT(refusal(tokens({0, 1}) + "x"), ContainsSubstring("holds 2 whole tokens"));
  CHECK_THAT(refusal(tokens({0, 1}).substr(0, 1026)), ContainsSubstring("its header says 2"));
  CHECK_THAT(refusal(tokens({0, 1}).substr(0, 100)), ContainsSubstring("is no token file"));
  CHECK_THAT(refusal(header({20240520, 2, 0})), ContainsSubstring("version 2, expected 1"));
  CHECK_THAT(refusal(tokens({0, 1}), "bytes"), ContainsSubstring("name the vocabulary"));
  f.write("w.bin", vocabulary().substr(0, 1030));
  CHECK_THAT(refusal(tokens({0, 1}), "w.bin"), ContainsSubstring("ends in token"));
  f.write("w.bin", "text");
  CHECK_THAT(refusal(tokens({0, 1}), "w.bin"), ContainsSubstring("no vocabulary of llm.c"));
}
