// How a run of the program ended, and what it said.
#pragma once

#include "tests/catch.h"
#include "tests/train/program.h"

namespace weft::tests {

// It ended with `status`, and its text holds each of `parts`.
inline void says(const Ran& ran, int status, const std::vector<std::string>& parts) {
  INFO(ran.text);
  CHECK(ran.status == status);
  for (const std::string& part : parts) CHECK_THAT(ran.text, ContainsSubstring(part));
}

inline void done(const Ran& ran) { says(ran, 0, {}); }

}  // namespace weft::tests
