// Text to token numbers and back. Two vocabularies: the 256 bytes, and one that SentencePiece
// trains on the text. Either way every text, valid UTF-8 or not, comes back byte for byte.
// A vocabulary travels inside token datasets and checkpoints; decoding it needs no library.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/hdf5.h"
#include "data/text.h"

namespace weft::data {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::string kind() const = 0;  // "bytes" or "sentencepiece"
  using Give = std::function<void(std::span<const int32_t>)>;
  // Hands over the tokens of a text a stretch at a time, so that a text of gigabytes needs no more
  // memory than itself. Throws Error in a build without SentencePiece, where the vocabulary is one
  // of its.
  virtual void encode(std::string_view text, const Give& give) const = 0;
  std::vector<int32_t> encode(std::string_view text) const;

  int64_t vocabulary() const { return static_cast<int64_t>(pieces_.size()); }
  // The bytes a token stands for, so that decoding is joining; none for control tokens.
  const std::string& piece(int64_t token) const;
  std::string decode(std::span<const int32_t> tokens) const;
  const std::string& model() const { return model_; }  // SentencePiece's file; "" for bytes
  // Tells vocabularies apart.
  uint64_t hash() const;

 protected:
  std::vector<std::string> pieces_;
  std::string model_;
};

using TokenizerPtr = std::shared_ptr<const Tokenizer>;

TokenizerPtr byte_tokenizer();

struct VocabularyOptions {
  int64_t size = 4096;
  std::string method = "bpe";  // or "unigram"
  // Text above this many bytes is thinned out evenly, line by line.
  int64_t sample_bytes = int64_t{64} << 20;
};

// Trains a SentencePiece vocabulary on documents. A text of more characters than the size has room
// for leaves the rare ones to the byte pieces. Throws Error where the text is too short for the
// size, with the largest that it has.
TokenizerPtr train_tokenizer(const std::vector<std::string>& sources, const TextOptions& text,
                             const VocabularyOptions& options);

// From the bytes of a SentencePiece model file. Throws Error if it is none, or is one that changes
// text (normalises, adds a space in front, has no byte pieces).
TokenizerPtr sentencepiece_tokenizer(const std::string& model);

// The vocabulary whose model() this is: of the 256 bytes for an empty text, of llm.c, of a
// tokenizer.json, or else of SentencePiece. `where` it comes from stands in messages.
TokenizerPtr tokenizer_from(const std::string& model, const std::string& where);

// True where the program was built with SentencePiece.
bool has_sentencepiece();

// As a group of tensors in a dataset or checkpoint.
void save_tokenizer(Hdf5Writer& out, const std::string& group, const Tokenizer& tokenizer);
TokenizerPtr load_tokenizer(const Hdf5Reader& in, const std::string& group);

}  // namespace weft::data
