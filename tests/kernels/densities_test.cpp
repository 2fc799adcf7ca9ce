// Patterns of documents, against the definition written out: which opening speaks for a row, what
// each pattern sees, and the mask of what was chosen.
#include "kernels/selection/densities.h"

#include <set>

#include "core/device.h"
#include "kernels/selection/block_means.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

struct Text {
  int64_t B, T, block, opening;
  std::vector<int32_t> borders;  // empty: rows are whole
};

const std::vector<Text> kTexts = {{2, 37, 4, 8, {}},
                                  {1, 37, 5, 5, {}},
                                  {1, 37, 4, 12, {0, 12, 13, 30, 37}},
                                  {1, 40, 3, 6, {0, 6, 12, 19, 19, 40}}};
const Densities kDensities{{0, 1, 3, 9}, 1};

SelectBlocks options_of(const Text& x) {
  SelectBlocks o;
  o.block = x.block;
  if (!x.borders.empty()) o.cu_seqlens = tensor_of(x.borders);
  return o;
}

int64_t start_of(const Text& x, int64_t t) {
  int64_t start = 0;
  for (const int32_t b : x.borders)
    if (b <= t) start = b;
  return start;
}

// Blocks that a query with `own` blocks before its own sees.
std::set<int64_t> blocks_of(int64_t n, int64_t first, int64_t own) {
  std::set<int64_t> seen;
  if (n > 0) seen.insert(own);
  for (int64_t c = 0; c < first && c < own && std::ssize(seen) < n; ++c) seen.insert(c);
  for (int64_t c = own - 1; c >= 0 && std::ssize(seen) < n; --c) seen.insert(c);
  return seen;
}

Tensor patterns_of(int64_t rows) {
  const Tensor pattern = empty({rows}, Dtype::i32);
  for (int64_t i = 0; i < rows; ++i)
    pattern.data<int32_t>()[i] = static_cast<int32_t>(i * 7 / 3 % 4);
  return pattern;
}

}  // namespace

TEST_CASE("densities: a row behind an opening finds the mean of its own document's opening") {
  for (const Text& x : kTexts) {
    const int64_t slots = (x.T + x.opening - 1) / x.opening;
    const auto owner =
        to_ints(opening_owners(x.B, x.T, x.T, x.opening, slots, options_of(x), kCpu));
    Inputs<BlockMeans> in{empty({x.B, x.T, 1, 1}, Dtype::f64)};
    for (int64_t i = 0; i < x.B * x.T; ++i) in.x.data<double>()[i] = static_cast<double>(i * i);
    BlockMeans::Options o;
    o.block = x.opening;
    o.cu_seqlens = options_of(x).cu_seqlens;
    auto means = BlockMeans::outputs(in, o);
    BlockMeans::cpu_forward(in, o, means, nullptr);
    for (int64_t i = 0; i < x.B * x.T; ++i) {
      const int64_t start = start_of(x, i % x.T), found = owner[static_cast<size_t>(i)];
      CHECK((found == 0) == (i % x.T - start < x.opening));
      if (found == 0) continue;
      double sum = 0;
      for (int64_t t = start; t < start + x.opening; ++t)
        sum += static_cast<double>((i / x.T * x.T + t) * (i / x.T * x.T + t));
      CHECK(means.y.data<double>()[found - 1] == Approx(sum / static_cast<double>(x.opening)));
    }
  }
}

TEST_CASE("densities: of a text in parts, the one opening speaks behind its end") {
  SelectBlocks o;
  o.block = 4;
  CHECK(to_ints(opening_owners(2, 4, 10, 8, 1, o, kCpu)) ==
        std::vector<int64_t>{0, 0, 1, 1, 0, 0, 2, 2});
  for (const int32_t at : {0, 7, 8, 15}) {
    o.position = tensor_of<int32_t>({at});
    CHECK(to_ints(opening_owners(1, 1, 16, 8, 1, o, kCpu)) == std::vector<int64_t>{at >= 8});
  }
}

