// Runs the built program as a user would, in a folder of its own, and keeps what it printed.
#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "tests/folder.h"
#include "tests/paths.h"

namespace weft::tests {

struct Ran {
  int status = -1;   // exit status; 128 + n where signal n ended it
  std::string text;  // standard output and error together
};

// In a forked child: the program with these arguments, which prints into the pipe.
[[noreturn]] inline void become_weft(const Folder& folder,
                                     const std::vector<std::string>& arguments,
                                     const int (&ends)[2]) {
  dup2(ends[1], STDOUT_FILENO);
  dup2(ends[1], STDERR_FILENO);
  close(ends[0]);
  close(ends[1]);
  if (chdir(folder.path().c_str()) != 0) _exit(126);
  std::vector<char*> argv{const_cast<char*>(program_path())};
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  execv(program_path(), argv.data());
  _exit(127);
}

// Runs `weft ARGS` in `folder`. With kill_after > 0 it is killed (SIGKILL, or `signal`) after so
// many seconds, if it still runs.
// No file may grow beyond `file_limit` bytes, if that is given: as on a full disk.
inline Ran run_weft(const Folder& folder, const std::vector<std::string>& arguments,
                    double kill_after = 0, int signal = SIGKILL, rlim_t file_limit = 0) {
  int ends[2];
  if (pipe(ends) != 0) return {};
  const pid_t child = fork();
  if (child == 0) {
    const rlimit limit{file_limit, file_limit};
    if (file_limit > 0) setrlimit(RLIMIT_FSIZE, &limit);
    become_weft(folder, arguments, ends);
  }
  close(ends[1]);
  std::jthread killer;
  if (kill_after > 0)
    killer = std::jthread([=](const std::stop_token& stop) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(kill_after);
      while (!stop.stop_requested() && std::chrono::steady_clock::now() < end)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      if (!stop.stop_requested()) kill(child, signal);
    });
  Ran ran;
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;)
    ran.text.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  killer.request_stop();
  ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

}  // namespace weft::tests
