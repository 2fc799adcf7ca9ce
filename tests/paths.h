// Where the tests find the sources and the program. The paths are compiled into paths.cpp alone, so
// that the objects of all other tests are the same in every folder.
#pragma once

#include <string>

namespace weft::tests {

// A file of the source tree: source_path("tests/oracles").
std::string source_path(const std::string& name = "");
// The program `weft` that stands beside the tests' program.
const char* program_path();
// The library of tests/shim.
const char* shim_path();

}  // namespace weft::tests
