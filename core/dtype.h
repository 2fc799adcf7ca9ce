// Element types, and the way from a type known at run time to a C++ type.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <ostream>
#include <string_view>
#include <type_traits>

#include "core/error.h"

namespace weft {

enum class Dtype : uint8_t { f64, f32, bf16, i64, i32, u8 };

// The upper half of an fp32. Conversion from float rounds to the nearest, ties to even; NaN stays
// NaN.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  explicit bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

constexpr int64_t size_of(Dtype t) {
  switch (t) {
    case Dtype::f64:
    case Dtype::i64:
      return 8;
    case Dtype::f32:
    case Dtype::i32:
      return 4;
    case Dtype::bf16:
      return 2;
    case Dtype::u8:
      return 1;
  }
  return 0;
}

constexpr std::string_view name_of(Dtype t) {
  switch (t) {
    case Dtype::f64:
      return "f64";
    case Dtype::f32:
      return "f32";
    case Dtype::bf16:
      return "bf16";
    case Dtype::i64:
      return "i64";
    case Dtype::i32:
      return "i32";
    case Dtype::u8:
      return "u8";
  }
  return "?";
}

inline std::ostream& operator<<(std::ostream& out, Dtype t) { return out << name_of(t); }

constexpr bool is_float(Dtype t) { return t == Dtype::f64 || t == Dtype::f32 || t == Dtype::bf16; }

// "f32" -> Dtype::f32. Throws Error that lists the names there are.
inline Dtype dtype_from(std::string_view name) {
  for (Dtype t : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::i64, Dtype::i32, Dtype::u8})
    if (name == name_of(t)) return t;
  fail("unknown dtype \"", name, "\"; known: f64 f32 bf16 i64 i32 u8");
}

// The distance from 1 to the next number: the unit in which errors of a dtype are counted.
constexpr double epsilon_of(Dtype t) {
  switch (t) {
    case Dtype::f64:
      return std::numeric_limits<double>::epsilon();
    case Dtype::f32:
      return std::numeric_limits<float>::epsilon();
    case Dtype::bf16:
      return 1.0 / 128;
    default:
      return 0;
  }
}

template <class T>
constexpr Dtype dtype_of() {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_same_v<U, double>)
    return Dtype::f64;
  else if constexpr (std::is_same_v<U, float>)
    return Dtype::f32;
  else if constexpr (std::is_same_v<U, bf16>)
    return Dtype::bf16;
  else if constexpr (std::is_same_v<U, int64_t>)
    return Dtype::i64;
  else if constexpr (std::is_same_v<U, int32_t>)
    return Dtype::i32;
  else {
    static_assert(std::is_same_v<U, uint8_t>, "no dtype for this C++ type");
    return Dtype::u8;
  }
}

// Calls f.template operator()<T>() with the C++ type of t.
template <class F>
decltype(auto) for_dtype(Dtype t, F&& f) {
  switch (t) {
    case Dtype::f64:
      return f.template operator()<double>();
    case Dtype::f32:
      return f.template operator()<float>();
    case Dtype::bf16:
      return f.template operator()<bf16>();
    case Dtype::i64:
      return f.template operator()<int64_t>();
    case Dtype::i32:
      return f.template operator()<int32_t>();
    case Dtype::u8:
      return f.template operator()<uint8_t>();
  }
  fail("for_dtype: dtype out of range");
}

// As for_dtype for the types that the CPU computes in: f64 and f32. (bf16 is cast before; see
// kernels/contract/mechanism.h.)
template <class F>
decltype(auto) for_real(Dtype t, F&& f) {
  if (t == Dtype::f64) return f.template operator()<double>();
  require(t == Dtype::f32, "dtype ", t, ": expected f32 or f64");
  return f.template operator()<float>();
}

}  // namespace weft
