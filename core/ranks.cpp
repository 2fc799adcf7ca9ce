#include "core/ranks.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "core/ranks_meeting.h"

namespace weft {

Ranks::Ranks() : hosts_{""}, names_{""} {}

Ranks::Ranks(const Place& place) : place_(place) {
  hosts_.assign(static_cast<size_t>(size()), "");
  names_ = hosts_;
  if (size() == 1) return;
  meeting_ = std::make_unique<RankMeeting>(place_, [this] {
    if (transport_) transport_->abandon();
  });
  for (int i = 0; i < size(); ++i) {
    hosts_[static_cast<size_t>(i)] = meeting_->host(i);
    names_[static_cast<size_t>(i)] = meeting_->name(i);
  }
}

std::unique_ptr<Ranks> Ranks::planned(int rank, int size) {
  auto ranks = std::make_unique<Ranks>();
  ranks->place_.rank = rank, ranks->place_.size = size;
  ranks->planned_ = true;
  ranks->hosts_.assign(static_cast<size_t>(size), "");
  ranks->names_ = ranks->hosts_;
  return ranks;
}

Ranks::~Ranks() = default;

std::string Ranks::name(int rank) const { return names_[static_cast<size_t>(rank)]; }

void Ranks::use_device(Device device) {
  if (device.is_meta() || planned_) return;
  const ExchangeTexts texts = [this](const std::string& mine) {
    return exchange("the transport", mine);
  };
  if (device.is_cpu()) {
    if (size() == 1) return;
    Place here = place_;
    here.address = meeting_->own_address();
    transport_ = make_cpu_transport(here, texts);
    return;
  }
  if (alone()) return;
  if constexpr (has_cuda) transport_ = make_nccl_transport(place_, device, texts, hosts_);
}

void Ranks::transfer(const std::vector<Part>& sends, const std::vector<Part>& receives) {
  if (planned_) return;
  if (!transport_) {  // nobody else is there
    for (size_t i = 0; itself_ && i < receives.size(); ++i)
      receives[i].tensor.copy_from(sends[i].tensor);
    return;
  }
  try {
    transport_->transfer(sends, receives);
  } catch (const Error& e) {
    // A rank that ended closes its side first; who it was is known a moment later.
    if (!meeting_) throw;
    meeting_->wait_for_fault();
    check();
    fail("a transfer between the ranks failed: ", e.what());
  }
}

std::vector<std::string> Ranks::exchange(const std::string& what, const std::string& mine) {
  if (planned_) return std::vector<std::string>(static_cast<size_t>(size()), mine);
  return meeting_ ? meeting_->exchange(what, mine) : std::vector<std::string>{mine};
}

void Ranks::check() const {
  if (meeting_) meeting_->check();
}

void Ranks::tell_end(const std::string& why, int status) {
  if (meeting_) meeting_->tell_end(why, status);
}

void Ranks::leave() {
  if (!meeting_) return;
  meeting_->exchange("the end", "");
  meeting_->leave();
}

}  // namespace weft
