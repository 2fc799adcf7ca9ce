#include "core/ranks_meeting.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "core/text.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kHello = 0x57454654, kPeople = 1, kBeat = 2, kOffer = 3, kResult = 4,
                   kFailed = 5, kFault = 6, kLeave = 7, kRefused = 8;
constexpr double kBeatEvery = 1, kSilence = 12;  // seconds
constexpr double kEndAfter = 12;                 // a rank that cannot stop after a fault is ended
constexpr size_t kLongest = size_t{1} << 30;     // bytes of a text

struct Header {
  uint32_t kind;
  int32_t number;
  uint64_t bytes;
};

void put(std::string& to, uint32_t kind, int32_t number, const std::string& text) {
  const Header h{kind, number, text.size()};
  to.append(reinterpret_cast<const char*>(&h), sizeof h);
  to += text;
}

// The texts of a list, each behind its length.
std::string packed(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& t : texts) {
    const uint64_t n = t.size();
    all.append(reinterpret_cast<const char*>(&n), sizeof n);
    all += t;
  }
  return all;
}

std::vector<std::string> unpacked(const std::string& all) {
  std::vector<std::string> texts;
  for (size_t at = 0; at + sizeof(uint64_t) <= all.size();) {
    uint64_t n = 0;
    std::memcpy(&n, all.data() + at, sizeof n);
    at += sizeof n;
    texts.push_back(all.substr(at, n));
    at += n;
  }
  return texts;
}

std::string own_host() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

double seconds_until(Clock::time_point end) {
  return std::chrono::duration<double>(end - Clock::now()).count();
}

void set_option(int socket, int level, int option) {
  const int on = 1;
  ::setsockopt(socket, level, option, &on, sizeof on);
}

// Sends all, or says why not. Only before the thread begins.
int send_now(int socket, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = ::send(socket, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    const int code = code_of(n);
    if (code == EINTR) continue;
    if (code != 0) return code;
    at += static_cast<size_t>(n);
  }
  return 0;
}

// Reads exactly so many bytes before `end`; false where they do not come.
bool receive(int socket, void* to, size_t bytes, Clock::time_point end) {
  for (size_t at = 0; at < bytes;) {
    pollfd p{socket, POLLIN, 0};
    const double left = seconds_until(end);
    if (left <= 0) return false;
    if (::poll(&p, 1, static_cast<int>(left * 1000) + 1) <= 0) continue;
    const ssize_t n = ::recv(socket, static_cast<char*>(to) + at, bytes - at, 0);
    if (code_of(n) == EINTR) continue;
    if (n <= 0) return false;
    at += static_cast<size_t>(n);
  }
  return true;
}

bool receive(int socket, Header& h, std::string& text, Clock::time_point end) {
  if (!receive(socket, &h, sizeof h, end) || h.bytes > kLongest) return false;
  text.resize(h.bytes);
  return receive(socket, text.data(), text.size(), end);
}

struct Addresses {
  addrinfo* list = nullptr;
  ~Addresses() {
    if (list) ::freeaddrinfo(list);
  }
};

Descriptor listen_at(int port) {
  int code = 0;
  Descriptor socket(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const bool six = socket.open();
  if (!six) socket = Descriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  set_option(socket.get(), SOL_SOCKET, SO_REUSEADDR);
  if (six) {
    const int off = 0;
    ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    sockaddr_in6 a{};
    a.sin6_family = AF_INET6, a.sin6_port = htons(static_cast<uint16_t>(port));
    code = code_of(::bind(socket.get(), reinterpret_cast<sockaddr*>(&a), sizeof a));
  } else {
    sockaddr_in a{};
    a.sin_family = AF_INET, a.sin_port = htons(static_cast<uint16_t>(port));
    code = code_of(::bind(socket.get(), reinterpret_cast<sockaddr*>(&a), sizeof a));
  }
  if (code == 0) code = code_of(::listen(socket.get(), 128));
  require(code == 0, "rank 0 cannot meet the other ranks at port ", port, ": ", reason_of(code),
          "; choose another port with MASTER_PORT, the same for all ranks");
  return socket;
}

// One attempt; not open where nobody listens (yet).
Descriptor connected(const std::string& address, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  Addresses found;
  const int known = ::getaddrinfo(address.c_str(), concat(port).c_str(), &hints, &found.list);
  if (known != 0) return {};
  for (const addrinfo* a = found.list; a; a = a->ai_next) {
    Descriptor socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (socket.open() && ::connect(socket.get(), a->ai_addr, a->ai_addrlen) == 0) return socket;
  }
  return {};
}

std::string about(int rank, int size, const std::string& host, int64_t process) {
  return concat("rank ", rank, " of ", size, " (process ", process, " on ", host, ")");
}

}  // namespace

