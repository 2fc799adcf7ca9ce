// Routes of blocks, against the definition written out: which row speaks for a block, what each
// route sees, and the mask of a choice.
#include "kernels/selection/block_routes.h"

#include <algorithm>

#include "core/device.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

struct Text {
  int64_t B, T, block;
  std::vector<int32_t> borders;  // of packed documents, or none
};
const std::vector<Text> kTexts = {{2, 37, 4, {}},
                                  {1, 1, 4, {}},
                                  {3, 5, 8, {}},
                                  {2, 6, 1, {}},
                                  {1, 40, 4, {0, 1, 3, 20, 23, 40, 40}}};

SelectBlocks options_of(const Text& x) {
  SelectBlocks o;
  o.block = x.block;
  o.top_k = 3;
  if (!x.borders.empty()) o.cu_seqlens = tensor_of(x.borders);
  return o;
}

// Where token t's document begins.
int64_t start_of(const Text& x, int64_t t) {
  int64_t start = 0;
  for (const int32_t b : x.borders)
    if (b <= t) start = b;
  return start;
}
int64_t lead_of(const Text& x, int64_t t) { return t - (t - start_of(x, t)) % x.block; }

Tensor routes_of(int64_t rows) {
  const Tensor route = empty({rows}, Dtype::i32);
  for (int64_t i = 0; i < rows; ++i) route.data<int32_t>()[i] = static_cast<int32_t>(i * 7 / 3 % 4);
  return route;
}

Tensor filled(const Shape& shape) { return full(shape, 7, Dtype::u8); }

}  // namespace

TEST_CASE("block routes: the first token of a block speaks for it, in every document") {
  for (const Text& x : kTexts) {
    const SelectBlocks o = options_of(x);
    const int64_t slots = (x.T + x.block - 1) / x.block;
    const auto leads = to_ints(block_leads(x.B, x.T, x.T, false, o, kCpu));
    const auto places = to_ints(block_slots(x.B, x.T, o, kCpu));
    for (int64_t i = 0; i < x.B * x.T; ++i) {
      const int64_t lead = lead_of(x, i % x.T);
      CHECK(leads[static_cast<size_t>(i)] == i / x.T * x.T + lead);
      CHECK(places[static_cast<size_t>(i)] == i / x.T * slots + lead / x.block);
    }
  }
}

TEST_CASE("block routes: of a text in parts, the row that the last call left speaks at first") {
  SelectBlocks o;
  o.block = 4;
  CHECK(to_ints(block_leads(2, 7, 13, true, o, kCpu)) ==  // positions 6 .. 12 of blocks 1, 2, 3
        std::vector<int64_t>{0, 0, 3, 3, 3, 3, 7, 8, 8, 11, 11, 11, 11, 15});
  CHECK(to_ints(block_leads(1, 5, 5, true, o, kCpu)) == std::vector<int64_t>{1, 1, 1, 1, 5});
  for (const int32_t at : {0, 1, 3, 4, 9, 12}) {
    o.position = tensor_of<int32_t>({at});
    CHECK(to_ints(block_leads(2, 1, 16, true, o, kCpu)) ==
          (at % 4 == 0 ? std::vector<int64_t>{1, 3} : std::vector<int64_t>{0, 2}));
  }
  CHECK_THROWS_WITH(block_leads(1, 1, 16, false, o, kCpu),
                    ContainsSubstring("without the row that the call before left"));
}

TEST_CASE("block routes: the part of its past that a query sees by each route") {
  for (const Text& x : kTexts) {
    const Tensor parts = route_parts(x.B, x.T, /*window=*/2, options_of(x), Dtype::f64, kCpu);
    for (int64_t i = 0; i < x.B * x.T; ++i) {
      const int64_t at = i % x.T - start_of(x, i % x.T);
      const auto seen = [&](int64_t blocks) {
        const int64_t first = std::max<int64_t>(0, (at / x.block + 1 - blocks) * x.block);
        return static_cast<double>(at + 1 - first) / static_cast<double>(at + 1);
      };
      CHECK(to_doubles(parts.select(0, i)) == std::vector<double>{0, seen(2), seen(3), 1});
    }
  }
}

