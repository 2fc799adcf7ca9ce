// Counting, caching and owners.
#include "core/allocator.h"

#include <cmath>

#include "core/tensor.h"
#include "tests/catch.h"

using namespace weft;

TEST_CASE("allocator: counts what is held, at most, and for whom") {
  Allocator& memory = allocator(kMeta);
  memory.reset_peak();
  const int64_t before = memory.stats().current;
  {
    const OwnerScope outer("outer");
    const Tensor a = empty({1000}, Dtype::f32, kMeta);
    const OwnerScope inner("inner");
    const Tensor b = empty({10}, Dtype::f32, kMeta);
    CHECK(current_owner() == "inner");
  }
  const MemoryStats s = memory.stats();
  CHECK(s.current == before);
  CHECK(s.peak - before == 4032 + 64);
  REQUIRE(s.at_peak.size() >= 2);
  CHECK(s.at_peak[0].owner == "outer");
  CHECK(s.at_peak[0].bytes == 4032);
}

TEST_CASE("allocator: a freed block is handed out again") {
  void* first = nullptr;
  {
    const Tensor t = empty({12345}, Dtype::f32);
    first = t.raw();
  }
  CHECK(empty({12345}, Dtype::f32).raw() == first);
}

TEST_CASE("allocator: poisoned memory is not a number") {
  allocator(kCpu).set_poison(true);
  const Tensor t = empty({3}, Dtype::f32);
  allocator(kCpu).set_poison(false);
  CHECK(std::isnan(t.data<float>()[2]));
}

TEST_CASE("allocator: the meta device counts what the CPU would") {
  const auto peak = [](Device device) {
    allocator(device).reset_peak();
    const int64_t before = allocator(device).stats().current;
    {
      const Tensor a = empty({33, 7}, Dtype::f64, device);
      const Tensor b = a.transpose(0, 1).contiguous();
      const Tensor c = empty({0}, Dtype::f32, device);
    }
    return allocator(device).stats().peak - before;
  };
  CHECK(peak(kCpu) == peak(kMeta));
}
