#include "core/hash.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace weft {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5u;

static_assert(std::endian::native == std::endian::little, "words are read as they lie");

template <class T>
uint64_t word(const unsigned char* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

uint64_t round(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

void stripe(std::array<uint64_t, 4>& lanes, const unsigned char* p) {
  for (size_t i = 0; i < 4; ++i) lanes[i] = round(lanes[i], word<uint64_t>(p + 8 * i));
}

}  // namespace

void Hash64::update(const void* data, size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  total_ += bytes;
  if (rest_bytes_ > 0) {
    const size_t taken = std::min(bytes, rest_.size() - rest_bytes_);
    if (taken > 0) std::memcpy(rest_.data() + rest_bytes_, p, taken);
    rest_bytes_ += taken, p += taken, bytes -= taken;
    if (rest_bytes_ < rest_.size()) return;
    stripe(lanes_, rest_.data());
    rest_bytes_ = 0;
  }
  std::array<uint64_t, 4> lanes = lanes_;  // in registers through the loop
  for (; bytes >= 32; bytes -= 32, p += 32) stripe(lanes, p);
  lanes_ = lanes;
  if (bytes > 0) std::memcpy(rest_.data(), p, bytes);
  rest_bytes_ = bytes;
}

uint64_t Hash64::digest() const {
  uint64_t h = kPrime5;
  if (total_ >= 32) {
    h = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
        std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) h = (h ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  h += total_;
  const unsigned char* p = rest_.data();
  size_t left = rest_bytes_;
  for (; left >= 8; left -= 8, p += 8)
    h = std::rotl(h ^ round(0, word<uint64_t>(p)), 27) * kPrime1 + kPrime4;
  if (left >= 4) {
    h = std::rotl(h ^ (word<uint32_t>(p) * kPrime1), 23) * kPrime2 + kPrime3;
    left -= 4, p += 4;
  }
  for (; left > 0; --left, ++p) h = std::rotl(h ^ (*p * kPrime5), 11) * kPrime1;
  h = (h ^ (h >> 33)) * kPrime2;
  h = (h ^ (h >> 29)) * kPrime3;
  return h ^ (h >> 32);
}

uint64_t hash64(const void* data, size_t bytes) {
  Hash64 hash;
  hash.update(data, bytes);
  return hash.digest();
}

std::string to_hex(uint64_t hash) {
  std::string text(16, '0');
  for (size_t i = 16; i-- > 0; hash >>= 4) text[i] = "0123456789abcdef"[hash & 15];
  return text;
}

}  // namespace weft
