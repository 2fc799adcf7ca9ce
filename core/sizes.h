// Products and sums of sizes that a file, a flag or a recipe gives: the one place where they are
// held to 64 bits. A count that wraps is negative, or small, and goes on as if it were right.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "core/dtype.h"
#include "core/error.h"

namespace weft {

class Shape;

// More than 64 bits count, and so more than any memory holds.
class TooMany : public Error {
 public:
  using Error::Error;
};

// Throws TooMany. `what` says what was counted: "elements of a tensor of shape [3, 4]".
[[noreturn]] void too_many(const std::string& what);

// a * b and a + b, or TooMany.
int64_t times(int64_t a, int64_t b, const char* what);
int64_t plus(int64_t a, int64_t b, const char* what);

// What a tensor of a shape takes, or TooMany. A size of 0 counts as 1, so that whatever else is
// made of the other sizes can be counted too.
int64_t bytes_of(const Shape& shape, Dtype dtype);

// a + b for b >= 0, or the largest number: for borders behind which nothing lies ("the key i +
// window").
constexpr int64_t at_most_plus(int64_t a, int64_t b) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  return a > kMost - b ? kMost : a + b;
}

}  // namespace weft
