// The one file that includes Gloo. It is built as a library of its own (core/ranks_gloo.h).
#include "core/ranks_gloo.h"

#include <gloo/transport/address.h>
#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using gloo::transport::UnboundBuffer;

struct WeftGloo {
  std::shared_ptr<gloo::transport::Device> device;
  std::shared_ptr<gloo::transport::Context> context;
  std::string addresses;
  std::vector<uint64_t> sent, received;  // messages so far, by rank
  std::mutex mutex;
  std::set<UnboundBuffer*> waiting;
  bool abandoned = false;
};

namespace {

constexpr std::chrono::hours kForever{24 * 365};  // who is dead or hangs is seen by the meeting

template <class F>
int guarded(char* why, size_t room, const F& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(why, room, "%s", e.what());
  } catch (...) {
    std::snprintf(why, room, "an unknown fault");
  }
  return 1;
}

// One message under way.
struct Message {
  std::unique_ptr<UnboundBuffer> buffer;
  bool sends;
};

class Waiting {
 public:
  Waiting(WeftGloo& g, UnboundBuffer* buffer) : g_(g), buffer_(buffer) {
    const std::lock_guard lock(g_.mutex);
    if (g_.abandoned) throw std::runtime_error("abandoned");
    g_.waiting.insert(buffer_);
  }
  ~Waiting() {
    const std::lock_guard lock(g_.mutex);
    g_.waiting.erase(buffer_);
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  WeftGloo& g_;
  UnboundBuffer* buffer_;
};

}  // namespace

WeftGloo* weft_gloo_open(int rank, int size, const char* host, char* why, size_t room) {
  auto g = std::make_unique<WeftGloo>();
  const int failed = guarded(why, room, [&] {
    g->device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr(host));
    g->context = g->device->createContext(rank, size);
    g->context->setTimeout(std::chrono::seconds(30));
    g->sent.resize(static_cast<size_t>(size));
    g->received.resize(static_cast<size_t>(size));
    size_t one = 0;
    // All addresses of a rank have one size; rank j connects to the j-th.
    for (int i = 0; i < size; ++i) {
      if (i == rank) continue;
      const std::vector<char> bytes = g->context->createPair(i)->address().bytes();
      g->addresses.append(bytes.data(), bytes.size());
      one = bytes.size();
    }
    g->addresses.insert(static_cast<size_t>(rank) * one, one, '\0');
  });
  return failed ? nullptr : g.release();
}

const char* weft_gloo_addresses(WeftGloo* g, size_t* bytes) {
  *bytes = g->addresses.size();
  return g->addresses.data();
}

int weft_gloo_connect(WeftGloo* g, const char* const* addresses, const size_t* bytes, char* why,
                      size_t room) {
  return guarded(why, room, [&] {
    const size_t one = g->addresses.size() / static_cast<size_t>(g->context->size);
    for (int i = 0; i < g->context->size; ++i) {
      const size_t at = static_cast<size_t>(g->context->rank) * one;
      if (i == g->context->rank) continue;
      if (bytes[i] < at + one) throw std::runtime_error("an address is too short");
      const char* const from = addresses[i] + at;
      g->context->getPair(i)->connect(std::vector<char>(from, from + one));
    }
  });
}

int weft_gloo_transfer(WeftGloo* g, const WeftPart* sends, size_t send_count,
                       const WeftPart* receives, size_t receive_count, char* why, size_t room) {
  return guarded(why, room, [&] {
    std::vector<Message> messages;
    const auto add = [&](const WeftPart& p, bool send) {
      messages.push_back({g->context->createUnboundBuffer(p.data, p.bytes), send});
      const auto rank = static_cast<size_t>(p.rank);
      if (send)
        messages.back().buffer->send(p.rank, g->sent[rank]++);
      else
        messages.back().buffer->recv(p.rank, g->received[rank]++);
    };
    for (size_t i = 0; i < receive_count; ++i) add(receives[i], false);
    for (size_t i = 0; i < send_count; ++i) add(sends[i], true);
    for (const Message& m : messages) {
      const Waiting waiting(*g, m.buffer.get());
      const bool done = m.sends ? m.buffer->waitSend(kForever) : m.buffer->waitRecv(kForever);
      if (!done) throw std::runtime_error("abandoned");
    }
  });
}

void weft_gloo_abandon(WeftGloo* g) {
  const std::lock_guard lock(g->mutex);
  g->abandoned = true;
  for (UnboundBuffer* buffer : g->waiting) {
    buffer->abortWaitRecv();
    buffer->abortWaitSend();
  }
}

void weft_gloo_close(WeftGloo* g) {
  char why[64];
  guarded(why, sizeof why, [&] {
    for (int i = 0; i < g->context->size; ++i)
      if (i != g->context->rank) g->context->getPair(i)->close();
  });
  delete g;
}