TEST_CASE("block routes: the mask of a choice has its blocks, and selected ones as they were") {
  for (const Text& x : kTexts) {
    const int64_t slots = (x.T + x.block - 1) / x.block;
    const Tensor mask = filled({x.B, 2, x.T, slots}), route = routes_of(x.B * x.T);
    take_routes(mask, route, x.T, /*window=*/2, options_of(x));
    for (int64_t b = 0; b < x.B; ++b)
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t t = 0; t < x.T; ++t) {
          const int64_t own = (t - start_of(x, t)) / x.block;
          const int32_t chosen = route.data<int32_t>()[b * x.T + t];
          for (int64_t c = 0; c < slots; ++c) {
            const bool past = c <= own;
            const int wanted = chosen == kSelectedRoute ? 7
                               : chosen == kWindowRoute ? past && own - c < 2
                               : chosen == kFullRoute   ? past
                                                        : 0;
            CHECK(int{view<uint8_t>(mask)(b, h, t, c)} == wanted);
          }
        }
  }
  // A query of a text that came in parts stands at the end; in a cache it stands at its position.
  SelectBlocks o;
  o.block = 4;
  const Tensor mask = filled({1, 1, 1, 4}), route = tensor_of<int32_t>({kWindowRoute});
  take_routes(mask, route, 14, 2, o);
  CHECK(to_ints(mask) == std::vector<int64_t>{0, 0, 1, 1});
  o.position = tensor_of<int32_t>({6});
  take_routes(mask, route, 16, 2, o);
  CHECK(to_ints(mask) == std::vector<int64_t>{1, 1, 0, 0});
}

TEST_CASE("block routes: columns are numbered, and memory is that of shapes") {
  CHECK(to_ints(column_numbers(2, 3, kCpu)) == std::vector<int64_t>{0, 1, 2, 0, 1, 2});
  const SelectBlocks o = options_of(kTexts[0]);
  CHECK(block_leads(2, 37, 37, false, o, kMeta).shape() == Shape{74});
  CHECK(block_slots(2, 37, o, kMeta).shape() == Shape{74});
  CHECK(route_parts(2, 37, 2, o, Dtype::f32, kMeta).shape() == Shape{74, kRoutes});
  CHECK(column_numbers(5, 4, kMeta).shape() == Shape{5, 4});
}

TEST_CASE("block routes: sizes that do not go together are named") {
  SelectBlocks o;
  o.block = 4;
  CHECK_THROWS_WITH(block_slots(2, 5, {.block = 4, .cu_seqlens = tensor_of<int32_t>({0, 5})}, kCpu),
                    ContainsSubstring("block_slots") && ContainsSubstring("one row"));
  CHECK_THROWS_WITH(take_routes(filled({1, 1, 5, 2}), routes_of(4), 5, 2, o),
                    ContainsSubstring("route is i32") && ContainsSubstring("expected i32 [5]"));
}

TEST_CASE("cuda block routes: all are those of the CPU", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Text& x : kTexts) {
    const SelectBlocks o = options_of(x);
    const auto equal = [](const Tensor& a, const Tensor& b) {
      CHECK(to_doubles(a.to(kCpu)) == to_doubles(b));
    };
    equal(block_leads(x.B, x.T, x.T, false, o, kCuda), block_leads(x.B, x.T, x.T, false, o, kCpu));
    equal(block_slots(x.B, x.T, o, kCuda), block_slots(x.B, x.T, o, kCpu));
    equal(route_parts(x.B, x.T, 2, o, Dtype::f32, kCuda),
          route_parts(x.B, x.T, 2, o, Dtype::f32, kCpu));
    equal(column_numbers(x.T, 4, kCuda), column_numbers(x.T, 4, kCpu));
    const Tensor mask = filled({x.B, 2, x.T, (x.T + x.block - 1) / x.block});
    const Tensor there = mask.to(kCuda), route = routes_of(x.B * x.T);
    take_routes(mask, route, x.T, 2, o);
    take_routes(there, route.to(kCuda), x.T, 2, o);
    equal(there, mask);
  }
}
