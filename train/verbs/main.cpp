// The program: reads the command line, calls a verb, prints what went wrong. Nothing else in the
// project prints an error or ends the process.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "core/error.h"
#include "core/memory.h"
#include "train/verbs/command_line.h"
#include "train/workbench/report.h"

namespace {

using namespace weft;
using namespace weft::train;

// OpenMP's threads spin for milliseconds while they wait, which costs dearly on a busy machine. The
// library reads its settings before main() begins, so the program starts itself once more.
void choose_environment(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  if (setenv("GOMP_SPINCOUNT", "10000", 1) == 0)
    execv("/proc/self/exe", argv);  // returns only if it failed: then go on as we are
}

// A number that is closed would go to the next file that is opened, and what is printed with it.
// What is opened in its place is open the wrong way round: use of it fails, as it would have.
void hold_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0)
      (void)!::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
}

// Below so much address space the libraries end the program themselves: before main() begins, or
// where OpenMP makes its threads. So this is told before any of them begins; write() and _exit()
// alone may be used here.
__attribute__((no_sanitize("address"))) void refuse_low_limit(int, char**, char**) {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
  const auto threads = static_cast<rlim_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
  if (limit.rlim_cur >= ((128 + 16 * threads) << 20)) return;
  constexpr std::string_view kMessage =
      "weft: the limit of address space (ulimit -v) is too low; expected at least 128 MiB and 16 "
      "MiB more for each processor\n";
  const ssize_t written = write(STDERR_FILENO, kMessage.data(), kMessage.size());
  _exit(written < 0 ? 1 : 2);
}
__attribute__((section(".preinit_array"),
               used)) void (*const before_libraries)(int, char**, char**) = refuse_low_limit;

// What is said of an exception that is not ours, and the status: a state of the machine is 2, a
// fault 1.
int end_with(const char* what, const std::string& text, int status) {
  std::fprintf(stderr, "weft%s%s: %s\n", *what ? " " : "", what, text.c_str());
  return status;
}

int end_of_library(const char* verb) {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return end_with(verb, out_of_memory_text(), 2);
  } catch (const std::length_error&) {
    return end_with(verb,
                    "out of memory: a size in the recipe, an option or a file is larger than any "
                    "memory",
                    2);
  } catch (const std::filesystem::filesystem_error& e) {
    return end_with("", e.path1().string() + ": " + e.code().message(), 2);
  } catch (const std::system_error& e) {
    return end_with(verb, "the system refused: " + e.code().message(), 2);
  } catch (const std::exception& e) {
    return end_with(verb, std::string("a fault in the program itself: ") + e.what(), 1);
  }
}

// The exit status of f(), with what it throws printed.
template <class F>
int ended(const char* verb, const F& f) {
  try {
    return f();
  } catch (const CheckFailed& e) {
    std::fprintf(stderr, "weft: %s\n", e.what());
    return 1;
  } catch (const Error& e) {
    std::fprintf(stderr, "weft: %s\n", e.what());
    return 2;
  } catch (...) {
    return end_of_library(verb);
  }
}

}  // namespace

int main(int argc, char** argv) {
  hold_standard_descriptors();
  choose_environment(argv);
  note_failed_allocations();
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of its writer
  std::signal(SIGPIPE, SIG_IGN);  // and so is a pipe that nobody reads
  // Nothing of usual length is written before the flush that says how it went.
  static char printed[1 << 20];
  if (!isatty(STDOUT_FILENO)) std::setvbuf(stdout, printed, _IOFBF, sizeof printed);
  const char* const verb = argc > 1 ? argv[1] : "";
  const int status = ended(verb, [&] { return run_command(argc, argv); });
  return status != 0 ? status : ended(verb, [] { return flush_output(), 0; });
}
