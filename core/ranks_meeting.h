// Where ranks meet: each holds one TCP connection to rank 0. Over it go small texts (exchange), a
// sign of life a second, and the news that a rank ended, hangs or gave up. A thread keeps the
// connections, so that a rank that computes for minutes is still seen to live.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/ranks.h"
#include "core/system.h"

namespace weft {

class RankMeeting {
 public:
  // Returns when all ranks are there. Throws Error where the port is taken, or who is missing after
  // the place's patience. `on_fault` is called once, by the thread, as soon as a fault is known.
  RankMeeting(const Place& place, std::function<void()> on_fault);
  ~RankMeeting();
  RankMeeting(const RankMeeting&) = delete;
  RankMeeting& operator=(const RankMeeting&) = delete;

  // "rank 2 of 4 (process 71 on host)"
  std::string name(int rank) const;
  const std::string& host(int rank) const { return people_[static_cast<size_t>(rank)].host; }

  // The address at which the others reach this rank's host.
  std::string own_address() const;

  std::vector<std::string> exchange(const std::string& what, const std::string& mine);
  // Waits a few seconds at most until a fault is known.
  void wait_for_fault();
  void check() const;
  void tell_end(const std::string& why, int status);
  void leave();

 private:
  struct Person {
    std::string host;
    int64_t process = 0;
  };
  struct Fault {
    int rank, status;
    std::string text;
  };
  struct Message {
    uint32_t kind = 0;
    int32_t number = 0;
    std::string text;
  };
  // One connection: to rank 0, or rank 0's to another.
  struct Line {
    Descriptor socket;
    int rank = 0;
    std::string in, out;
    double silence = 0;  // seconds
    bool left = false;   // said that it goes
  };

  void gather_all(const Place& place);
  void join(const Place& place);
  void work();
  void read_from(Line& line);
  void handle(Line& line, const Message& message);
  void offer(int rank, const std::string& text);
  void settle_exchange();
  void post(Line& line, uint32_t kind, int32_t number, const std::string& text);
  void flush(Line& line);
  void set_fault(int rank, int status, const std::string& text);
  [[noreturn]] void throw_fault() const;
  void lose(Line& line, const std::string& how);

  int rank_, size_;
  std::function<void()> on_fault_;
  std::vector<Person> people_;
  std::vector<std::unique_ptr<Line>> lines_;  // rank 0: of ranks 1, 2, ...; else one
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::deque<std::string>> offered_;  // rank 0: by rank, not yet settled
  std::deque<std::string> results_;
  std::optional<Fault> fault_;
  std::chrono::steady_clock::time_point fault_time_;
  bool over_ = false, told_ = false;
  Descriptor wake_;
  std::thread thread_;
};

}  // namespace weft
