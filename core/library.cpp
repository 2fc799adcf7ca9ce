#include "core/library.h"

#include <link.h>

namespace weft {

void* open_library(const std::vector<std::string>& names) {
  for (const std::string& name : names)
    for (const char* folder :
         {"", "/usr/local/cuda/lib64/", "/usr/local/cuda/targets/x86_64-linux/lib/",
          "/usr/local/cuda/lib/", "/usr/local/cuda/extras/CUPTI/lib64/"})
      if (void* library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  return nullptr;
}

std::string find_library(const std::vector<std::string>& names) {
  void* const library = open_library(names);
  if (!library) return "";
  link_map* map = nullptr;
  const bool known = dlinfo(library, RTLD_DI_LINKMAP, &map) == 0 && map && map->l_name;
  return known && *map->l_name ? map->l_name : names.front();
}

}  // namespace weft
