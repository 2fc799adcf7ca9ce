// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11). A number is a function of
// (seed, stream, index) alone: not of threads, device or the order of calls. A stream is a purpose
// (the name of a parameter, an epoch of data); see stream_of().
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace weft {

using Words = std::array<uint32_t, 4>;
__extension__ using Wide = unsigned __int128;

// Ten rounds on a 128-bit counter with a 64-bit key.
inline Words philox(Words counter, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// A stream's number from its name (FNV-1a), so that "layer 3 wq" draws the same numbers in any
// model.
constexpr uint64_t stream_of(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  Words words(uint64_t index) const {
    return philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                   static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)},
                  seed_);
  }
  uint64_t bits(uint64_t index) const {
    const Words w = words(index);
    return uint64_t{w[0]} << 32 | w[1];
  }
  // In [0, 1), 53 bits.
  double uniform(uint64_t index) const {
    return static_cast<double>(bits(index) >> 11) * 0x1.0p-53;
  }
  // In [0, n), by the high half of a product: the bias is below n / 2^64.
  uint64_t below(uint64_t n, uint64_t index) const {
    return static_cast<uint64_t>((static_cast<Wide>(bits(index)) * n) >> 64);
  }
  // Standard normal, by Box-Muller.
  double normal(uint64_t index) const {
    const Words w = words(index);
    const double u = (static_cast<double>((uint64_t{w[0]} << 32 | w[1]) >> 11) + 1) * 0x1.0p-53;
    const double v = static_cast<double>((uint64_t{w[2]} << 32 | w[3]) >> 11) * 0x1.0p-53;
    return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
  }

 private:
  uint64_t seed_, stream_;
};

}  // namespace weft
