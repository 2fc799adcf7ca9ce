// What a call is refused with, for the tests of every folder.
#pragma once

#include <string>

#include "core/error.h"

namespace weft::tests {

// The message of the Error that f() throws, or "no error".
template <class F>
std::string message(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace weft::tests
