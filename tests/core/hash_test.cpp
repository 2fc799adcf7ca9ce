#include "core/hash.h"

#include <string>

#include "tests/catch.h"

TEST_CASE("hash: it is XXH64") {  // the values that `xxhsum -H64` prints
  CHECK(weft::to_hex(weft::hash64("")) == "ef46db3751d8e999");
  CHECK(weft::to_hex(weft::hash64("a")) == "d24ec4f1a98c6e5b");
  CHECK(weft::to_hex(weft::hash64("abc")) == "44bc2cf5ad770999");
}

TEST_CASE("hash: pieces of any size hash as the whole") {
  std::string text;
  for (int i = 0; i < 301; ++i) text += static_cast<char>(i * 37 + i / 7);
  const uint64_t whole = weft::hash64(text);
  for (size_t piece = 1; piece < 70; ++piece) {
    weft::Hash64 hash;
    for (size_t at = 0; at < text.size(); at += piece)
      hash.update(std::string_view(text).substr(at, piece));
    CHECK(hash.digest() == whole);
  }
}

TEST_CASE("hash: every flipped bit changes it") {
  std::string text(77, 'x');
  const uint64_t before = weft::hash64(text);
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << bit % 8));
    CHECK(weft::hash64(text) != before);
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << bit % 8));
  }
}