RankMeeting::RankMeeting(const Place& place, std::function<void()> on_fault)
    : rank_(place.rank),
      size_(place.size),
      on_fault_(std::move(on_fault)),
      people_(static_cast<size_t>(place.size)),
      offered_(static_cast<size_t>(place.size)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (rank_ == 0)
    gather_all(place);
  else
    join(place);
  for (const auto& line : lines_) set_option(line->socket.get(), IPPROTO_TCP, TCP_NODELAY);
  thread_ = std::thread([this] { work(); });
}

RankMeeting::~RankMeeting() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof one);
  thread_.join();
}

std::string RankMeeting::name(int rank) const {
  const Person& p = people_[static_cast<size_t>(rank)];
  return about(rank, size_, p.host, p.process);
}

std::string RankMeeting::own_address() const {
  sockaddr_storage a{};
  socklen_t bytes = sizeof a;
  std::array<char, 256> text{};
  if (::getsockname(lines_.front()->socket.get(), reinterpret_cast<sockaddr*>(&a), &bytes) != 0 ||
      ::getnameinfo(reinterpret_cast<sockaddr*>(&a), bytes, text.data(), text.size(), nullptr, 0,
                    NI_NUMERICHOST) != 0)
    return "127.0.0.1";
  const std::string address = text.data(), mapped = "::ffff:";
  return address.rfind(mapped, 0) == 0 ? address.substr(mapped.size()) : address;
}

void RankMeeting::gather_all(const Place& place) {
  const Descriptor listener =
      place.listener >= 0 ? Descriptor(place.listener) : listen_at(place.port);
  const auto end = Clock::now() + std::chrono::seconds(place.patience);
  people_[0] = {own_host(), ::getpid()};
  lines_.resize(static_cast<size_t>(size_ - 1));
  for (int here = 1; here < size_;) {
    if (seconds_until(end) <= 0) {
      std::vector<std::string> missing;
      for (int r = 1; r < size_; ++r)
        if (!lines_[static_cast<size_t>(r - 1)]) missing.push_back(concat(r));
      fail(missing.size() == 1 ? "rank " : "ranks ", joined(missing), " of ", size_,
           " did not come to port ", place.port, " within ", place.patience, " s",
           place.source.empty() ? ""
                                : concat(" (", place.source, " say that there are ", size_,
                                         " ranks; --ranks 1 trains alone)"),
           "; WEFT_RANKS_WAIT sets the seconds");
    }
    pollfd p{listener.get(), POLLIN, 0};
    if (::poll(&p, 1, 200) <= 0) continue;
    Descriptor socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.open()) continue;
    Header h{};
    std::string text;
    // Whoever else knocks at the port is let go.
    if (!receive(socket.get(), h, text, Clock::now() + std::chrono::seconds(2)) || h.kind != kHello)
      continue;
    const std::vector<std::string> hello = unpacked(text);
    const auto refuse = [&](const std::string& why) {
      std::string bytes;
      put(bytes, kRefused, 0, why);
      send_now(socket.get(), bytes);
    };
    if (hello.size() != 3 || hello[0] != concat(size_)) {
      refuse(concat("rank 0 expects ", size_, " ranks, this one ", hello.empty() ? "?" : hello[0]));
      continue;
    }
    if (h.number < 1 || h.number >= size_ || lines_[static_cast<size_t>(h.number - 1)]) {
      refuse(concat("rank ", h.number, " is there already"));
      continue;
    }
    auto line = std::make_unique<Line>();
    line->socket = std::move(socket), line->rank = h.number;
    people_[static_cast<size_t>(h.number)] = {hello[1], std::atoll(hello[2].c_str())};
    lines_[static_cast<size_t>(h.number - 1)] = std::move(line);
    ++here;
  }
  std::vector<std::string> all;
  for (const Person& p : people_) all.insert(all.end(), {p.host, concat(p.process)});
  std::string bytes;
  put(bytes, kPeople, 0, packed(all));
  for (const auto& line : lines_) send_now(line->socket.get(), bytes);
}

