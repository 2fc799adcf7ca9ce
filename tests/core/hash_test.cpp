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

TEST_CASE("hash: it is XXH64 for every kind of tail, below and above a stripe") {
  CHECK(weft::to_hex(weft::hash64("Nobody inspects the spammish repetition")) ==
        "fbcea83c8a378bf1");
  const std::pair<int, const char*> known[] = {
      {4, "fb1e5cf2f1ae4d95"},  {5, "9d213eca1f68f273"},  {8, "57cb2b7521f3e21a"},
      {12, "2f53b00266039e64"}, {15, "90a9714eb00e8d29"}, {31, "e4a0e629e519a4ae"},
      {32, "cc6b8aaada790b2d"}, {33, "35ec49850475a832"}, {36, "bebb6d8c24fb3cfa"},
      {63, "bf9f0ba3cf95b28a"}, {64, "155ccce4bf32befc"}, {100, "4826e367566ea023"}};
  for (const auto& [size, hash] : known) {
    std::string text;
    for (int i = 0; i < size; ++i) text += static_cast<char>(i * 37 + 11);
    INFO(size << " bytes");
    CHECK(weft::to_hex(weft::hash64(text)) == hash);
  }
}

TEST_CASE("hash: sixteen digits, small ones with their zeros") {
  CHECK(weft::to_hex(0) == "0000000000000000");
  CHECK(weft::to_hex(0xabc) == "0000000000000abc");
  CHECK(weft::to_hex(0xF000000000000001) == "f000000000000001");
}
