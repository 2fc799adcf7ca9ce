// The processes of `--ranks` and `--gpus`: the same command line once for each rank, with its place
// in the environment. The process that starts them computes nothing; it passes signals on, and ends
// what is left when one of them ends badly.
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "core/file.h"
#include "core/parallel.h"
#include "core/system.h"
#include "train/stop.h"
#include "train/verbs/ranks.h"

extern char** environ;

namespace weft::train {
namespace {

using Clock = std::chrono::steady_clock;

// The others find out by themselves that one is gone; what does not end then is ended.
constexpr double kGrace = 14, kGraceWithoutFirst = 4;  // seconds

struct Child {
  pid_t process = -1;
  bool ended = false;
  int status = 0;  // as waitpid() gives it
};

std::vector<std::string> own_words() {
  const std::string all = read_file("/proc/self/cmdline");
  std::vector<std::string> words;
  for (size_t at = 0; at < all.size();) {
    words.emplace_back(all.c_str() + at);
    at += words.back().size() + 1;
  }
  return words;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> list;
  for (std::string& w : words) list.push_back(w.data());
  list.push_back(nullptr);
  return list;
}

// A socket of this host that listens at a free port.
Descriptor listener(int count, int& port) {
  Descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in a{};
  a.sin_family = AF_INET, a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof a;
  auto* const at = reinterpret_cast<sockaddr*>(&a);
  int code = socket.open() ? 0 : errno;
  if (code == 0) code = code_of(::bind(socket.get(), at, sizeof a));
  if (code == 0) code = code_of(::listen(socket.get(), count));
  if (code == 0) code = code_of(::getsockname(socket.get(), at, &bytes));
  require_call(code, "no port for the ranks to meet at");
  port = ntohs(a.sin_port);
  return socket;
}

std::vector<std::string> environment_of(int rank, int count, int port, int listener) {
  std::vector<std::string> all = {concat("RANK=", rank), concat("WORLD_SIZE=", count),
                                  concat("LOCAL_RANK=", rank), "MASTER_ADDR=127.0.0.1",
                                  concat("MASTER_PORT=", port)};
  if (rank == 0) all.push_back(concat("WEFT_LISTENER=", listener));
  all.push_back(concat("OMP_NUM_THREADS=", threads_of_rank(count)));
  const size_t own = all.size();
  for (char** e = environ; *e; ++e) {
    const std::string one = *e, name = one.substr(0, one.find('=') + 1);
    const bool ours = std::any_of(all.begin(), all.begin() + static_cast<ptrdiff_t>(own),
                                  [&](const std::string& a) { return a.rfind(name, 0) == 0; });
    if (!ours && name != "TORCHELASTIC_USE_AGENT_STORE=") all.push_back(one);
  }
  return all;
}

pid_t start(std::vector<std::string>& words, std::vector<std::string> environment, int inherited) {
  const std::vector<char*> argv = pointers(words), envp = pointers(environment);
  const pid_t parent = ::getpid(), child = ::fork();
  require_call(code_of(child), "a rank cannot be started");
  if (child > 0) return child;
  if (inherited >= 0) ::fcntl(inherited, F_SETFD, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // without us nobody would end them together
  if (::getppid() == parent) ::execve("/proc/self/exe", argv.data(), envp.data());
  ::_exit(1);
}

class Children {
 public:
  explicit Children(int count) : all_(static_cast<size_t>(count)) {}
  ~Children() { signal_all(SIGKILL), reap(true); }
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  Child& at(int rank) { return all_[static_cast<size_t>(rank)]; }
  void signal_all(int signal) const {
    for (const Child& c : all_)
      if (c.process > 0 && !c.ended) ::kill(c.process, signal);
  }
  bool over() const {
    return std::all_of(all_.begin(), all_.end(), [](const Child& c) { return c.ended; });
  }
  void reap(bool wait) {
    for (Child& c : all_) {
      if (c.process <= 0 || c.ended) continue;
      const pid_t found = ::waitpid(c.process, &c.status, wait ? 0 : WNOHANG);
      c.ended = found == c.process || (found < 0 && errno != EINTR);
      if (c.ended && c.status != 0 && bad_ == Clock::time_point()) bad_ = Clock::now();
    }
  }
  // Those that are left though one ended badly a while ago are ended.
  void end_the_rest() {
    if (bad_ == Clock::time_point()) return;
    const double since = std::chrono::duration<double>(Clock::now() - bad_).count();
    if (since > (all_[0].ended ? kGraceWithoutFirst : kGrace)) signal_all(SIGKILL);
  }
  int status() const;

 private:
  std::vector<Child> all_;
  Clock::time_point bad_;
};

// Rank 0's, which told why. What nobody could tell is told here.
int Children::status() const {
  const auto count = all_.size();
  const int signal = WIFSIGNALED(all_[0].status) ? WTERMSIG(all_[0].status) : 0;
  const bool asked = stop_signal != 0 && std::all_of(all_.begin(), all_.end(), [&](const Child& c) {
                       return WIFSIGNALED(c.status) && WTERMSIG(c.status) == signal;
                     });
  if (asked) return 128 + signal;
  if (WIFEXITED(all_[0].status) && WEXITSTATUS(all_[0].status) != 0)
    return WEXITSTATUS(all_[0].status);
  for (size_t r = 0; r < count; ++r) {
    const Child& c = all_[r];
    const std::string name = concat("rank ", r, " of ", count, " (process ", c.process, ")");
    if (WIFSIGNALED(c.status))
      throw RankFault(concat(name, " was ended by signal ", WTERMSIG(c.status), " (",
                             ::strsignal(WTERMSIG(c.status)), ")"),
                      static_cast<int>(r), 1);
    if (WEXITSTATUS(c.status) != 0)
      throw RankFault(concat(name, " ended with status ", WEXITSTATUS(c.status)),
                      static_cast<int>(r), 1);
  }
  return 0;
}

}  // namespace

int threads_of_rank(int count) {
  return std::getenv("OMP_NUM_THREADS") ? thread_count() : std::max(1, thread_count() / count);
}

int start_ranks(int count) {
  note_stop_signals();
  int port = 0;
  Descriptor meeting = listener(count, port);
  std::vector<std::string> words = own_words();
  Children children(count);
  for (int r = 0; r < count; ++r)
    children.at(r).process =
        start(words, environment_of(r, count, port, meeting.get()), r == 0 ? meeting.get() : -1);
  meeting.close();
  for (int passed_on = 0; !children.over();) {
    children.reap(false);
    if (const int signal = stop_signal; signal != 0 && passed_on == 0)
      children.signal_all(passed_on = signal);
    children.end_the_rest();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return children.status();
}

}  // namespace weft::train
