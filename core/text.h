// Small helpers on text that messages need.
#pragma once

#include <string>
#include <vector>

namespace weft {

bool contains(const std::vector<std::string>& list, const std::string& name);

// The name among `known` closest to `name` by edit distance; "" if there are none.
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);
// `did you mean "m"? known: a, b`, where `name` is not known.
std::string suggestion(const std::string& name, const std::vector<std::string>& known);
// `unknown mixer "n"; did you mean "m"? known: a, b`.
std::string unknown_name(const std::string& what, const std::string& name,
                         const std::vector<std::string>& known);

// "a, b, c".
std::string joined(const std::vector<std::string>& parts, const std::string& separator = ", ");

}  // namespace weft
