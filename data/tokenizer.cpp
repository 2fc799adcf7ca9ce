#include "data/tokenizer.h"

#ifdef WEFT_HAS_SENTENCEPIECE
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#endif

#include <algorithm>
#include <array>
#include <functional>
#include <set>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "core/hash.h"
#include "core/text.h"
#include "data/byte_pairs.h"
#include "data/llmc.h"

namespace weft::data {

const std::string& Tokenizer::piece(int64_t token) const {
  require(token >= 0 && token < vocabulary(), "token ", token, " is outside the vocabulary of ",
          vocabulary());
  return pieces_[static_cast<size_t>(token)];
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) text += piece(token);
  return text;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> tokens;
  encode(text, [&](std::span<const int32_t> some) {
    tokens.insert(tokens.end(), some.begin(), some.end());
  });
  return tokens;
}

uint64_t Tokenizer::hash() const {
  Hash64 hash;
  hash.update(kind());
  for (const std::string& piece : pieces_) {
    const uint64_t size = piece.size();
    hash.update(&size, sizeof size);
    hash.update(piece);
  }
  if (kind() == "byte_pairs") hash.update(model_);  // merges and cuts are no pieces
  return hash.digest();
}

bool has_sentencepiece() {
#ifdef WEFT_HAS_SENTENCEPIECE
  return true;
#else
  return false;
#endif
}

namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer() {
    for (int byte = 0; byte < 256; ++byte)
      pieces_.push_back(std::string(1, static_cast<char>(byte)));
  }
  std::string kind() const override { return "bytes"; }
  using Tokenizer::encode;
  void encode(std::string_view text, const Give& give) const override {
    std::array<int32_t, 4096> tokens{};
    while (!text.empty()) {
      const size_t n = std::min(text.size(), tokens.size());
      for (size_t i = 0; i < n; ++i) tokens[i] = static_cast<uint8_t>(text[i]);
      give({tokens.data(), n});
      text.remove_prefix(n);
    }
  }
};

[[noreturn]] void no_sentencepiece() {
  fail("this build has no SentencePiece, so that only bytes are a vocabulary; install ",
       "libsentencepiece-dev and build again, or use the bytes");
}

// A SentencePiece vocabulary as it lies in a file, where the library is not there: it decodes.
class StoredTokenizer final : public Tokenizer {
 public:
  StoredTokenizer(std::string model, std::vector<std::string> pieces) {
    model_ = std::move(model), pieces_ = std::move(pieces);
  }
  std::string kind() const override { return "sentencepiece"; }
  using Tokenizer::encode;
  void encode(std::string_view, const Give&) const override { no_sentencepiece(); }
};

#ifdef WEFT_HAS_SENTENCEPIECE

constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, which SentencePiece writes for ' '
constexpr size_t kLongestSentence = 4096;
// Of text that is encoded at once: SentencePiece needs some hundred bytes for each byte of it.
constexpr size_t kLongestStretch = size_t{1} << 18;

// Length of the character at the start of a text that SentencePiece takes, 0 where it takes none:
// of what is no UTF-8, of a zero byte, and of U+2581, which would come back as a space.
size_t character(std::string_view text) {
  return text.front() == '\0' || text.starts_with(kSpace) ? 0 : utf8_character(text);
}

