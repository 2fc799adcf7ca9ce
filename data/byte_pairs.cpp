#include "data/byte_pairs.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <queue>
#include <unordered_map>

#include "core/error.h"
#include "core/text.h"
#include "data/pretokens.h"
#include "data/unicode.h"

namespace weft::data {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMostTokens = int64_t{1} << 24;

// The character that stands for each byte: printable ones for themselves, others from U+0100 on.
std::array<uint32_t, 256> byte_characters() {
  std::array<uint32_t, 256> all{};
  uint32_t others = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    all[b] = itself ? b : others++;
  }
  return all;
}

// The bytes that a token of the vocabulary is written for; none where it is no such token.
std::optional<std::string> bytes_of(const std::string& written) {
  static const auto byte = [] {
    std::unordered_map<uint32_t, char> all;
    const auto characters = byte_characters();
    for (size_t b = 0; b < characters.size(); ++b) all[characters[b]] = static_cast<char>(b);
    return all;
  }();
  std::string bytes;
  for (size_t at = 0; at < written.size();) {
    const Character c = character_at(written, at);
    const auto found = byte.find(c.code);
    if (found == byte.end()) return {};
    bytes += found->second;
    at += c.size;
  }
  return bytes;
}

std::string kind_of(const Json& j) {
  if (j.is_null()) return "null";
  return j.is_object() && j.contains("type") && j.at("type").is_string()
             ? j.at("type").get<std::string>()
             : j.dump().substr(0, 60);
}

// The value of a key; null where there is none.
const Json& value(const Json& table, const char* key) {
  static const Json none;
  const auto found = table.is_object() ? table.find(key) : table.end();
  return table.is_object() && found != table.end() ? *found : none;
}

void require_value(const Json& table, const std::string& where, const char* key, const Json& wanted,
                   const char* why) {
  const Json& given = value(table, key);
  const bool empty = given.is_null() || given == "";
  require((empty && (wanted.is_null() || wanted == false)) || given == wanted, where, key, " is ",
          given.dump(), ", expected ", wanted.dump(), ": ", why);
}

// The parts of a Sequence, or the one part itself, or none.
std::vector<Json> parts_of(const Json& j, const char* list) {
  if (j.is_null()) return {};
  if (kind_of(j) != "Sequence") return {j};
  const Json& all = value(j, list);
  require(all.is_array(), "a Sequence holds no list of ", list);
  return {all.begin(), all.end()};
}

// Merges: two neighbouring tokens, what they become, and the place in the list.
struct Merge {
  int32_t rank, token;
};
uint64_t pair_of(int32_t a, int32_t b) {
  return uint64_t{static_cast<uint32_t>(a)} << 32 | static_cast<uint32_t>(b);
}

// Tokens with a text of their own, found in a text before anything else is done to it: the first
// that begins, and of these the longest.
class Marks {
 public:
  void add(std::string text, int32_t token) {
    auto& list = by_byte_[static_cast<uint8_t>(text[0])];
    list.emplace_back(std::move(text), token);
    std::stable_sort(list.begin(), list.end(),
                     [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  }
  // Hands over stretches of text and tokens in turn.
  template <class Text, class Token>
  void split(std::string_view text, const Text& on_text, const Token& on_token) const {
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
      const auto* const found = mark_at(text.substr(at));
      if (!found) {
        ++at;
        continue;
      }
      if (at > begin) on_text(text.substr(begin, at - begin));
      on_token(found->second);
      begin = at += found->first.size();
    }
    if (begin < text.size()) on_text(text.substr(begin));
  }

 private:
  using Mark = std::pair<std::string, int32_t>;
  const Mark* mark_at(std::string_view text) const {
    for (const Mark& mark : by_byte_[static_cast<uint8_t>(text[0])])
      if (text.starts_with(mark.first)) return &mark;
    return nullptr;
  }
  std::array<std::vector<Mark>, 256> by_byte_;
};

class BytePairTokenizer final : public Tokenizer {
 public:
  explicit BytePairTokenizer(const std::string& text) {
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    require(json.is_object() && value(json, "model").is_object(),
            "this is no tokenizer.json: expected an object with a model");
    try {
      read_settings(json);
      read_vocabulary(value(json, "model"));
      read_marks(value(json, "added_tokens"));
      read_merges(value(value(json, "model"), "merges"));
    } catch (const nlohmann::json::exception& e) {
      fail("this tokenizer.json cannot be read: ", e.what());
    }
    model_ = text;
  }

  std::string kind() const override { return "byte_pairs"; }

  using Tokenizer::encode;
  void encode(std::string_view text, const Give& give) const override {
    const auto one = [&](int32_t token) { give({&token, 1}); };
    marks_.split(
        text,
        [&](std::string_view plain) {
          const std::string changed = compose_ ? composed(plain) : std::string();
          late_marks_.split(
              compose_ ? std::string_view(changed) : plain,
              [&](std::string_view rest) { encode_plain(rest, give); }, one);
        },
        one);
  }

