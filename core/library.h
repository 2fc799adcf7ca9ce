// Shared libraries that are looked up at run time and never linked, so that the program starts
// without them: cuBLASLt, CUPTI, NCCL.
#pragma once

#include <dlfcn.h>

#include <string>
#include <vector>

#include "core/error.h"

namespace weft {

// The first of `names` that can be loaded: where the loader looks, then in the folders of a CUDA
// toolkit. Null where none can. It stays loaded.
void* open_library(const std::vector<std::string>& names);

// The path of that library; empty where none can be loaded.
std::string find_library(const std::vector<std::string>& names);

// Its function `name`, of the type that a header gives it. Throws Error where the library is too
// old.
template <class F>
void find_function(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  require(function != nullptr, "the CUDA library that was found has no ", name,
          "; a newer one is needed");
}

}  // namespace weft
