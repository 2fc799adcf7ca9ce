#include "core/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>

#include "core/error.h"

namespace weft {
namespace {

constexpr char kDone = 'd', kThrew = 't';  // the first byte that the child sends

// What `work` threw; "" if it returned.
std::string complaint(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return *error.what() ? error.what() : "an error without words";
  }
  return "";
}

void send(int to, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(to, text.data() + done, text.size() - done);
    if (n < 0 && errno != EINTR) return;
    if (n > 0) done += static_cast<size_t>(n);
  }
}

// A crash is an answer here: it is not printed, kept as a core file or handled by the program.
void prepare(pid_t parent, int64_t processor_seconds) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  for (const int fatal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGXCPU})
    ::signal(fatal, SIG_DFL);
  for (const int other : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE})
    ::signal(other, SIG_IGN);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const rlimit no_core{0, 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  rlimit time{};
  if (::getrlimit(RLIMIT_CPU, &time) == 0) {
    time.rlim_cur = std::min(time.rlim_cur, static_cast<rlim_t>(processor_seconds));
    ::setrlimit(RLIMIT_CPU, &time);
  }
  const int nowhere = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (nowhere >= 0) ::dup2(nowhere, STDERR_FILENO);
}

[[noreturn]] void be_child(int to, pid_t parent, const std::function<void()>& work,
                           int64_t processor_seconds) {
  prepare(parent, processor_seconds);
  const std::string threw = complaint(work);
  send(to, threw.empty() ? std::string(1, kDone) : kThrew + threw);
  ::_exit(0);
}

std::string received(int from) {
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t n = ::read(from, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

std::string end_of(int status) {
  if (!WIFSIGNALED(status)) return concat("it ended with status ", WEXITSTATUS(status));
  const int by = WTERMSIG(status);
  return by == SIGXCPU ? "it came to no end" : concat("it crashed: ", ::strsignal(by));
}

}  // namespace

ChildResult in_child(const std::function<void()>& work, int64_t processor_seconds) {
  int ends[2];
  const pid_t self = ::getpid();
  const bool connected = ::pipe2(ends, O_CLOEXEC) == 0;
  const pid_t child = connected ? ::fork() : -1;
  if (child == 0) be_child(ends[1], self, work, processor_seconds);
  if (connected) ::close(ends[1]);
  if (child < 0) {
    if (connected) ::close(ends[0]);
    return {true, complaint(work)};
  }
  const std::string said = received(ends[0]);
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (said.empty()) return {false, end_of(status)};
  return {true, said.substr(1)};
}

}  // namespace weft
