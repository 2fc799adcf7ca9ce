#include "data/tokenizer.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/file.h"
#include "core/hdf5.h"
#include "core/random.h"
#include "tests/data/helpers.h"

using namespace weft;
using namespace weft::data;

namespace {

// A text with enough words for a small vocabulary.
std::string words(uint64_t seed, int64_t count) {
  const Random random(seed);
  const std::vector<std::string> parts = {"ba", "lo", "mi", "tu", "re", "ska", "en", "\xc3\xa9"};
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<uint64_t>(i) * 4;
    for (uint64_t part = 0; part <= random.below(3, at); ++part)
      text += parts[random.below(parts.size(), at + 1 + part)];
    text += i % 11 == 10 ? ".\n" : " ";
  }
  return text;
}

std::string random_bytes(uint64_t seed, size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(Random(seed).below(256, i));
  return text;
}

TokenizerPtr trained(const std::string& method) {
  const Folder folder;
  write_file(folder / "a.txt", words(1, 4000));
  return train_tokenizer({folder / "a.txt"}, {}, {.size = 400, .method = method});
}

}  // namespace

TEST_CASE("tokenizer: every byte comes back from the byte vocabulary") {
  const TokenizerPtr bytes = byte_tokenizer();
  CHECK(bytes->vocabulary() == 256);
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const auto tokens = bytes->encode(all);
  CHECK(tokens[200] == 200);
  CHECK(bytes->decode(tokens) == all);
  const std::vector<int32_t> outside = {256};
  CHECK(contains(message([&] { bytes->decode(outside); }), "outside the vocabulary of 256"));
}

TEST_CASE("tokenizer: SentencePiece gives every text back byte for byte") {
  if (!has_sentencepiece()) {
    CHECK(contains(message([] { trained("bpe"); }), "install libsentencepiece-dev"));
    SKIP("built without SentencePiece");
  }
  for (const std::string method : {"bpe", "unigram"}) {
    INFO(method);
    const TokenizerPtr tokenizer = trained(method);
    CHECK(tokenizer->vocabulary() == 400);
    const auto round = [&](const std::string& text) {
      return tokenizer->decode(tokenizer->encode(text)) == text;
    };
    CHECK(round(words(2, 500)));
    CHECK(tokenizer->encode(words(2, 500)).size() < words(2, 500).size() / 2);
    for (const std::string text :
         {"", " ", "\n", "  two  spaces  ", "\t\r\n\n x", "unseen: \xf0\x9f\x98\x80 \xe4\xb8\xad",
          "\xe2\x96\x81 as it is", "<s></s><unk><0x41>", "cut \xe2\x96",
          "\xed\xa0\x80\xf4\x90\x80\x80", "\xc0\x80\xe0\x80\x80",
          "\xef\xac\x81 \xcc\x81\xc2\xa0"}) {
      INFO(text);
      CHECK(round(text));
    }
    CHECK(round(std::string("zero \0 byte", 11)));
    for (uint64_t seed = 0; seed < 20; ++seed) CHECK(round(random_bytes(seed, 300)));
    int64_t bytes = 0;
    for (const int32_t token : tokenizer->encode("b\xc3\xa9 lo\n"))
      bytes += static_cast<int64_t>(tokenizer->piece(token).size());
    CHECK(bytes == 7);
  }
}

namespace {

TokenizerPtr trained_on(const std::string& text, int64_t size, const std::string& method = "bpe") {
  const Folder folder;
  write_file(folder / "a.txt", text);
  return train_tokenizer({folder / "a.txt"}, {}, {.size = size, .method = method});
}

// `count` letters of an alphabet, the first of it the commonest; a line's end after each `line`, if
// any.
std::string letters(const std::vector<std::string>& alphabet, int64_t count, int64_t line) {
  const Random random(5);
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<uint64_t>(2 * i);
    text += alphabet[random.below(1 + random.below(alphabet.size(), at), at + 1)];
    if (line > 0 && i % line == line - 1) text += '\n';
  }
  return text;
}

std::vector<std::string> characters(int from, int count) {  // of three bytes of UTF-8
  std::vector<std::string> list;
  for (int c = from; c < from + count; ++c)
    list.push_back({static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
                    static_cast<char>(0x80 | (c & 63))});
  return list;
}

}  // namespace