TEST_CASE("densities: parts are keys over the mean of what attention sees") {
  for (const Text& x : kTexts) {
    const Tensor parts = density_parts(x.B, x.T, kDensities, options_of(x), Dtype::f64, kCpu);
    double all = 0;
    for (int64_t t = 0; t < x.T; ++t) all += static_cast<double>(t - start_of(x, t) + 1);
    for (int64_t i = 0; i < x.B * x.T; ++i)
      for (size_t k = 0; k < 4; ++k) {
        const int64_t at = i % x.T - start_of(x, i % x.T), own = at / x.block;
        double keys = 0;
        for (const int64_t c : blocks_of(kDensities.blocks[k], 1, own))
          keys += static_cast<double>(c == own ? at % x.block + 1 : x.block);
        CHECK(view<const double>(parts)(i, static_cast<int64_t>(k)) ==
              Approx(keys * static_cast<double>(x.T) / all));
      }
  }
}

TEST_CASE("densities: a mask has the own block, the first ones and the nearest") {
  for (const Text& x : kTexts)
    for (const int64_t first : {0, 1, 2, 50}) {
      const int64_t slots = (x.T + x.block - 1) / x.block;
      const Densities d{kDensities.blocks, first};
      const Tensor mask = full({x.B, 2, x.T, slots}, 7, Dtype::u8),
                   pattern = patterns_of(x.B * x.T);
      take_densities(mask, pattern, x.T, d, options_of(x));
      for (int64_t b = 0; b < x.B; ++b)
        for (int64_t h = 0; h < 2; ++h)
          for (int64_t t = 0; t < x.T; ++t) {
            const int64_t own = (t - start_of(x, t)) / x.block;
            const auto k = static_cast<size_t>(pattern.data<int32_t>()[b * x.T + t]);
            const std::set<int64_t> seen = blocks_of(d.blocks[k], first, own);
            for (int64_t c = 0; c < slots; ++c)
              CHECK(int{view<uint8_t>(mask)(b, h, t, c)} == static_cast<int>(seen.count(c)));
          }
    }
  SelectBlocks o;  // of a query in a cache, at its position
  o.block = 4;
  o.position = tensor_of<int32_t>({9});
  const Tensor mask = full({1, 1, 1, 4}, 7, Dtype::u8);
  take_densities(mask, tensor_of<int32_t>({1}), 16, kDensities, o);
  CHECK(to_ints(mask) == std::vector<int64_t>{0, 0, 1, 0});
}

TEST_CASE("densities: sizes that do not go together are named, and memory is that of shapes") {
  SelectBlocks o;
  o.block = 4;
  CHECK(opening_owners(2, 37, 37, 8, 5, o, kMeta).shape() == Shape{74});
  CHECK(density_parts(2, 37, kDensities, o, Dtype::f32, kMeta).shape() == Shape{74, 4});
  CHECK_THROWS_WITH(density_parts(1, 8, {{}, 0}, o, Dtype::f64, kCpu),
                    ContainsSubstring("0 patterns, expected 1 to 16"));
  CHECK_THROWS_WITH(
      take_densities(full({1, 1, 5, 2}, 0, Dtype::u8), patterns_of(4), 5, kDensities, o),
      ContainsSubstring("pattern is i32") && ContainsSubstring("expected i32 [5]"));
  CHECK_THROWS_WITH(
      opening_owners(2, 5, 5, 4, 2, {.block = 4, .cu_seqlens = tensor_of<int32_t>({0, 5})}, kCpu),
      ContainsSubstring("opening_owners") && ContainsSubstring("one row"));
}

TEST_CASE("cuda densities: all are those of the CPU", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Text& x : kTexts) {
    const SelectBlocks o = options_of(x);
    const auto equal = [](const Tensor& a, const Tensor& b) {
      CHECK(to_doubles(a.to(kCpu)) == to_doubles(b));
    };
    const int64_t slots = (x.T + x.opening - 1) / x.opening;
    equal(opening_owners(x.B, x.T, x.T, x.opening, slots, o, kCuda),
          opening_owners(x.B, x.T, x.T, x.opening, slots, o, kCpu));
    equal(density_parts(x.B, x.T, kDensities, o, Dtype::f32, kCuda),
          density_parts(x.B, x.T, kDensities, o, Dtype::f32, kCpu));
    const Tensor mask = full({x.B, 2, x.T, (x.T + x.block - 1) / x.block}, 7, Dtype::u8);
    const Tensor there = mask.to(kCuda), pattern = patterns_of(x.B * x.T);
    take_densities(mask, pattern, x.T, kDensities, o);
    take_densities(there, pattern.to(kCuda), x.T, kDensities, o);
    equal(there, mask);
  }
}
