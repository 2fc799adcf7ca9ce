// Texts by name beside "kjv", so that a mixture of domains needs no file of the user's.
#pragma once

#include <string>
#include <vector>

#include "data/text.h"

namespace weft::data {

inline constexpr const char* kPythonLibrary = "debian:python";
inline constexpr const char* kTables = "generated:tables";
inline constexpr int64_t kTableCount = 6000;

// The modules of the newest /usr/lib/python3.N (package libpython3-stdlib), without packages, in
// the order of their names. Throws Error where there is none.
std::vector<std::string> python_library();

// Table `number`, the same everywhere: articles and their codes, then twelve orders that name both
// again, so that most of a table follows from lines far above. It has less than 500 bytes.
Document generated_table(int64_t number);

}  // namespace weft::data