TEST_CASE("tokenizer: a text without spaces trains a vocabulary that gives every text back") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const std::map<std::string, std::string> texts = {
      {"Chinese", letters(characters(0x4e00, 500), 9000, 31)},
      {"Japanese", letters(characters(0x3041, 80), 9000, 40)},
      {"Thai", letters(characters(0x0e01, 46), 9000, 50)},
      {"DNA", letters({"A", "C", "G", "T"}, 20000, 70)},
      {"one line without an end", letters({"A", "C", "G", "T", "N"}, 600000, 0)},
      {"a table", letters({"1", "2", "7", "\t", "abc", "."}, 20000, 30)},
      {"lone CR", letters({"lo", "mi", "\r", "re"}, 20000, 0)}};
  for (const auto& [name, text] : texts)
    for (const std::string method : {"bpe", "unigram"}) {
      if (method == "unigram" && text.size() > 100000) continue;  // slow
      INFO(name << ", " << method);
      const TokenizerPtr tokenizer = trained_on(text, name == "Chinese" ? 900 : 340, method);
      CHECK(tokenizer->vocabulary() == (name == "Chinese" ? 900 : 340));
      CHECK(tokenizer->encode(text).size() < text.size());
      for (const std::string& some :
           {text, std::string(" a  b "), std::string("\xe2\x96\x81 \xe2\x96\x81\xe2\x96 \x81"),
            std::string("\0 \r\n\t ", 6), random_bytes(3, 500)})
        CHECK(tokenizer->decode(tokenizer->encode(some)) == some);
    }
}

TEST_CASE(
    "tokenizer: more characters than a vocabulary has room for leave the rare ones to bytes") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const std::string text = letters(characters(0x4e00, 2000), 30000, 31);
  for (const int64_t size : {301, 700}) {
    const TokenizerPtr tokenizer = trained_on(text, size);
    CHECK(tokenizer->vocabulary() == size);
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
    CHECK(tokenizer->encode(text).size() < text.size());
  }
}

TEST_CASE("tokenizer: where a text is too short for a vocabulary, the largest named can be had") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  for (const std::string& text :
       {words(1, 300), letters(characters(0x4e00, 60), 400, 20), letters({"A", "C"}, 900, 70)})
    for (const std::string method : {"bpe", "unigram"}) {
      if (text.find_first_not_of("AC\n") == std::string::npos && method == "unigram")
        continue;  // has fewer pieces than 301
      const std::string refused = message([&] { trained_on(text, 40000, method); });
      INFO(method << ": " << refused);
      const std::string before = "it has one of 301 to ";
      REQUIRE(contains(refused, before));
      const int64_t most = std::stoll(refused.substr(refused.find(before) + before.size()));
      CHECK(trained_on(text, most, method)->vocabulary() == most);
    }
}

TEST_CASE("tokenizer: a text is encoded alike whole and handed over in stretches") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const std::string text = letters({"lo", "mi", "\xc3\xa9", " "}, 400000, 0);
  const TokenizerPtr tokenizer = trained_on(text, 320);
  size_t most = 0;
  std::vector<int32_t> tokens;
  tokenizer->encode(text, [&](std::span<const int32_t> some) {
    most = std::max(most, some.size());
    tokens.insert(tokens.end(), some.begin(), some.end());
  });
  CHECK(tokens == tokenizer->encode(text));
  CHECK(tokenizer->decode(tokens) == text);
  CHECK(most < tokens.size() / 2);
}

TEST_CASE("tokenizer: the same text trains the same vocabulary") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  for (const std::string method : {"bpe", "unigram"})
    CHECK(trained(method)->model() == trained(method)->model());
  CHECK(trained("bpe")->hash() != trained("unigram")->hash());
}

TEST_CASE("tokenizer: a vocabulary that does not fit is told") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const Folder folder;
  write_file(folder / "a.txt", "too little text\n");
  const auto train = [&](int64_t size, const std::string& method) {
    return message(
        [&] { train_tokenizer({folder / "a.txt"}, {}, {.size = size, .method = method}); });
  };
  for (const std::string method : {"bpe", "unigram"})
    CHECK(contains(train(4096, method), "a.txt: the text is too short for a vocabulary of 4096"));
  CHECK(contains(train(int64_t{1} << 40, "bpe"), "is too large, expected at most"));
  CHECK(contains(train(100, "bpe"), "expected over 300"));
  CHECK(contains(train(400, "wordpiece"), "known: bpe, unigram"));
  CHECK(contains(message([] { sentencepiece_tokenizer("rubbish"); }), "no SentencePiece"));
}

