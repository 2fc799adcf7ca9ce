// Products of sizes that 64 bits cannot count are refused where they are made.
#include "core/sizes.h"

#include "core/allocator.h"
#include "core/tensor.h"
#include "tests/catch.h"

using namespace weft;

namespace {

constexpr int64_t k32 = int64_t{1} << 32, k62 = int64_t{1} << 62;
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

}  // namespace

TEST_CASE("sizes: a product or a sum that does not fit is refused, and says of what") {
  CHECK(times(k32, 1 << 30, "rows") == k62);
  CHECK(plus(k62, k62 - 1, "rows") == kMost);
  CHECK_THROWS_WITH(times(k32, k32 / 2, "rows"), ContainsSubstring("the rows are more than"));
  CHECK_THROWS_AS(plus(k62, k62, "rows"), TooMany);
  CHECK(at_most_plus(3, 4) == 7);
  CHECK(at_most_plus(3, kMost) == kMost);
  CHECK(at_most_plus(-3, kMost) == kMost - 3);
}

TEST_CASE("sizes: a shape of more elements or bytes than 64 bits count is refused, on any device") {
  CHECK(Shape({k32, k32 / 4}).numel() == k62);
  CHECK_THROWS_WITH(Shape({k32, k32}).numel(),
                    ContainsSubstring("elements of a tensor of shape [4294967296, 4294967296]"));
  CHECK_THROWS_AS(Shape({k62, 4}).numel(), TooMany);
  CHECK_THROWS_AS(Shape({k32, k32, 3, 5}).numel(), TooMany);
  CHECK_THROWS_AS(Shape({0, k32, k32}).numel(), TooMany);  // its strides cannot be counted either
  CHECK(Shape({k62, 0}).numel() == 0);
  CHECK(bytes_of({k62 / 4}, Dtype::f32) == k62);
  CHECK_THROWS_WITH(bytes_of({k62 / 2}, Dtype::f64), ContainsSubstring("bytes of a tensor"));
  for (const Device device : {kCpu, kMeta}) {
    CHECK_THROWS_AS(empty({k32, k32}, Dtype::u8, device), TooMany);
    CHECK_THROWS_AS(empty({k62, 2}, Dtype::f32, device), TooMany);
    CHECK_THROWS_AS(empty({0, k62, 2}, Dtype::f64, device), TooMany);
  }
  CHECK_THROWS_AS(zeros({4}, Dtype::f32).reshape({k62, 4, -1}), TooMany);
}

TEST_CASE("sizes: what tensors hold together is counted, or refused") {
  const int64_t before = allocator(kMeta).stats().current;
  constexpr int64_t kMost = int64_t{1} << 56;  // of one tensor
  {
    std::vector<Tensor> held;
    for (int i = 0; i < 127; ++i) held.push_back(empty({kMost}, Dtype::u8, kMeta));
    CHECK(allocator(kMeta).stats().current - before == 127 * kMost);
    CHECK_THROWS_WITH(empty({kMost}, Dtype::u8, kMeta), ContainsSubstring("beside"));
    CHECK_THROWS_WITH(empty({2 * kMost}, Dtype::u8, kMeta),
                      ContainsSubstring("more than any machine"));
  }
  CHECK(allocator(kMeta).stats().current == before);
}
