// A pseudo-random order of 0 .. n-1 without a table: a Feistel network on the next power of four,
// walked until it falls below n again (Black and Rogaway, CT-RSA 2002).
#pragma once

#include <bit>
#include <cstdint>

#include "core/random.h"

namespace weft::data {

class Permutation {
 public:
  Permutation(int64_t n, uint64_t seed, uint64_t stream)
      : n_(static_cast<uint64_t>(n)),
        half_((std::bit_width(n_ > 1 ? n_ - 1 : 1) + 1) / 2),
        random_(seed, stream) {}

  // The number at place i; each of 0 .. n-1 at one place.
  int64_t operator()(int64_t i) const {
    auto x = static_cast<uint64_t>(i);
    do {
      x = mixed(x);
    } while (x >= n_);
    return static_cast<int64_t>(x);
  }

 private:
  uint64_t mixed(uint64_t x) const {
    const uint64_t mask = (uint64_t{1} << half_) - 1;
    uint64_t left = x >> half_, right = x & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t next = left ^ (random_.bits(right | round << 40) & mask);
      left = right, right = next;
    }
    return left << half_ | right;
  }

  uint64_t n_;
  int half_;  // bits of each half
  Random random_;
};

}  // namespace weft::data
