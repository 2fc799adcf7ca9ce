// Small helpers on text that messages need.
#pragma once

#include <string>
#include <vector>

namespace weft {

// The name among `known` closest to `name` by edit distance; "" if there are none.
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);

// "a, b, c".
std::string joined(const std::vector<std::string>& parts, const std::string& separator = ", ");

}  // namespace weft
