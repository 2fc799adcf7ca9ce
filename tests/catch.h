// Catch2, version 2 or 3, whichever the system has. Tests include this and no header of Catch2.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
using Catch::Matchers::ContainsSubstring;

// In version 2 Contains is about text; in version 3 about ranges, unless it is handed text.
namespace Catch::Matchers {
inline StringContainsMatcher Contains(const char* text) { return ContainsSubstring(text); }
}  // namespace Catch::Matchers
#else
#include <catch2/catch.hpp>

// Version 3's name for it.
inline auto ContainsSubstring(const std::string& part) { return Catch::Matchers::Contains(part); }

// Version 3 has this; version 2 is told by the text, which CMakeLists.txt hands to ctest.
#define SKIP(message)          \
  do {                         \
    WARN("SKIP: " << message); \
    return;                    \
  } while (false)
#endif
