#include "data/pretokens.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "data/unicode.h"

namespace weft::data {
namespace {

using enum CharacterKind;

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLaterHead = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)",
                           kLaterTail = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// 's, 't, 're, 've, 'm, 'll, 'd at the start of a text, or 0. Where capitals count too, so does the
// long s, whose capital is S.
size_t contraction(std::string_view text, bool capitals) {
  static constexpr std::array<std::string_view, 7> all = {"s", "t", "re", "ve", "m", "ll", "d"};
  if (text.front() != '\'') return 0;
  const auto lower = [&](char c) {
    return capitals && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  for (const std::string_view end : all) {
    if (text.size() <= end.size()) continue;
    if (std::equal(end.begin(), end.end(), text.begin() + 1,
                   [&](char e, char c) { return e == lower(c); }))
      return end.size() + 1;
  }
  return capitals && text.substr(1).starts_with("\xc5\xbf") ? 3 : 0;
}

bool ends_line(const Character& c) { return c.code == '\n' || c.code == '\r'; }

// Where a run of characters of a kind ends, after at most `most` of them.
size_t run(std::string_view text, size_t at, CharacterKind kind, int most = 0) {
  for (int n = 0; most == 0 || n < most; ++n) {
    const Character c = character_at(text, at);
    if (c.kind != kind) break;
    at += c.size;
  }
  return at;
}

size_t letters(std::string_view text, const Character& first, const PretokenRule& rule) {
  if (first.kind == letter) return run(text, 0, letter);
  const bool before = rule.later ? !ends_line(first) && first.kind != number : first.code == ' ';
  if (!before || character_at(text, first.size).kind != letter) return 0;
  return run(text, first.size, letter);
}

size_t numbers(std::string_view text, const Character& first, const PretokenRule& rule) {
  if (first.kind == number) return run(text, 0, number, rule.digits);
  const bool spaced = rule.digits == 0 && first.code == ' ';
  return spaced && character_at(text, 1).kind == number ? run(text, 1, number) : 0;
}

size_t signs(std::string_view text, const Character& first, const PretokenRule& rule) {
  const size_t begin = first.code == ' ' ? 1 : 0;
  if (character_at(text, begin).kind != other) return 0;
  size_t end = run(text, begin, other);
  while (rule.later && end < text.size() && (text[end] == '\r' || text[end] == '\n')) ++end;
  return end;
}

// To the last line end; else all space at the end of the text, and what stands before the last
// space elsewhere.
size_t spaces(std::string_view text, const PretokenRule& rule) {
  size_t end = 0, last = 0, line = 0;
  for (Character c = character_at(text, 0); c.kind == space; c = character_at(text, end)) {
    last = end;
    end += c.size;
    if (ends_line(c)) line = end;
  }
  if (rule.later && line > 0) return line;
  return end == text.size() || last == 0 ? end : last;
}

}  // namespace

PretokenRule pretoken_rule(const std::string& expression) {
  if (expression == kGpt2) return kGpt2Pretokens;
  const auto later = [](std::string_view digits) { return concat(kLaterHead, digits, kLaterTail); };
  if (expression == later(R"(\p{N}{1,3})")) return {true, 3};
  if (expression == later(R"(\p{N})")) return {true, 1};
  fail("it cuts text by an expression that is not known here, \"", expression,
       "\"; known: those of GPT-2, Llama 3 and Qwen 2");
}

size_t pretoken(std::string_view text, const PretokenRule& rule) {
  if (const size_t n = contraction(text, rule.later)) return n;
  const Character first = character_at(text, 0);
  if (const size_t n = letters(text, first, rule)) return n;
  if (const size_t n = numbers(text, first, rule)) return n;
  if (const size_t n = signs(text, first, rule)) return n;
  return spaces(text, rule);
}

}  // namespace weft::data
