// One run at a time in a folder: the lock OUT/run.lock, which names its holder.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace weft::train {

class RunLock {
 public:
  using Time = std::chrono::milliseconds;

  // Makes the folder where there is none. Throws Error that names the holder's process and host if
  // a run is at work there, or says why no lock can be made. A lock that nobody holds is taken
  // over: at once if its holder was of this machine, else when `patience` has passed without a sign
  // of life.
  explicit RunLock(const std::string& out, Time patience = std::chrono::seconds(60));
  // Gives it back, and removes the folder if it was made here and nothing lies in it.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  void make_folder();
  void take();
  bool open();
  bool watched(const std::string& text);
  void write_alone();
  void write(const std::string& text) const;
  void give_back();
  void beat();
  [[noreturn]] void refuse(const std::string& text) const;

  std::string out_, path_;
  Time patience_;
  int descriptor_ = -1;
  std::vector<std::string> made_;  // folders, the deepest first
  // What was seen of a holder on another machine, and until when its next sign is waited for.
  std::string seen_;
  std::chrono::steady_clock::time_point until_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool over_ = false;
  std::thread heart_;
};

}  // namespace weft::train
