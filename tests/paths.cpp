#include "tests/paths.h"

namespace weft::tests {

std::string source_path(const std::string& name) {
  return WEFT_SOURCE_DIR + (name.empty() ? name : "/" + name);
}

const char* program_path() { return WEFT_PROGRAM; }

const char* shim_path() { return WEFT_SHIM; }

}  // namespace weft::tests
