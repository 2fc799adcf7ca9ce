// Command lines around the built program, for tests of what a shell can do to it: closed
// descriptors, pipes, links, a library in front of the system's calls.
#pragma once

#include "tests/paths.h"
#include "tests/train/small_run.h"

namespace weft::tests {

// Runs a line of sh in `folder`, where $WEFT is the program and $SHIM the library of tests/shim.
inline Ran run_shell(const Folder& folder, const std::string& line) {
  const std::string whole = "exec 2>&1; cd '" + folder.path() + "' || exit 126; WEFT='" +
                            program_path() + "' SHIM='" + shim_path() + "'; " + line;
  Ran ran;
  FILE* const pipe = popen(whole.c_str(), "r");
  if (!pipe) return ran;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) ran.text.append(buffer, n);
  const int status = pclose(pipe);
  ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

// A program with sanitizers wants to be the first in front of the system's calls.
constexpr bool shim_works() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return false;
#else
  return true;
#endif
}

inline const std::string kSmallRecipe = kSmallModel + R"([sample]
tokens = 0
[train]
device = "cpu"
steps = 3
batch = 2
log_every = 1
eval_every = 1
eval_batches = 1
checkpoint_every = 1
out = "run"
)";

inline void write_small_run(const Folder& f) { write_run(f, kSmallRecipe); }

}  // namespace weft::tests