// What SentencePiece says, without the line of its source in front.
std::string reason(const sentencepiece::util::Status& status) {
  const std::string text = status.ToString();
  const size_t at = text.rfind("] ");
  return at == std::string::npos ? text : text.substr(at + 2);
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::string& model) {
    const auto status = processor_.LoadFromSerializedProto(model);
    require(status.ok(), "this is no SentencePiece vocabulary: ", reason(status));
    model_ = model;
    bytes_.fill(-1);
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsByte(id)) {  // "<0x0A>"
        const int byte = std::stoi(processor_.IdToPiece(id).substr(3, 2), nullptr, 16);
        bytes_[static_cast<size_t>(byte)] = id;
        pieces_.push_back(std::string(1, static_cast<char>(byte)));
      } else if (processor_.IsControl(id) || processor_.IsUnknown(id) || processor_.IsUnused(id)) {
        pieces_.push_back("");
      } else {
        pieces_.push_back(with_spaces(processor_.IdToPiece(id)));
        has_space_ = has_space_ || pieces_.back() == " ";
      }
    }
    for (const int32_t id : bytes_) require(id >= 0, inexact());
    // A letter, spaces and forms that the usual normalisation would change.
    const std::string probe = "  A\xef\xbc\xa1  \xef\xac\x81 \xc2\xa0 a\xcc\x81\t x ";
    require(decode(encode(probe)) == probe, inexact());
  }

  std::string kind() const override { return "sentencepiece"; }

  using Tokenizer::encode;
  // By stretches of valid text within a line: merges never cross a line's end, and long texts in
  // one piece are slow. All else is byte pieces.
  void encode(std::string_view text, const Give& give) const override {
    size_t begin = 0, at = 0;
    const auto flush = [&] {
      if (at > begin) append(text.substr(begin, at - begin), give);
      begin = at;
    };
    while (at < text.size()) {
      const size_t size = text[at] == '\n' ? 0 : character(text.substr(at));
      if (size == 0 || at - begin >= kLongestStretch) flush();
      if (size == 0) give({&bytes_[static_cast<uint8_t>(text[at])], 1});
      at += std::max<size_t>(size, 1);
      if (size == 0) begin = at;
    }
    flush();
  }

 private:
  static std::string inexact() {
    return "this SentencePiece vocabulary does not give every text back as it was; `weft data` "
           "trains "
           "such; one of another program has to be trained with "
           "--byte_fallback=true --normalization_rule_name=identity "
           "--remove_extra_whitespaces=false --add_dummy_prefix=false";
  }

  static std::string with_spaces(std::string piece) {
    for (size_t at = 0; (at = piece.find(kSpace, at)) != std::string::npos; ++at)
      piece.replace(at, kSpace.size(), " ");
    return piece;
  }

  void append(std::string_view text, const Give& give) const {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    require(status.ok(), "SentencePiece cannot encode: ", reason(status));
    if (!has_space_) restore_spaces(ids);
    give(ids);
  }

  // Where no piece is a lone space, SentencePiece writes one as the three bytes of U+2581. The text
  // that it was given has no U+2581 of its own.
  void restore_spaces(std::vector<int>& ids) const {
    std::array<int, kSpace.size()> written{};
    for (size_t i = 0; i < kSpace.size(); ++i) written[i] = bytes_[static_cast<uint8_t>(kSpace[i])];
    size_t kept = 0;
    for (size_t i = 0; i < ids.size(); ++kept) {
      const bool space =
          ids.size() - i >= written.size() && std::equal(written.begin(), written.end(), &ids[i]);
      ids[kept] = space ? bytes_[' '] : ids[i];
      i += space ? written.size() : 1;
    }
    ids.resize(kept);
  }

  sentencepiece::SentencePieceProcessor processor_;
  std::array<int32_t, 256> bytes_{};
  bool has_space_ = false;  // as a piece of its own
};

template <class F>
void for_each_character(std::string_view text, const F& f) {
  for (size_t size = 0; !text.empty(); text.remove_prefix(std::max<size_t>(1, size)))
    if (size = character(text); size > 0) f(text.substr(0, size));
}

// The lines of all documents, thinned out evenly to a number of bytes: every line is kept until
// there are too many, then every second, every fourth.
class Sample {
 public:
  explicit Sample(int64_t most) : most_(most) {}