 private:
  void read_settings(const Json& json);
  void read_vocabulary(const Json& model);
  void read_marks(const Json& added);
  void read_merges(const Json& merges);
  void set_piece(int64_t token, std::string piece);

  void encode_plain(std::string_view text, const Give& give) const {
    std::vector<int32_t> tokens;
    while (!text.empty()) {
      const size_t n = pretoken(text, rule_);
      tokens.clear();
      encode_piece(text.substr(0, n), tokens);
      give(tokens);
      text.remove_prefix(n);
    }
  }
  void encode_piece(std::string_view piece, std::vector<int32_t>& out) const;
  const Merge* merge_of(int32_t a, int32_t b) const {
    const auto found = merges_.find(pair_of(a, b));
    return found == merges_.end() ? nullptr : &found->second;
  }

  bool compose_ = false, whole_first_ = false;
  PretokenRule rule_;
  std::array<int32_t, 256> bytes_{};
  std::unordered_map<std::string, int32_t> tokens_;  // by their bytes
  std::unordered_map<uint64_t, Merge> merges_;
  Marks marks_, late_marks_;        // the latter in the composed text
  std::vector<int64_t> unwritten_;  // tokens of the vocabulary that are no bytes
};

void BytePairTokenizer::read_settings(const Json& json) {
  for (const Json& part : parts_of(value(json, "normalizer"), "normalizers")) {
    require(kind_of(part) == "NFC", "its normalizer is ", kind_of(part), ", expected NFC or none");
    compose_ = true;
  }
  bool bytes = false;
  for (const Json& part : parts_of(value(json, "pre_tokenizer"), "pretokenizers")) {
    const std::string kind = kind_of(part);
    require(!bytes, "its pre_tokenizer has ", kind, " after ByteLevel");
    if (kind == "Split") {
      require_value(part, "its Split's ", "behavior", "Isolated", "pieces stand alone here");
      require_value(part, "its Split's ", "invert", false, "pieces stand alone here");
      const Json& expression = value(value(part, "pattern"), "Regex");
      require(expression.is_string() && rule_.digits == 0, "its pre_tokenizer's Split is ",
              part.dump().substr(0, 200), ", expected one with one Regex");
      rule_ = pretoken_rule(expression.get<std::string>());
      continue;
    }
    require(kind == "ByteLevel", "its pre_tokenizer is ", kind,
            ", expected ByteLevel, or Split and ByteLevel");
    bytes = true;
    require_value(part, "its ByteLevel's ", "add_prefix_space", false, "a text is taken as it is");
    const Json& own = value(part, "use_regex");
    require(own == (rule_.digits == 0) || (own.is_null() && rule_.digits == 0),
            "its ByteLevel's use_regex is ", own.dump(), ", expected the one cut or the other");
  }
  require(bytes, "its pre_tokenizer is ", kind_of(value(json, "pre_tokenizer")),
          ", expected ByteLevel");
  require(kind_of(value(json, "decoder")) == "ByteLevel", "its decoder is ",
          kind_of(value(json, "decoder")), ", expected ByteLevel");
}

void BytePairTokenizer::set_piece(int64_t token, std::string piece) {
  require(token >= 0 && token < kMostTokens, "its token ", token, " is out of range");
  if (token >= vocabulary()) pieces_.resize(static_cast<size_t>(token) + 1);
  pieces_[static_cast<size_t>(token)] = std::move(piece);
}

void BytePairTokenizer::read_vocabulary(const Json& model) {
  const Json& type = value(model, "type");
  require(type == "BPE" || (type.is_null() && model.contains("merges")), "its model is ",
          kind_of(model), ", expected BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    require_value(model, "its model's ", key, Json(), "tokens are bytes alone here");
  require(value(model, "dropout").is_null() || value(model, "dropout") == 0.0,
          "its model's dropout is ", value(model, "dropout").dump(), ", expected none");
  require_value(model, "its model's ", "byte_fallback", false, "all tokens are bytes here");
  whole_first_ = value(model, "ignore_merges") == true;
  require(value(model, "vocab").is_object(), "its model has no vocab");
  for (const auto& [written, token] : value(model, "vocab").items()) {
    const auto id = token.get<int64_t>();
    const std::optional<std::string> bytes = bytes_of(written);
    set_piece(id, bytes.value_or(""));
    if (!bytes) unwritten_.push_back(id);
    if (bytes) tokens_[*bytes] = static_cast<int32_t>(id);
  }
  for (int b = 0; b < 256; ++b) {
    const auto found = tokens_.find(std::string(1, static_cast<char>(b)));
    require(found != tokens_.end(), "its vocabulary has no token for the byte ", b);
    bytes_[static_cast<size_t>(b)] = found->second;
  }
}

void BytePairTokenizer::read_marks(const Json& added) {
  if (added.is_null()) return;
  for (const Json& token : added) {
    const auto id = token.at("id").get<int64_t>();
    const auto content = token.at("content").get<std::string>();
    for (const char* key : {"single_word", "lstrip", "rstrip"})
      require_value(token, concat("its added token \"", content, "\": "), key, false,
                    "tokens stand for themselves alone here");
    if (content.empty()) continue;
    set_piece(id, content);
    std::erase(unwritten_, id);
    const bool late = value(token, "normalized") == true;
    const auto number = static_cast<int32_t>(id);
    if (late)
      late_marks_.add(compose_ ? composed(content) : content, number);
    else
      marks_.add(content, number);
  }
  require(unwritten_.empty(), "its token ", unwritten_.empty() ? 0 : unwritten_[0],
          " is not written in the characters that stand for bytes");
}

void BytePairTokenizer::read_merges(const Json& merges) {
  require(merges.is_array(), "its model has no merges");
  int32_t rank = 0;
  const auto token = [&](const std::string& written) {
    const std::optional<std::string> bytes = bytes_of(written);
    const auto found = bytes ? tokens_.find(*bytes) : tokens_.end();
    require(found != tokens_.end(), "its merge ", rank, " names \"", written,
            "\", which its vocabulary does not have");
    return found->second;
  };
  for (const Json& merge : merges) {
    std::string a, b;
    if (merge.is_string()) {
      const std::string both = merge.get<std::string>();
      const size_t space = both.find(' ');
      require(space != std::string::npos, "its merge ", rank, " is \"", both, "\"");
      a = both.substr(0, space);
      b = both.substr(space + 1);
    } else {
      require(merge.is_array() && merge.size() == 2, "its merge ", rank, " is no pair");
      a = merge[0].get<std::string>();
      b = merge[1].get<std::string>();
    }
    const int32_t left = token(a), right = token(b);
    merges_[pair_of(left, right)] = {rank, token(a + b)};
    ++rank;
  }
  if (!whole_first_) tokens_.clear();
}

void BytePairTokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& out) const {
  if (whole_first_)
    if (const auto found = tokens_.find(std::string(piece)); found != tokens_.end())
      return out.push_back(found->second);
  // Tokens of the piece as a list; one that has joined the one before it is -1.
  const size_t n = piece.size();
  std::vector<int32_t> tokens(n);
  std::vector<size_t> next(n), previous(n);
  for (size_t i = 0; i < n; ++i) {
    tokens[i] = bytes_[static_cast<uint8_t>(piece[i])];
    next[i] = i + 1;
    previous[i] = i - 1;  // that of the first is no place
  }
  struct Candidate {
    int32_t rank, token;
    size_t at;
    bool operator<(const Candidate& o) const {  // the queue gives the largest first
      return rank != o.rank ? rank > o.rank : at > o.at;
    }
  };
  std::priority_queue<Candidate> queue;
  const auto offer = [&](size_t i) {
    if (i >= n || next[i] >= n) return;
    if (const Merge* m = merge_of(tokens[i], tokens[next[i]])) queue.push({m->rank, m->token, i});
  };
  for (size_t i = 0; i < n; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate c = queue.top();
    queue.pop();
    const size_t right = next[c.at];
    if (tokens[c.at] < 0 || right >= n) continue;
    const Merge* const m = merge_of(tokens[c.at], tokens[right]);
    if (!m || m->token != c.token) continue;  // one of the two has changed
    tokens[c.at] = c.token;
    tokens[right] = -1;
    next[c.at] = next[right];
    if (next[right] < n) previous[next[right]] = c.at;
    offer(previous[c.at]);
    offer(c.at);
  }
  for (size_t i = 0; i < n; i = next[i]) out.push_back(tokens[i]);
}

}  // namespace

namespace {

// Lines of a token in base 64 and its number, as in "IQ== 0".
bool are_ranks(const std::string& text) {
  const std::string line = text.substr(0, text.find('\n'));
  const size_t space = line.find(' ');
  if (space == 0 || space == std::string::npos || space + 1 == line.size()) return false;
  const auto all = [&](size_t begin, size_t end, const auto& is) {
    return std::all_of(line.begin() + static_cast<std::ptrdiff_t>(begin),
                       line.begin() + static_cast<std::ptrdiff_t>(end), is);
  };
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto base64 = [&](char c) {
    return digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '+' || c == '/' ||
           c == '=';
  };
  return all(0, space, base64) && all(space + 1, line.size(), digit);
}

}  // namespace

bool is_byte_pairs(const std::string& text) { return text.starts_with('{') || are_ranks(text); }

TokenizerPtr byte_pair_tokenizer(const std::string& json) {
  require(!are_ranks(json), "these are ranks of tiktoken, which do not say where a text is cut; ",
          "take the tokenizer.json of the same model");
  return std::make_shared<BytePairTokenizer>(json);
}

}  // namespace weft::data
