// Where byte-level vocabularies cut a text before they merge bytes: into words with the space in
// front of them, numbers, signs, and space. A released tokenizer says it by a regular expression,
// and those few that models share are known here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace weft::data {

struct PretokenRule {
  // Any sign may stand before letters, not a space alone; line ends go with the signs before them
  // and with the space before them; 's and the like may be capitals. Otherwise as in GPT-2.
  bool later = false;
  int digits = 0;  // at most so many numerals in one piece, without a space; 0: as GPT-2
};

// The rule that an expression means. Throws Error for an expression that is not known.
PretokenRule pretoken_rule(const std::string& expression);
// That of GPT-2, which a tokenizer means that names none.
inline constexpr PretokenRule kGpt2Pretokens{};

// The length in bytes of the first piece of a text that is not empty.
size_t pretoken(std::string_view text, const PretokenRule& rule);

}  // namespace weft::data
