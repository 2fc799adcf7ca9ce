#include "kernels/block_sparse/patterns.h"

#include <algorithm>

#include "core/random.h"

namespace weft::kernels {
namespace {

// sees(row, column) on the triangle of one head.
template <class F>
Tensor causal_mask(int64_t n, const F& sees) {
  require(n >= 0, "a block mask has ", n, " rows");
  const Tensor mask = zeros({1, n, n}, Dtype::u8);
  const View<uint8_t> m = view<uint8_t>(mask);
  for (int64_t a = 0; a < n; ++a)
    for (int64_t c = 0; c <= a; ++c) m(0, a, c) = sees(a, c) ? 1 : 0;
  return mask;
}

void require_positive(const char* pattern, const char* what, int64_t value) {
  require(value >= 1, pattern, ": ", what, " is ", value, ", expected 1 or more");
}

}  // namespace

Tensor window_blocks(int64_t n, int64_t width) {
  require_positive("window_blocks", "width", width);
  return causal_mask(n, [&](int64_t a, int64_t c) { return a - c < width; });
}

Tensor dilated_blocks(int64_t n, int64_t width, int64_t step) {
  require_positive("dilated_blocks", "width", width);
  require_positive("dilated_blocks", "step", step);
  return causal_mask(
      n, [&](int64_t a, int64_t c) { return (a - c) % step == 0 && (a - c) / step < width; });
}

Tensor strided_blocks(int64_t n, int64_t step) {
  require_positive("strided_blocks", "step", step);
  return causal_mask(n, [&](int64_t a, int64_t c) { return (a - c) % step == 0; });
}

Tensor global_blocks(int64_t n, int64_t count) {
  return causal_mask(n, [&](int64_t, int64_t c) { return c < count; });
}

Tensor random_blocks(const Tensor& taken, int64_t heads, int64_t count, uint64_t seed,
                     int64_t layer) {
  require(taken.dims() == 3 && (taken.size(0) == 1 || taken.size(0) == heads),
          "random_blocks: ", "taken has shape ", taken.shape(), ", expected [1 or ", heads,
          ", n, n]");
  const int64_t n = taken.size(1);
  const Tensor mask = zeros({heads, n, n}, Dtype::u8);
  const View<uint8_t> m = view<uint8_t>(mask), has = view<uint8_t>(taken);
  std::vector<int64_t> free;
  for (int64_t h = 0; h < heads; ++h) {
    const Random random(seed, stream_of(concat("random blocks of layer ", layer, " head ", h)));
    for (int64_t a = 0; a < n; ++a) {
      free.clear();
      for (int64_t c = 0; c <= a; ++c)
        if (!has(taken.size(0) == 1 ? 0 : h, a, c)) free.push_back(c);
      const int64_t draws = std::min(count, static_cast<int64_t>(free.size()));
      for (int64_t i = 0; i < draws; ++i) {
        const uint64_t left = free.size() - static_cast<uint64_t>(i);
        const uint64_t index = static_cast<uint64_t>(a) << 32 | static_cast<uint64_t>(i);
        std::swap(free[static_cast<size_t>(i)],
                  free[static_cast<size_t>(i) + random.below(left, index)]);
        m(h, a, free[static_cast<size_t>(i)]) = 1;
      }
    }
  }
  return mask;
}

Tensor united(const std::vector<Tensor>& masks) {
  require(!masks.empty(), "united: no masks");
  const int64_t n = masks[0].size(1);
  int64_t heads = 1;
  for (const Tensor& m : masks) {
    require(m.dims() == 3 && m.size(1) == n && m.size(2) == n, "united: a mask has shape ",
            m.shape(), ", expected [heads, ", n, ", ", n, "]");
    require(heads == 1 || m.size(0) == 1 || m.size(0) == heads, "united: masks of ", heads,
            " and of ", m.size(0), " heads");
    heads = std::max(heads, m.size(0));
  }
  const Tensor sum = zeros({heads, n, n}, Dtype::u8);
  const View<uint8_t> s = view<uint8_t>(sum);
  for (const Tensor& mask : masks) {
    const View<uint8_t> m = view<uint8_t>(mask);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t a = 0; a < n; ++a)
        for (int64_t c = 0; c < n; ++c) s(h, a, c) |= m(mask.size(0) == 1 ? 0 : h, a, c) ? 1 : 0;
  }
  return sum;
}

Tensor longformer_blocks(int64_t n, int64_t width, int64_t global) {
  return united({window_blocks(n, width), global_blocks(n, global)});
}

Tensor bigbird_blocks(int64_t heads, int64_t n, int64_t random, uint64_t seed, int64_t layer) {
  const Tensor fixed = united({window_blocks(n, 3), global_blocks(n, 1)});
  return united({fixed, random_blocks(fixed, heads, random, seed, layer)});
}

double causal_pairs(const Tensor& mask, int64_t head, int64_t block, int64_t T) {
  const View<uint8_t> m = view<uint8_t>(mask);
  int64_t pairs = 0;
  for (int64_t t = 0; t < T; ++t)
    for (int64_t c = 0; c <= t / block; ++c)
      if (m(head, t / block, c)) pairs += std::min(t + 1, (c + 1) * block) - c * block;
  return static_cast<double>(pairs);
}

}  // namespace weft::kernels
