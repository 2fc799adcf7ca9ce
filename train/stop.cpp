#include "train/stop.h"

#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <initializer_list>

namespace weft::train {

std::atomic<int> stop_signal{0};

namespace {

constexpr int64_t kTogether = 1'000'000'000;  // nanoseconds within which two signals are one

std::atomic<bool> noted{false}, silent{false};
std::atomic<int64_t> first_urgent{0};  // when the first INT or TERM came; 0: none did

int64_t now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

// The signal does what it does to every process, as this function's caller returns.
void end_of(int signal) {
  struct sigaction usual {};
  usual.sa_handler = SIG_DFL;
  sigaction(signal, &usual, nullptr);
  raise(signal);
}

// Only what a signal handler may call.
void stop(int signal) {
  if (!noted) {
    constexpr const char* kText = "weft: stopped before the first step; nothing was changed\n";
    if (!silent) [[maybe_unused]]
      const ssize_t written = write(STDERR_FILENO, kText, std::strlen(kText));
    return end_of(signal);
  }
  if (signal == SIGINT || signal == SIGTERM) {
    int64_t first = 0;
    const int64_t at = now();
    if (!first_urgent.compare_exchange_strong(first, at) && at - first > kTogether)
      return end_of(signal);
  }
  int none = 0;
  stop_signal.compare_exchange_strong(none, signal);
}

}  // namespace

void catch_stop_signals(bool tells) {
  silent = !tells;
  std::signal(SIGPIPE, SIG_IGN);
  struct sigaction action {};
  action.sa_handler = stop;
  action.sa_flags = SA_RESTART;  // a save that is under way notices nothing
  for (const int signal : {SIGHUP, SIGINT, SIGTERM, SIGXCPU, SIGUSR1, SIGUSR2}) {
    struct sigaction before {};
    sigaction(signal, nullptr, &before);
    if (before.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
}

void note_stop_signals() { noted = true; }

}  // namespace weft::train
