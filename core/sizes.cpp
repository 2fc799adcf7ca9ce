#include "core/sizes.h"

#include "core/tensor.h"

namespace weft {

void too_many(const std::string& what) {
  throw TooMany(
      concat("the ", what, " are more than 64 bits can count, and than any memory can hold"));
}

int64_t times(int64_t a, int64_t b, const char* what) {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) too_many(what);
  return product;
}

int64_t plus(int64_t a, int64_t b, const char* what) {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) too_many(what);
  return sum;
}

int64_t bytes_of(const Shape& shape, Dtype dtype) {
  int64_t bytes = size_of(dtype);
  bool none = false, fits = true;
  for (const int64_t size : shape) {
    none |= size == 0;
    if (size != 0) fits &= !__builtin_mul_overflow(bytes, size, &bytes);
  }
  if (!fits) too_many(concat("bytes of a tensor of shape ", shape, " in ", dtype));
  return none ? 0 : bytes;
}

}  // namespace weft
