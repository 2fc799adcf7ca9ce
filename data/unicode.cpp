#include "data/unicode.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <unordered_map>
#include <vector>

#include "core/text.h"

namespace weft::data {
namespace {

template <class Range>
const Range* range_of(std::span<const Range> ranges, uint32_t code) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code,
                                      [](uint32_t c, const Range& r) { return c < r.first; });
  if (after == ranges.begin()) return nullptr;
  const Range& before = *(after - 1);
  return code <= before.last ? &before : nullptr;
}

CharacterKind searched_kind(uint32_t code) {
  if (range_of(kLetters, code)) return CharacterKind::letter;
  if (range_of(kNumbers, code)) return CharacterKind::number;
  if (range_of(kSpaces, code)) return CharacterKind::space;
  return CharacterKind::other;
}

CharacterKind kind_of(uint32_t code) {
  static const auto ascii = [] {
    std::array<CharacterKind, 128> all{};
    for (uint32_t c = 0; c < all.size(); ++c) all[c] = searched_kind(c);
    return all;
  }();
  return code < ascii.size() ? ascii[code] : searched_kind(code);
}

uint32_t code_of(std::string_view c) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(c[i])); };
  if (c.size() == 1) return byte(0);
  uint32_t code = byte(0) & (0xffu >> (c.size() + 1));
  for (size_t i = 1; i < c.size(); ++i) code = code << 6 | (byte(i) & 0x3fu);
  return code;
}

void append(std::string& text, uint32_t code) {
  const auto add = [&](uint32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) return add(code);
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  add((0xff00u >> (more + 1) & 0xffu) | code >> 6 * more);
  for (int i = more - 1; i >= 0; --i) add(0x80u | (code >> 6 * i & 0x3fu));
}

// Hangul syllables are a formula: L leading, V vowel and T trailing sounds.
constexpr uint32_t kS = 0xac00, kL = 0x1100, kV = 0x1161, kT = 0x11a7, kLs = 19, kVs = 21, kTs = 28,
                   kSyllables = kLs * kVs * kTs;

void decompose(uint32_t code, std::vector<uint32_t>& out) {
  if (code - kS < kSyllables) {
    const uint32_t s = code - kS;
    out.push_back(kL + s / (kVs * kTs));
    out.push_back(kV + s % (kVs * kTs) / kTs);
    if (s % kTs != 0) out.push_back(kT + s % kTs);
    return;
  }
  const auto found =
      std::lower_bound(kDecompositions.begin(), kDecompositions.end(), code,
                       [](const Decomposition& d, uint32_t c) { return d.whole < c; });
  if (found == kDecompositions.end() || found->whole != code) return out.push_back(code);
  decompose(found->first, out);
  if (found->second != 0) out.push_back(found->second);
}

// The character that two become, or 0.
uint32_t composition(uint32_t a, uint32_t b) {
  if (a - kL < kLs && b - kV < kVs) return kS + ((a - kL) * kVs + b - kV) * kTs;
  if (a - kS < kSyllables && (a - kS) % kTs == 0 && b - kT - 1 < kTs - 1) return a + b - kT;
  static const auto pairs = [] {
    std::unordered_map<uint64_t, uint32_t> all;
    for (const Decomposition& d : kDecompositions)
      if (d.composes) all[uint64_t{d.first} << 32 | d.second] = d.whole;
    return all;
  }();
  const auto found = pairs.find(uint64_t{a} << 32 | b);
  return found == pairs.end() ? 0 : found->second;
}

uint32_t combining(uint32_t code) {
  const CombiningRange* range = code < 0x300 ? nullptr : range_of(kCombining, code);
  return range ? range->value : 0;
}

// Decomposed, with marks in their order, and composed again; all in place.
void compose(std::vector<uint32_t>& codes) {
  for (size_t begin = 0; begin < codes.size();) {
    size_t end = begin;
    while (end < codes.size() && combining(codes[end]) != 0) ++end;
    std::stable_sort(codes.begin() + static_cast<ptrdiff_t>(begin),
                     codes.begin() + static_cast<ptrdiff_t>(end),
                     [](uint32_t a, uint32_t b) { return combining(a) < combining(b); });
    begin = end + 1;
  }
  size_t kept = 0, starter = 0;
  bool any = false;   // a character that others may join
  uint32_t last = 0;  // the combining class of the one before, if it was kept
  for (const uint32_t code : codes) {
    const uint32_t own = combining(code);
    const bool apart = kept > starter + 1;  // others stand between
    const bool blocked = apart && last >= own;
    const uint32_t one = any && !blocked ? composition(codes[starter], code) : 0;
    if (one != 0) {
      codes[starter] = one;
      continue;
    }
    if (own == 0) {
      starter = kept;
      any = true;
    }
    last = own;
    codes[kept++] = code;
  }
  codes.resize(kept);
}

}  // namespace

Character character_at(std::string_view text, size_t at) {
  if (at >= text.size()) return {};
  const auto byte = static_cast<uint8_t>(text[at]);
  if (byte < 0x80) return {byte, 1, kind_of(byte)};
  const size_t size = utf8_character(text.substr(at));
  if (size == 0) return {Character::kInvalid, 1, CharacterKind::other};
  const uint32_t code = code_of(text.substr(at, size));
  return {code, size, kind_of(code)};
}

std::string composed(std::string_view text) {
  std::string out;
  std::vector<uint32_t> codes;
  const auto flush = [&] {
    compose(codes);
    for (const uint32_t code : codes) append(out, code);
    codes.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const Character c = character_at(text, at);
    if (c.code < 0x300) flush();  // what begins with a plain letter joins nothing before it
    if (c.code == Character::kInvalid) {
      flush();
      out += text[at];
    } else {
      decompose(c.code, codes);
    }
    at += c.size;
  }
  flush();
  return out;
}

}  // namespace weft::data
