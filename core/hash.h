// A 64-bit hash of bytes: XXH64 (Yann Collet's specification, seed 0), so that `xxhsum -H64` gives
// the same number. It finds damage and tells runs apart; it is no defence against forgery.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

// Bytes handed over in pieces of any size hash as the whole would.
class Hash64 {
 public:
  void update(const void* data, size_t bytes);
  void update(std::string_view text) { update(text.data(), text.size()); }
  uint64_t digest() const;

 private:
  static constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u, kPrime2 = 0xC2B2AE3D27D4EB4Fu;
  std::array<uint64_t, 4> lanes_{kPrime1 + kPrime2, kPrime2, 0, uint64_t{0} - kPrime1};
  std::array<unsigned char, 32> rest_{};  // the last bytes, fewer than a stripe
  size_t rest_bytes_ = 0;
  uint64_t total_ = 0;
};

uint64_t hash64(const void* data, size_t bytes);
inline uint64_t hash64(std::string_view text) { return hash64(text.data(), text.size()); }

// 16 hexadecimal digits.
std::string to_hex(uint64_t hash);

}  // namespace weft
