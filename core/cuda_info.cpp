#include "core/cuda_info.h"

#include <dlfcn.h>
#include <link.h>

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

std::string find_library(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    void* const handle = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (!handle) continue;
    link_map* map = nullptr;
    const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name;
    const std::string path = known && *map->l_name ? map->l_name : name;
    dlclose(handle);
    return path;
  }
  return "";
}

std::string cuda_version_text(int version) {
  return concat(version / 1000, ".", version % 1000 / 10);
}

#ifndef WEFT_HAS_CUDA
CudaInfo cuda_info() { return {}; }
#endif

}  // namespace weft
