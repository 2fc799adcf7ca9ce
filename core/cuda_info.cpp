#include "core/cuda_info.h"

#include <sstream>

#include "core/error.h"

namespace weft {

bool runs_on(const std::string& architectures, int arch) {
  std::istringstream list(architectures);
  for (std::string item; list >> item;) {
    const size_t digits = item.find_first_not_of("0123456789");
    const std::string kind = digits == std::string::npos ? "" : item.substr(digits);
    const int built = digits == 0 ? 0 : std::stoi(item.substr(0, digits));
    const bool exact = kind.starts_with("a");  // neither its code nor its PTX runs on others
    const bool code = !kind.ends_with("-virtual"), ptx = !kind.ends_with("-real");
    if (exact ? built == arch
              : (code && built / 10 == arch / 10 && built <= arch) || (ptx && built <= arch))
      return true;
  }
  return false;
}

std::string cuda_version_text(int version) {
  return concat(version / 1000, ".", version % 1000 / 10);
}

#ifndef WEFT_HAS_CUDA
CudaInfo cuda_info() { return {}; }
#endif

}  // namespace weft