void RankMeeting::join(const Place& place) {
  const auto end = Clock::now() + std::chrono::seconds(place.patience + 3);
  Descriptor socket;
  for (;;) {
    socket = connected(place.address, place.port);
    if (socket.open()) break;
    require(seconds_until(end) > 0, "rank ", rank_, " of ", size_, ": rank 0 was not to be found ",
            "at ", place.address, ", port ", place.port, " within ", place.patience,
            " s; MASTER_ADDR and MASTER_PORT say where it is, WEFT_RANKS_WAIT sets the seconds");
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
  }
  std::string bytes, text;
  put(bytes, kHello, rank_, packed({concat(size_), own_host(), concat(::getpid())}));
  Header h{};
  const bool answered = send_now(socket.get(), bytes) == 0 && receive(socket.get(), h, text, end);
  require(answered && (h.kind == kPeople || h.kind == kRefused), "rank ", rank_, " of ", size_,
          ": rank 0 at ", place.address, ", port ", place.port, " gave up, or is no rank of ours");
  require(h.kind != kRefused, "rank ", rank_, " of ", size_, " was refused: ", text,
          "; another run may use this port: choose another with MASTER_PORT");
  const std::vector<std::string> all = unpacked(text);
  for (size_t i = 0; i < people_.size() && 2 * i + 1 < all.size(); ++i)
    people_[i] = {all[2 * i], std::atoll(all[2 * i + 1].c_str())};
  lines_.push_back(std::make_unique<Line>());
  lines_[0]->socket = std::move(socket);
}

// --- The thread ----------------------------------------------------------------------------------

void RankMeeting::work() {
  auto last = Clock::now();
  double since_beat = kBeatEvery;
  for (;;) {
    std::vector<pollfd> polled{{wake_.get(), POLLIN, 0}};
    {
      const std::lock_guard lock(mutex_);
      const bool unsent = std::any_of(lines_.begin(), lines_.end(), [](const auto& l) {
        return l->socket.open() && !l->out.empty();
      });
      // What was said last is still sent, for a moment.
      if (over_ && (!unsent || std::chrono::duration<double>(Clock::now() - last).count() > 2))
        return;
      for (const auto& l : lines_)
        polled.push_back(
            {l->socket.get(), static_cast<short>(POLLIN | (l->out.empty() ? 0 : POLLOUT)), 0});
    }
    ::poll(polled.data(), polled.size(), 250);
    const std::lock_guard lock(mutex_);
    if (polled[0].revents) {
      uint64_t n = 0;
      [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &n, sizeof n);
    }
    if (over_) {
      for (const auto& l : lines_) flush(*l);
      continue;
    }
    // A process that was stopped itself (Ctrl-Z) has not heard the others meanwhile.
    const auto now = Clock::now();
    const double passed = std::min(0.5, std::chrono::duration<double>(now - last).count());
    last = now;
    since_beat += passed;
    const bool beats = since_beat >= kBeatEvery;
    if (beats) since_beat = 0;
    for (size_t i = 0; i < lines_.size(); ++i) {
      Line& l = *lines_[i];
      if (!l.socket.open()) continue;
      l.silence += passed;
      if (polled[i + 1].revents) read_from(l);
      if (beats && !l.left) post(l, kBeat, 0, "");
      flush(l);
      if (l.silence > kSilence && !l.left)
        lose(l, concat("gave no sign of life for ", static_cast<int>(kSilence), " s"));
    }
    if (fault_ && !told_ && std::chrono::duration<double>(now - fault_time_).count() > kEndAfter) {
      // The rank computes, or waits for a device that never answers: nothing else would end it.
      const std::string text = concat("weft: ", fault_->text, "\n");
      const bool speaks = rank_ == (fault_->rank == 0 ? 1 : 0);
      if (speaks) [[maybe_unused]]
        const ssize_t n = ::write(STDERR_FILENO, text.data(), text.size());
      ::_exit(1);
    }
  }
}

