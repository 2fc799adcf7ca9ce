// Gloo behind functions of C: core/ranks_gloo.cpp is built as a library of its own, weft_gloo.so,
// and looked up when there are ranks on the CPU. Gloo is a shared library with four more behind it;
// so the program starts without them, and no exception passes from one C++ library to another.
#pragma once

#include <cstddef>

extern "C" {

struct WeftGloo;

struct WeftPart {
  int rank;
  void* data;
  size_t bytes;
};

// The ends of this rank's connections. Returns null with the reason in `why`.
WeftGloo* weft_gloo_open(int rank, int size, const char* host, char* why, size_t room);
// Their addresses, as many bytes as *bytes says then; null never.
const char* weft_gloo_addresses(WeftGloo* g, size_t* bytes);
// Connects to all, by everyone's addresses. These return 0, or 1 with the reason in `why`.
int weft_gloo_connect(WeftGloo* g, const char* const* addresses, const size_t* bytes, char* why,
                      size_t room);
int weft_gloo_transfer(WeftGloo* g, const WeftPart* sends, size_t send_count,
                       const WeftPart* receives, size_t receive_count, char* why, size_t room);
// Lets a transfer that waits return 1. From any thread.
void weft_gloo_abandon(WeftGloo* g);
void weft_gloo_close(WeftGloo* g);
}
