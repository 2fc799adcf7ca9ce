// Small helpers on text that messages need.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace weft {

bool contains(const std::vector<std::string>& list, const std::string& name);

// The nearest of `known` by edit distance, or by a shared beginning; "" if over half would change.
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);
// `did you mean "m"? known: a, b`, where `name` is not known; without a question if none is near.
std::string suggestion(const std::string& name, const std::vector<std::string>& known);
// `unknown mixer "n"; did you mean "m"? known: a, b`.
std::string unknown_name(const std::string& what, const std::string& name,
                         const std::vector<std::string>& known);

// "a, b, c".
std::string joined(const std::vector<std::string>& parts, const std::string& separator = ", ");

// The length of the UTF-8 character that a text begins with; 0 where its bytes are none.
size_t utf8_character(std::string_view text);
// Where a text stops being UTF-8, or npos.
size_t first_not_utf8(std::string_view text);
// A text as it is, with bytes that are not UTF-8 written as "\\xE9". Names of files may be any
// bytes.
std::string as_utf8(std::string_view text);

}  // namespace weft