  void add(std::string_view text) {
    while (!text.empty()) {
      size_t end = std::min(text.find('\n'), text.size());
      const size_t next = std::min(text.size(), end + 1);
      if (end > kLongestSentence) {
        end = kLongestSentence;  // cut between characters
        while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xc0) == 0x80) --end;
        if (end == 0) end = kLongestSentence;
        add_line(text.substr(0, end));
        text.remove_prefix(end);
      } else {
        add_line(text.substr(0, end));
        text.remove_prefix(next);
      }
    }
  }
  // Cuts the lines at all but the `most` commonest characters.
  void keep_characters(size_t most);
  const std::vector<std::string>& lines() const { return lines_; }

 private:
  void add_line(std::string_view line) {
    if (line.empty() || count_++ % stride_ != 0) return;
    lines_.emplace_back(line);
    bytes_ += static_cast<int64_t>(line.size());
    if (bytes_ <= most_) return;
    bytes_ = 0;
    size_t kept = 0;
    for (size_t i = 0; i < lines_.size(); i += 2) {
      lines_[kept] = std::move(lines_[i]);
      bytes_ += static_cast<int64_t>(lines_[kept++].size());
    }
    lines_.resize(kept);
    stride_ *= 2;
  }

  int64_t most_, bytes_ = 0, count_ = 0, stride_ = 1;
  std::vector<std::string> lines_;
};

void Sample::keep_characters(size_t most) {
  std::unordered_map<std::string_view, int64_t> counts;
  for (const std::string& line : lines_)
    for_each_character(line, [&](std::string_view c) { ++counts[c]; });
  std::vector<std::pair<int64_t, std::string>> sorted;
  for (const auto& [c, count] : counts) sorted.emplace_back(-count, c);
  std::sort(sorted.begin(), sorted.end());
  sorted.resize(std::min(most, sorted.size()));
  std::set<std::string, std::less<>> kept;
  for (const auto& [count, c] : sorted) kept.insert(c);
  std::vector<std::string> lines;
  for (const std::string& line : lines_) {
    bool open = false;
    for_each_character(line, [&](std::string_view c) {
      const bool keep = kept.contains(c);
      if (keep && !open) lines.emplace_back();
      if (keep) lines.back() += c;
      open = keep;
    });
  }
  lines_ = std::move(lines);
}

class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return at_ >= lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t at_ = 0;
};

constexpr int64_t kOwnPieces = 259;  // the bytes, the unknown, begin and end
constexpr int64_t kLeastVocabulary = 300, kMostVocabulary = int64_t{1} << 24;

// `exact`: the size is asked for, and is not the most there may be.
sentencepiece::util::Status train_model(const std::vector<std::string>& text,
                                        const VocabularyOptions& options, bool exact,
                                        std::string& model) {
  Lines lines(text);
  std::unordered_map<std::string, std::string> settings = {
      {"model_type", options.method},
      {"vocab_size", std::to_string(options.size)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"character_coverage", "0.9995"},
      {"max_sentence_length", std::to_string(2 * kLongestSentence)},
      {"num_threads", "1"},  // the sums of unigram training depend on it
      {"minloglevel", "3"}};
  if (!exact) settings["hard_vocab_limit"] = "false";
  return sentencepiece::SentencePieceTrainer::Train(settings, &lines, &model);
}

#endif

}  // namespace

TokenizerPtr byte_tokenizer() {
  static const TokenizerPtr bytes = std::make_shared<ByteTokenizer>();
  return bytes;
}

#ifdef WEFT_HAS_SENTENCEPIECE

TokenizerPtr sentencepiece_tokenizer(const std::string& model) {
  return std::make_shared<SentencePieceTokenizer>(model);
}

TokenizerPtr train_tokenizer(const std::vector<std::string>& sources, const TextOptions& text,
                             const VocabularyOptions& options) {
  require(options.method == "bpe" || options.method == "unigram", "vocabulary method \"",
          options.method, "\" is unknown; known: bpe, unigram");
  require(options.size > kLeastVocabulary, "a vocabulary of ", options.size,
          " is too small: 256 bytes and the characters of the text must fit, expected over ",
          kLeastVocabulary);
  require(options.size <= kMostVocabulary, "a vocabulary of ", options.size,
          " is too large, expected at most ", kMostVocabulary);
  Sample sample(options.sample_bytes);
  for_each_document(sources, text, [&](Document&& document) { sample.add(document.text); });
  require(
      !sample.lines().empty(), joined(sources),
      ": holds no characters to make a vocabulary of; expected text, or the bytes as tokenizer");
  std::string model;
  auto status = train_model(sample.lines(), options, true, model);
  if (!status.ok()) {  // perhaps because the characters leave no room for pieces
    sample.keep_characters(static_cast<size_t>(options.size - kOwnPieces) * 3 / 4);
    status = train_model(sample.lines(), options, true, model);
  }
  if (status.ok()) return sentencepiece_tokenizer(model);
  const auto largest = train_model(sample.lines(), options, false, model);
  require(largest.ok(), joined(sources), ": SentencePiece cannot make a vocabulary of ",
          options.size, " from this text: ", reason(status));
  const int64_t most = sentencepiece_tokenizer(model)->vocabulary();
  require(most > kLeastVocabulary, joined(sources), ": the text is too short for a vocabulary of ",
          options.size, ": it has ", most, " pieces, expected over ", kLeastVocabulary,
          "; name more text, or use the bytes as tokenizer");
  fail(joined(sources), ": the text is too short for a vocabulary of ", options.size,
       "; it has one of ", kLeastVocabulary + 1, " to ", most);
}

