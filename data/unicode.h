// What Unicode says of a character, as far as released tokenizers ask: letter, number or white
// space, and the composed form of a text (NFC). The tables are those of the tokenizers library.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace weft::data {

enum class CharacterKind : uint8_t { none, letter, number, space, other };

// The character that stands at a byte of a text. A byte that is no UTF-8 is one of kind `other`,
// and there is none behind the end.
struct Character {
  static constexpr uint32_t kInvalid = 0xffffffff;
  uint32_t code = kInvalid;
  size_t size = 0;
  CharacterKind kind = CharacterKind::none;
};
Character character_at(std::string_view text, size_t at);

// The composed form of a text. Bytes that are no UTF-8 stay as they are.
std::string composed(std::string_view text);

struct CharacterRange {
  uint32_t first, last;
};
extern const std::span<const CharacterRange> kLetters, kNumbers, kSpaces;

// A character that means two, or one other (second = 0); `composes` where the two become it again.
struct Decomposition {
  uint32_t whole, first, second, composes;
};
struct CombiningRange {
  uint32_t first, last, value;
};
extern const std::span<const Decomposition> kDecompositions;
extern const std::span<const CombiningRange> kCombining;

}  // namespace weft::data
