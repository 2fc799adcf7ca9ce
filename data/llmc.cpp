#include "data/llmc.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "core/error.h"
#include "data/blocks.h"

namespace weft::data {
namespace {

constexpr size_t kHeader = 256 * 4;
constexpr uint32_t kVocabulary = 20240328, kShort = 20240520, kLong = 20240801;
constexpr uint32_t kEndOfGpt2 = 50256;

uint32_t number_at(std::string_view bytes, size_t at, size_t size = 4) {
  uint32_t n = 0;
  for (size_t i = 0; i < size; ++i)
    n |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  return n;
}

class LlmcTokenizer final : public Tokenizer {
 public:
  LlmcTokenizer(const std::string& file, const std::string& where) {
    require(file.size() >= kHeader && is_llmc_vocabulary(file), where,
            ": is no vocabulary of llm.c, as its training script writes gpt2_tokenizer.bin");
    const uint32_t version = number_at(file, 4), size = number_at(file, 8);
    require(version == 1 || version == 2, where, ": is a vocabulary of version ", version,
            ", known are 1 and 2");
    size_t at = kHeader;
    for (uint32_t i = 0; i < size; ++i) {
      const size_t length = at < file.size() ? static_cast<unsigned char>(file[at]) : 256;
      require(length > 0 && at + 1 + length <= file.size(), where, ": ends in token ", i, " of ",
              size);
      pieces_.push_back(file.substr(at + 1, length));
      at += 1 + length;
    }
    require(at == file.size(), where, ": is longer than its ", size, " tokens");
    end_ = version == 1 ? kEndOfGpt2 : number_at(file, 12);
    require(end_ < size, where, ": the token between documents is ", end_, " of ", size);
    pieces_[end_].clear();  // it stands for no text
    model_ = file;
  }
  std::string kind() const override { return kLlmc; }
  using Tokenizer::encode;
  void encode(std::string_view, const Give&) const override {
    fail("this vocabulary is of llm.c, whose files hold no rule that makes text into tokens; it ",
         "reads tokens alone");
  }
  int32_t end() const { return static_cast<int32_t>(end_); }

 private:
  uint32_t end_ = 0;
};

// What the header of a token file says.
struct Tokens {
  size_t size = 0;  // bytes of one
  uint64_t count = 0;
};

Tokens read_header(std::string_view header, const std::string& path) {
  const uint32_t magic = header.size() < kHeader ? 0 : number_at(header, 0);
  require(magic == kShort || magic == kLong, path, ": is no token file of llm.c");
  const uint32_t version = number_at(header, 4), expected = magic == kShort ? 1 : 7;
  require(version == expected, path, ": is a token file of version ", version, ", expected ",
          expected);
  return {magic == kShort ? size_t{2} : size_t{4}, number_at(header, 8)};
}

}  // namespace

bool is_llmc_vocabulary(std::string_view bytes) {
  return bytes.size() >= 4 && number_at(bytes, 0) == kVocabulary;
}

TokenizerPtr llmc_tokenizer(const std::string& bytes, const std::string& where) {
  return std::make_shared<LlmcTokenizer>(bytes, where);
}

bool is_llmc_tokens(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "rbe");
  if (!file) return false;
  std::array<char, 4> bytes{};
  const size_t n = std::fread(bytes.data(), 1, bytes.size(), file);
  std::fclose(file);
  const uint32_t magic = n == bytes.size() ? number_at({bytes.data(), n}, 0) : 0;
  return magic == kShort || magic == kLong;
}

void for_each_llmc_document(const std::string& path, const Tokenizer& tokenizer,
                            const std::function<void(std::vector<int32_t>&&)>& take) {
  const auto* const vocabulary = dynamic_cast<const LlmcTokenizer*>(&tokenizer);
  require(vocabulary, path,
          ": holds tokens of llm.c; expected the vocabulary that it was made with");
  Blocks blocks(path);
  std::string rest;  // of a block, less than one token or than the header
  Tokens tokens;
  std::vector<int32_t> document;
  uint64_t read = 0;
  for (std::string_view block; !(block = blocks.next()).empty();) {
    rest += block;
    if (tokens.size == 0) {
      if (rest.size() < kHeader) continue;
      tokens = read_header(rest, path);
      rest.erase(0, kHeader);
    }
    const size_t n = rest.size() / tokens.size;
    for (size_t i = 0; i < n; ++i) {
      const uint32_t token = number_at(rest, i * tokens.size, tokens.size);
      require(static_cast<int64_t>(token) < tokenizer.vocabulary(), path, ": token ", read + i,
              " is ", token, ", the vocabulary has ", tokenizer.vocabulary());
      if (static_cast<int32_t>(token) == vocabulary->end() && !document.empty())
        take(std::exchange(document, {}));
      document.push_back(static_cast<int32_t>(token));
    }
    read += n;
    rest.erase(0, n * tokens.size);
  }
  if (tokens.size == 0) read_header(rest, path);
  require(read == tokens.count && rest.empty(), path, ": holds ", read,
          " whole tokens, its header says ", tokens.count);
  if (!document.empty()) take(std::move(document));
}

}  // namespace weft::data
