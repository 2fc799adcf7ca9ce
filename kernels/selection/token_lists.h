// Which keys a query sees of a pattern that is exact to the token: a list of them for each query.
// No gradient. Attention over the listed rows costs what is seen; where a pattern is a plain window
// of every `step`-th token, `class_order` costs less memory.
//
// A query at position i of its sequence or document, head h, has `count` places on its list:
//   every   i, i - step, i - 2 step, ...
//   first   the positions 0 .. count - 1, but for those that a band sees: of every `step`-th token
//           back, `window` of them, or all where that is 0
//   leader  the same positions, without such a band, where i itself is one of them; else none
//   random  i, and count - 1 others before it, or all where there are fewer
// A random list is drawn from (seed, layer, h, i), by a function that a GPU computes too: it
// belongs to the model, and no length of a text changes it.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace weft::kernels {

struct TokenRule {
  enum Kind : int32_t { every, first, leader, random };
  Kind kind = every;
  int64_t count = 1, step = 1, window = 0;
  uint64_t seed = 1, layer = 0;
};

// Where queries and keys stand.
struct TokenGrid {
  int64_t B = 1, T = 1, S = 1;
  int64_t start = 0;  // position of the first query; with documents each counts from its own
  int64_t from = 0;   // position of the first key
  Tensor cu_seqlens;  // i32 [N + 1] on the CPU; then B = 1 and S = T
  Tensor position;    // i32 [1] where the lists go: of the only query, and key j in row j % S
};

struct TokenLists {
  Tensor index;  // i32 [B * T * heads * count], rows of keys [B * S * key_heads]; any if not seen
  Tensor mask;   // u8 [B * T * heads, 1, 1, count], 1 where the place holds a key that is seen
};
// heads: 1, and key_heads 1, where all heads have the same list; else query head h reads key head
// h / (heads / key_heads).
TokenLists token_lists(const TokenRule& rule, const TokenGrid& grid, int64_t heads,
                       int64_t key_heads, Device device);

// u8 [1, heads, T, S] on the CPU: what the lists of several rules have together, for one row of a
// batch. For pictures; it takes a byte a pair, seen or not.
Tensor token_mask(const std::vector<TokenRule>& rules, const TokenGrid& grid, int64_t heads);

// [B, T] of `dtype`: 1 where a query stands among the first `count` positions, else 0.
Tensor leading_tokens(int64_t count, const TokenGrid& grid, Dtype dtype, Device device);

// i32 [1] where `position` lies: that, or `most` where it is more.
Tensor at_most(const Tensor& position, int64_t most);

// The tokens of packed documents by their place modulo `step`, each class one behind the other:
// what sees every step-th token back sees its neighbours there. `order` and `back`, i32 [T], are
// rows of the old and of the new order; `borders`, i32 [T + 1] on the CPU, are those of the
// classes, as cu_seqlens has them.
struct ClassOrder {
  Tensor order, back, borders;
};
ClassOrder class_order(const Tensor& cu_seqlens, int64_t T, int64_t step, Device device);

// The same on a GPU, where those above come to. In builds that have CUDA. The last arguments are
// written.
void cuda_token_lists(const TokenRule& rule, const TokenGrid& grid, int64_t heads,
                      int64_t key_heads, const TokenLists& lists);
void cuda_leading_tokens(int64_t count, const TokenGrid& grid, const Tensor& there);
void cuda_at_most(const Tensor& position, int64_t most, const Tensor& result);

}  // namespace weft::kernels