#else

TokenizerPtr sentencepiece_tokenizer(const std::string&) { no_sentencepiece(); }

TokenizerPtr train_tokenizer(const std::vector<std::string>&, const TextOptions&,
                             const VocabularyOptions&) {
  no_sentencepiece();
}

#endif

TokenizerPtr tokenizer_from(const std::string& model, const std::string& where) {
  if (model.empty()) return byte_tokenizer();
  if (is_llmc_vocabulary(model)) return llmc_tokenizer(model, where);
  return is_byte_pairs(model) ? byte_pair_tokenizer(model) : sentencepiece_tokenizer(model);
}

void save_tokenizer(Hdf5Writer& out, const std::string& group, const Tokenizer& tokenizer) {
  out.attribute(group, "kind", tokenizer.kind());
  out.attribute(group, "vocabulary", tokenizer.vocabulary());
  if (tokenizer.kind() == "bytes") return;
  std::string pieces;
  std::vector<int64_t> offsets = {0};
  for (int64_t i = 0; i < tokenizer.vocabulary(); ++i) {
    pieces += tokenizer.piece(i);
    offsets.push_back(static_cast<int64_t>(pieces.size()));
  }
  const auto bytes = [&](const std::string& name, const std::string& text) {
    out.tensor(group + "/" + name, Dtype::u8, {static_cast<int64_t>(text.size())}, text.data());
  };
  bytes("model", tokenizer.model());
  bytes("pieces", pieces);
  out.tensor(group + "/offsets", Dtype::i64, {static_cast<int64_t>(offsets.size())},
             offsets.data());
}

TokenizerPtr load_tokenizer(const Hdf5Reader& in, const std::string& group) {
  const std::string kind = in.text(group, "kind");
  if (kind == "bytes") return byte_tokenizer();
  require(kind == "sentencepiece" || kind == "byte_pairs" || kind == kLlmc, in.path(),
          ": its vocabulary is of the unknown kind \"", kind,
          "\"; known: bytes, sentencepiece, byte_pairs, ", kLlmc);
  const auto bytes = [&](const std::string& name) {
    const Tensor t = in.tensor(group + "/" + name);
    return std::string(reinterpret_cast<const char*>(t.data<uint8_t>()),
                       static_cast<size_t>(t.numel()));
  };
  if (kind == "byte_pairs") return byte_pair_tokenizer(bytes("model"));
  if (kind == kLlmc) return llmc_tokenizer(bytes("model"), in.path());
  if (has_sentencepiece()) return sentencepiece_tokenizer(bytes("model"));
  const std::string text = bytes("pieces");
  const std::vector<int64_t> offsets = to_ints(in.tensor(group + "/offsets"));
  std::vector<std::string> pieces;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    require(offsets[i] >= 0 && offsets[i] <= offsets[i + 1] &&
                offsets[i + 1] <= static_cast<int64_t>(text.size()),
            in.path(), ": the pieces of its vocabulary are out of order");
    pieces.push_back(text.substr(static_cast<size_t>(offsets[i]),
                                 static_cast<size_t>(offsets[i + 1] - offsets[i])));
  }
  return std::make_shared<StoredTokenizer>(bytes("model"), std::move(pieces));
}

}  // namespace weft::data
