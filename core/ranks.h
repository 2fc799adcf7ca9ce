// Ranks: processes that train one model together, each on a device of its own. A rank knows its
// number and how many there are; it meets the others through small texts of the host and through
// transfers of tensors. One rank alone needs neither, and costs nothing.
//   meeting     core/ranks_meeting.h: TCP to rank 0; texts, signs of life, faults
//   transport   bytes of tensors: Gloo on the CPU, NCCL on GPUs
// All ranks make the same calls in the same order. A rank that ended, hangs, or is elsewhere makes
// each call of the others throw RankFault that names it.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/tensor.h"

namespace weft {

// Something is wrong with a rank; `status` is what the program exits with.
class RankFault : public CheckFailed {
 public:
  RankFault(const std::string& text, int rank, int status)
      : CheckFailed(text), rank(rank), status(status) {}
  int rank, status;
};

// Where this process stands among the ranks.
struct Place {
  int rank = 0, size = 1;
  int local = 0;                      // its number on its host
  std::string address = "127.0.0.1";  // of rank 0
  int port = 0;
  int listener = -1;   // rank 0: a socket that listens at the port already; -1: none
  int patience = 60;   // seconds to wait for all to come
  std::string source;  // what says so, for messages: "RANK and WORLD_SIZE"
};

// A contiguous tensor that goes to a rank, or comes from it.
struct Part {
  int rank = 0;
  Tensor tensor;
};

// Moves bytes between ranks; what two ranks exchange is matched by its order.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual void transfer(const std::vector<Part>& sends, const std::vector<Part>& receives) = 0;
  // Lets a transfer that waits return, by an Error. From any thread.
  virtual void abandon() = 0;
};

class RankMeeting;

class Ranks {
 public:
  Ranks();  // one alone
  // Meets the others: returns when all are there. Throws Error where they do not come in time.
  explicit Ranks(const Place& place);
  // As rank `rank` of `size` on a meta device, for plans: nothing is moved.
  static std::unique_ptr<Ranks> planned(int rank, int size);
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int rank() const { return place_.rank; }
  int size() const { return place_.size; }
  bool first() const { return rank() == 0; }
  // No other rank, and no transport that one rank was given to try it.
  bool alone() const { return size() == 1 && !itself_; }
  // One rank does all that several do, with itself as the other: to try a transport.
  void use_itself() { itself_ = true; }
  // "rank 2 of 4 (process 71 on host)"
  std::string name(int rank) const;
  // Are there several of them on rank `rank`'s own host? The hosts, by rank.
  const std::vector<std::string>& hosts() const { return hosts_; }

  // Transfers move tensors of this device from now on.
  void use_device(Device device);
  // Sends and receives at once. A part for this rank itself is copied, where both lists have it.
  void transfer(const std::vector<Part>& sends, const std::vector<Part>& receives);

  // The texts of all ranks, by rank. `what` says where the run is: RankFault where it differs.
  std::vector<std::string> exchange(const std::string& what, const std::string& mine);
  // The same with a list of numbers each; the lists may have different lengths.
  template <class T>
  std::vector<std::vector<T>> exchange_numbers(const std::string& what,
                                               const std::vector<T>& mine) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (size() == 1) return {mine};
    std::vector<std::vector<T>> all;
    for (const std::string& text :
         exchange(what, {reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(T)})) {
      all.emplace_back(text.size() / sizeof(T));
      if (!text.empty()) std::memcpy(all.back().data(), text.data(), text.size());
    }
    return all;
  }
  // Throws RankFault where a fault is known by now.
  void check() const;

  // Tells the others that this rank ends for this reason.
  void tell_end(const std::string& why, int status);
  // All are done: nobody is missed from here on.
  void leave();
  // Does this rank tell the user of the fault? One does: rank 0, or the next where 0 is at fault.
  bool speaks_of(const RankFault& fault) const {
    return rank() == (fault.rank == 0 && size() > 1 ? 1 : 0);
  }

 private:
  Place place_;
  bool planned_ = false, itself_ = false;
  std::vector<std::string> hosts_, names_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<RankMeeting> meeting_;  // ends before what it may abandon
};

// Of tensors on the CPU, by Gloo; `exchange` is how the ranks find each other. Throws Error where
// the library is not there.
using ExchangeTexts = std::function<std::vector<std::string>(const std::string&)>;
std::unique_ptr<Transport> make_cpu_transport(const Place& place, const ExchangeTexts& exchange);
// Empty where ranks on the CPU can work, else what is missing and what to do, in one line.
std::string why_no_cpu_ranks();
// Of tensors on a GPU, by NCCL; in builds that have CUDA. `hosts` are those of the ranks.
std::unique_ptr<Transport> make_nccl_transport(const Place& place, Device device,
                                               const ExchangeTexts& exchange,
                                               const std::vector<std::string>& hosts);

}  // namespace weft