void RankMeeting::read_from(Line& l) {
  std::array<char, 65536> buffer;
  for (;;) {
    const ssize_t n = ::recv(l.socket.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    const int code = code_of(n);
    if (code == EINTR) continue;
    if (code == EAGAIN) break;
    if (n <= 0) return l.left ? void(l.socket.close()) : lose(l, "ended without a word");
    l.silence = 0;
    l.in.append(buffer.data(), static_cast<size_t>(n));
    if (static_cast<size_t>(n) < buffer.size()) break;
  }
  for (Header h{}; l.in.size() >= sizeof h;) {
    std::memcpy(&h, l.in.data(), sizeof h);
    if (h.bytes > kLongest) return lose(l, "sent what is no message of ours");
    if (l.in.size() < sizeof h + h.bytes) return;
    const Message m{h.kind, h.number, l.in.substr(sizeof h, h.bytes)};
    l.in.erase(0, sizeof h + h.bytes);
    handle(l, m);
  }
}

void RankMeeting::handle(Line& l, const Message& m) {
  switch (m.kind) {
    case kOffer:
      return offer(l.rank, m.text);
    case kResult:
      results_.push_back(m.text);
      return changed_.notify_all();
    case kFailed:
      return set_fault(l.rank, m.number, concat(name(l.rank), ": ", m.text));
    case kFault: {
      const std::vector<std::string> parts = unpacked(m.text);
      return set_fault(m.number, std::atoi(parts.at(0).c_str()), parts.at(1));
    }
    case kLeave:
      l.left = true;
      return;
    default:
      return;  // a sign of life
  }
}

void RankMeeting::lose(Line& l, const std::string& how) {
  l.socket.close();
  set_fault(l.rank, 1, concat(name(l.rank), " ", how));
}

void RankMeeting::set_fault(int rank, int status, const std::string& text) {
  if (fault_) return;
  fault_ = Fault{rank, status, text};
  fault_time_ = Clock::now();
  if (rank_ == 0)
    for (const auto& l : lines_)
      if (l->socket.open()) post(*l, kFault, rank, packed({concat(status), text}));
  changed_.notify_all();
  on_fault_();
}

void RankMeeting::post(Line& l, uint32_t kind, int32_t number, const std::string& text) {
  put(l.out, kind, number, text);
  flush(l);
}

void RankMeeting::flush(Line& l) {
  while (l.socket.open() && !l.out.empty()) {
    const ssize_t n =
        ::send(l.socket.get(), l.out.data(), l.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    const int code = code_of(n);
    if (code == EINTR) continue;
    if (code != 0) return;  // the reader sees that nobody is there
    l.out.erase(0, static_cast<size_t>(n));
  }
}

// --- Exchanges -----------------------------------------------------------------------------------

void RankMeeting::offer(int rank, const std::string& text) {
  offered_[static_cast<size_t>(rank)].push_back(text);
  settle_exchange();
}

// On rank 0: once each has offered a text, all of them go to everyone.
void RankMeeting::settle_exchange() {
  for (const auto& texts : offered_)
    if (texts.empty()) return;
  std::vector<std::string> all;
  std::string place;
  for (int r = 0; r < size_; ++r) {
    auto& texts = offered_[static_cast<size_t>(r)];
    std::vector<std::string> parts = unpacked(texts.front());
    texts.pop_front();
    if (r == 0) place = parts.at(0);
    if (parts.at(0) != place)
      return set_fault(r, 1, concat(name(r), " is at ", parts.at(0), ", rank 0 at ", place));
    all.push_back(std::move(parts.at(1)));
  }
  const std::string result = packed(all);
  results_.push_back(result);
  for (const auto& l : lines_) post(*l, kResult, 0, result);
  changed_.notify_all();
}

std::vector<std::string> RankMeeting::exchange(const std::string& what, const std::string& mine) {
  std::unique_lock lock(mutex_);
  if (fault_) throw_fault();
  const std::string text = packed({what, mine});
  if (rank_ == 0)
    offer(0, text);
  else
    post(*lines_[0], kOffer, rank_, text);
  if (const uint64_t one = 1; rank_ != 0 && !lines_[0]->out.empty()) [[maybe_unused]]
    const ssize_t n = ::write(wake_.get(), &one, sizeof one);
  changed_.wait(lock, [&] { return fault_ || !results_.empty(); });
  if (results_.empty()) throw_fault();
  const std::string result = std::move(results_.front());
  results_.pop_front();
  return unpacked(result);
}

void RankMeeting::throw_fault() const {
  throw RankFault(fault_->text, fault_->rank, fault_->status);
}

void RankMeeting::check() const {
  const std::lock_guard lock(mutex_);
  if (fault_) throw_fault();
}

void RankMeeting::wait_for_fault() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::seconds(3), [&] { return fault_.has_value(); });
}

void RankMeeting::tell_end(const std::string& why, int status) {
  const std::lock_guard lock(mutex_);
  told_ = true;
  if (fault_) return;
  if (rank_ == 0)
    set_fault(0, status, why);
  else
    post(*lines_[0], kFailed, status, why);
}

void RankMeeting::leave() {
  const std::lock_guard lock(mutex_);
  for (const auto& l : lines_) {
    l->left = true;
    if (l->socket.open()) post(*l, kLeave, 0, "");
  }
}

}  // namespace weft
