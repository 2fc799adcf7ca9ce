// The built program while it runs: what it prints is read as it comes, and signals are sent in
// between.
#pragma once

#include <string>
#include <vector>

#include "tests/train/program.h"

namespace weft::tests {

class Running {
 public:
  // The program finds signal `ignored` ignored, if one is given.
  Running(const Folder& folder, const std::vector<std::string>& arguments, int ignored = 0) {
    int ends[2];
    if (pipe(ends) != 0) return;
    child_ = fork();
    if (child_ == 0) {
      // As from a terminal, also where the tests were started with nohup.
      for (const int usual : {SIGHUP, SIGINT, SIGTERM, SIGXCPU, SIGUSR1, SIGUSR2})
        ::signal(usual, usual == ignored ? SIG_IGN : SIG_DFL);
      become_weft(folder, arguments, ends);
    }
    close(ends[1]);
    from_ = ends[0];
  }
  ~Running() {
    if (child_ <= 0) return;
    kill(child_, SIGKILL);
    end();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  // Reads until `words` were printed; false where the program ended before.
  bool says(const std::string& words) {
    while (text_.find(words) == std::string::npos)
      if (!read_on()) return false;
    return true;
  }
  void send(int signal) const { kill(child_, signal); }
  int process() const { return child_; }
  // Nobody reads any more.
  void close_output() {
    if (from_ >= 0) close(from_);
    from_ = -1;
  }
  // Reads to the end. 128 + n where signal n ended it, as Ran::status.
  int end() {
    while (read_on()) {
    }
    close_output();
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  const std::string& text() const { return text_; }

 private:
  bool read_on() {
    char buffer[4096];
    const ssize_t n = from_ < 0 ? 0 : ::read(from_, buffer, sizeof buffer);
    if (n <= 0) return false;
    text_.append(buffer, static_cast<size_t>(n));
    return true;
  }

  pid_t child_ = -1;
  int from_ = -1;
  std::string text_;
};

}  // namespace weft::tests
