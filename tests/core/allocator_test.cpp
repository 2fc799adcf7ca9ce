// Counting, caching and owners.
#include "core/allocator.h"

#include <algorithm>
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

namespace {

int64_t held_by(const MemoryStats& s, const std::string& owner) {
  for (const Owned& o : s.at_peak)
    if (o.owner == owner) return o.bytes;
  return 0;
}

}  // namespace

TEST_CASE("allocator: reset_peak() begins anew with those who hold something now") {
  Allocator memory(kCpu);
  const auto held = [&](const char* owner, int64_t bytes) {
    const OwnerScope scope(owner);
    return memory.allocate(bytes);
  };
  const auto kept = held("kept", 256), gone = held("gone", 1024), shrunk = held("shrunk", 640);
  const auto rest = held("shrunk", 128);
  CHECK(held_by(memory.stats(), "gone") == 1024);
  CHECK(held_by(memory.stats(), "shrunk") == 768);
  memory.release(gone);
  memory.release(shrunk);
  CHECK(held_by(memory.stats(), "gone") == 1024);  // as it was at the peak
  CHECK(memory.stats().peak == 256 + 1024 + 768);
  memory.reset_peak();
  const MemoryStats s = memory.stats();
  CHECK(s.peak == 256 + 128);
  CHECK(s.current == s.peak);
  CHECK(held_by(s, "gone") == 0);
  CHECK(held_by(s, "kept") == 256);
  CHECK(held_by(s, "shrunk") == 128);
  CHECK(s.at_peak.size() == 2);
  const auto later = held("later", 64);
  CHECK(memory.stats().peak == 256 + 128 + 64);
  CHECK(held_by(memory.stats(), "later") == 64);
  CHECK(held_by(memory.stats(), "kept") == 256);
  for (const auto& block : {kept, rest, later}) memory.release(block);
  CHECK(memory.stats().current == 0);
}

TEST_CASE("allocator: at a peak the owners together hold it, the largest first") {
  Allocator memory(kCpu);
  std::vector<Allocator::Block> blocks;
  for (const auto& [owner, bytes] : std::vector<std::pair<std::string, int64_t>>{
           {"small", 64}, {"large", 4096}, {"middle", 512}, {"small", 64}}) {
    const OwnerScope scope(owner);
    blocks.push_back(memory.allocate(bytes));
  }
  const MemoryStats s = memory.stats();
  std::vector<std::string> names;
  int64_t sum = 0;
  for (const Owned& o : s.at_peak) names.push_back(o.owner), sum += o.bytes;
  CHECK(names == std::vector<std::string>{"large", "middle", "small"});
  CHECK(sum == s.peak);
  for (const auto& block : blocks) memory.release(block);
}

TEST_CASE(
    "allocator: what is freed is cached by its size, and counted as cached until it is used") {
  Allocator memory(kCpu);
  const auto cached = [&] { return memory.stats().cached; };
  const auto a = memory.allocate(100), b = memory.allocate(65);
  CHECK(a.bytes == 128);
  CHECK(b.bytes == 128);
  CHECK(cached() == 0);
  memory.release(a);
  CHECK(cached() == 128);
  memory.release(b);
  CHECK(cached() == 256);
  CHECK(memory.stats().current == 0);
  const auto other = memory.allocate(64);  // another size
  CHECK(other.bytes == 64);
  CHECK(cached() == 256);
  const auto again = memory.allocate(128);
  CHECK((again.data == a.data || again.data == b.data));
  CHECK(cached() == 128);
  const auto last = memory.allocate(127);
  CHECK(cached() == 0);
  CHECK(last.data != again.data);
  for (const auto& block : {other, again, last}) memory.release(block);
  CHECK(cached() == 64 + 256);
  const int64_t before = memory.times_emptied();
  memory.empty_cache();
  CHECK(cached() == 0);
  CHECK(memory.times_emptied() == before + 1);
}

TEST_CASE("allocator: a size is rounded up to 64 bytes, and nothing takes 64 as well") {
  Allocator memory(kMeta);
  for (const auto& [asked, counted] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 64}, {1, 64}, {63, 64}, {64, 64}, {65, 128}, {128, 128}, {1000, 1024}}) {
    const auto block = memory.allocate(asked);
    CHECK(block.bytes == counted);
    CHECK(memory.stats().current == counted);
    memory.release(block);
  }
  CHECK(memory.stats().peak == 1024);
}

TEST_CASE("allocator: poisoned memory is not a number where it is used again either, then whole") {
  Allocator memory(kCpu);
  const auto first = memory.allocate(256);
  std::fill_n(static_cast<float*>(first.data), 64, 1.0f);
  memory.release(first);
  memory.set_poison(true);
  const auto again = memory.allocate(256);
  REQUIRE(again.data == first.data);
  for (int i = 0; i < 64; ++i) CHECK(std::isnan(static_cast<float*>(again.data)[i]));
  memory.set_poison(false);
  std::fill_n(static_cast<float*>(again.data), 64, 1.0f);
  memory.release(again);
  const auto clean = memory.allocate(256);
  CHECK(static_cast<float*>(clean.data)[5] == 1.0f);
  memory.release(clean);
}

TEST_CASE("allocator: an owner is that of the innermost scope, and the outer one comes back") {
  CHECK(current_owner() == "other");
  {
    const OwnerScope outer("outer");
    {
      const OwnerScope inner("inner");
      CHECK(current_owner() == "inner");
    }
    CHECK(current_owner() == "outer");
  }
  CHECK(current_owner() == "other");
}
