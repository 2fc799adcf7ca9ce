// The one exception of the project, and require(), which throws it.
// A message says what is wrong, where, what was expected, and what to do when that is not plain.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace weft {

// A user's mistake, or a state of the machine that the user can mend. The program prints what() and
// exits with status 2.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A device has no more memory; the message says who asked and who holds what.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

// A check that was asked for and did not hold (a gradient check, a verification). Exit status 1.
class CheckFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(concat(parts...));
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) [[unlikely]]
    fail(parts...);
}

}  // namespace weft
