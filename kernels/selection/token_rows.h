// One query's list of keys, for the CPU and for kernels.
#pragma once

#include "kernels/selection/grid.h"
#include "kernels/selection/token_lists.h"

namespace weft::kernels::selection {

// A number in 0 .. n - 1 from a counter: three rounds of a multiply and a shift (SplitMix64).
constexpr uint64_t mixed(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// What of a call a row needs; pointers as BlockGrid has them.
struct TokenRows {
  TokenRule rule;
  BlockGrid grid;  // of blocks of one token
  int64_t start = 0, from = 0, heads = 1, key_heads = 1;

  struct At {
    int64_t document, i;  // the first token of the query's document, and its place in it
  };
  constexpr At at(int64_t t) const {
    if (grid.position != nullptr) return {0, *grid.position};
    if (grid.cu == nullptr) return {0, start + t};
    const int64_t first = grid.document(t).begin;
    return {first, t - first};
  }

  // Draw number n of the list of query i.
  constexpr int64_t drawn(int64_t head, int64_t i, int64_t n, int64_t below) const {
    uint64_t x = mixed(rule.seed);
    x = mixed(x ^ (rule.layer << 32 | static_cast<uint64_t>(head)));
    x = mixed(x ^ static_cast<uint64_t>(i));
    return static_cast<int64_t>(mixed(x ^ static_cast<uint64_t>(n)) % static_cast<uint64_t>(below));
  }

  // The position at place n of the list, or -1. `list` has those before it.
  constexpr int64_t key(int64_t head, int64_t i, int64_t n, const int32_t* list) const {
    if (rule.kind == TokenRule::every) return i - n * rule.step >= 0 ? i - n * rule.step : -1;
    if (rule.kind == TokenRule::leader) return i < rule.count && n <= i ? n : -1;
    if (rule.kind == TokenRule::first) {
      const int64_t back = i - n;
      if (back < 0) return -1;
      const bool seen =
          back % rule.step == 0 && (rule.window == 0 || back / rule.step < rule.window);
      return seen ? -1 : n;
    }
    if (n == 0) return i;
    if (i <= rule.count - 1) return n <= i ? n - 1 : -1;
    // Of the i positions before i one subset of count - 1 is as likely as another: Floyd's way.
    const int64_t last = i - (rule.count - 1) + n - 1, draw = drawn(head, i, n, last + 1);
    for (int64_t m = 1; m < n; ++m)
      if (list[m] == draw) return last;
    return draw;
  }

  // Row (b, t, head) of the lists.
  constexpr void find(int64_t row, int32_t* index, uint8_t* mask) const {
    const int64_t head = row % heads, t = row / heads % grid.T, b = row / heads / grid.T;
    const At q = at(t);
    int32_t* const to = index + row * rule.count;
    for (int64_t n = 0; n < rule.count; ++n) to[n] = static_cast<int32_t>(key(head, q.i, n, to));
    for (int64_t n = 0; n < rule.count; ++n) {
      const int64_t j = to[n] < 0 ? q.i : to[n];
      const int64_t token = grid.position != nullptr ? j % grid.S : j + q.document - from;
      const int64_t inside = token < 0 || token >= grid.S ? 0 : token;
      mask[row * rule.count + n] = to[n] >= 0 && inside == token;
      to[n] = static_cast<int32_t>((b * grid.S + inside) * key_heads + head / (heads / key_heads));
    }
  }
};

}  // namespace weft::kernels::selection