TEST_CASE("tokenizer: a sample of a long text is as much of its beginning as of its end") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const Folder folder;
  // Words of one half of the alphabet, then as many of the other.
  const Random random(5, stream_of("halves"));
  std::string halves[2];
  for (uint64_t half = 0; half < 2; ++half)
    for (uint64_t i = 0; i < 20000; ++i)
      halves[half] += std::string(4, static_cast<char>('a' + 13 * half + random.below(13, i))) +
                      (i % 8 == 7 ? "\n" : " ");
  write_file(folder / "a.txt", halves[0] + halves[1]);
  const TokenizerPtr t =
      train_tokenizer({folder / "a.txt"}, {}, {.size = 330, .sample_bytes = 2000});
  const auto first = static_cast<double>(t->encode(halves[0]).size());
  const auto second = static_cast<double>(t->encode(halves[1]).size());
  INFO(first << " tokens and " << second);
  CHECK(first < 1.5 * second);
  CHECK(second < 1.5 * first);
}

TEST_CASE("tokenizer: a vocabulary travels in a file") {
  const Folder folder;
  const TokenizerPtr before = has_sentencepiece() ? trained("bpe") : byte_tokenizer();
  {
    Hdf5Writer out(folder / "a.h5");
    save_tokenizer(out, "data/tokenizer", *before);
    save_tokenizer(out, "bytes", *byte_tokenizer());
    out.commit();
  }
  const Hdf5Reader in(folder / "a.h5");
  const TokenizerPtr after = load_tokenizer(in, "data/tokenizer");
  CHECK(after->hash() == before->hash());
  CHECK(after->encode(words(3, 100)) == before->encode(words(3, 100)));
  CHECK(load_tokenizer(in, "bytes")->kind() == "bytes");
}

TEST_CASE("tokenizer: bytes are numbered by their value, in texts of any length") {
  const TokenizerPtr bytes = byte_tokenizer();
  CHECK(bytes->encode("").empty());
  CHECK(bytes->encode("A\xff") == std::vector<int32_t>{65, 255});
  for (const size_t size : {4095u, 4096u, 4097u, 10000u}) {
    std::string text(size, '\0');
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(i * 7 + i / 256);
    const std::vector<int32_t> tokens = bytes->encode(text);
    REQUIRE(tokens.size() == size);
    CHECK((bytes->decode(tokens) == text));
  }
  CHECK(bytes->piece(255) == "\xff");
  CHECK(
      contains(message([&] { bytes->piece(256); }), "token 256 is outside the vocabulary of 256"));
  CHECK(contains(message([&] { bytes->piece(-1); }), "token -1 is outside"));
  CHECK(bytes->model().empty());
  CHECK(bytes->kind() == "bytes");
}

TEST_CASE("tokenizer: the hash tells vocabularies apart by kind, pieces and their borders") {
  struct Made final : Tokenizer {
    Made(std::string kind, std::vector<std::string> pieces) : kind_(std::move(kind)) {
      pieces_ = std::move(pieces);
    }
    std::string kind() const override { return kind_; }
    void encode(std::string_view, const Give&) const override {}
    std::string kind_;
  };
  std::set<uint64_t> seen;
  for (const Made& one : {Made("a", {"x", "yz"}), Made("a", {"xy", "z"}), Made("a", {"yz", "x"}),
                          Made("b", {"x", "yz"}), Made("a", {"x", "yz", ""})})
    seen.insert(one.hash());
  CHECK(seen.size() == 5);
  CHECK(Made("a", {"x", "yz"}).hash() == Made("a", {"x", "yz"}).hash());
}

TEST_CASE("tokenizer: a vocabulary has the size that is asked for, from 301 on") {
  if (!has_sentencepiece()) SKIP("built without SentencePiece");
  const Folder folder;
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word" + std::to_string(i * i % 97) + (i % 9 ? " " : "\n");
  write_file(folder / "a.txt", text);
  const auto train = [&](int64_t size, const std::string& method = "bpe") {
    return train_tokenizer({folder / "a.txt"}, {}, {.size = size, .method = method});
  };
  for (const int64_t size : {301, 320}) {
    const TokenizerPtr t = train(size);
    CHECK(t->vocabulary() == size);
    CHECK((t->decode(t->encode(text)) == text));
  }
  CHECK(contains(message([&] { train(300); }), "a vocabulary of 300 is too small"));
  CHECK(contains(message([&] { train((1 << 24) + 1); }), "is too large"));
  CHECK(
      contains(message([&] { train(320, "words"); }), "\"words\" is unknown; known: bpe, unigram"));
  CHECK(train(310)->hash() != train(310, "unigram")->hash());
}
