#include "data/tokenizer.h"

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
  CHECK(contains(train(4096, "bpe"), "cannot make a vocabulary of 4096 from this text"));
  CHECK(contains(train(4096, "unigram"), "cannot make a vocabulary of 4096 from this text"));
  CHECK(contains(train(100, "bpe"), "expected over 300"));
  CHECK(contains(train(400, "wordpiece"), "known: bpe, unigram"));
  CHECK(contains(message([] { sentencepiece_tokenizer("rubbish"); }), "no SentencePiece"));
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
