#include "kernels/selection/token_lists.h"

#include <algorithm>

#include "core/parallel.h"
#include "kernels/selection/grid_cpu.h"
#include "kernels/selection/token_rows.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

using selection::TokenRows;

TokenRows rows_on_cpu(const TokenRule& rule, const TokenGrid& g, int64_t heads, int64_t key_heads) {
  return {rule,    selection::grid_on_cpu(g.T, g.S, 1, g.cu_seqlens, g.position),
          g.start, g.from,
          heads,   key_heads};
}

void check(const char* name, const TokenGrid& g) {
  check_documents(name, g.cu_seqlens, g.B, g.T);
  require(g.B >= 1 && g.T >= 1 && g.S >= 1 && (!g.cu_seqlens || (g.T == g.S && !g.position)) &&
              (!g.position || g.T == 1),
          name, ": ", g.B, " rows of ", g.T, " queries and ", g.S,
          " keys, expected as many with documents, and one query with a position");
}

}  // namespace

TokenLists token_lists(const TokenRule& rule, const TokenGrid& grid, int64_t heads,
                       int64_t key_heads, Device device) {
  check("token_lists", grid);
  require(rule.count >= 1 && rule.step >= 1 && rule.window >= 0 && key_heads >= 1 &&
              heads % key_heads == 0,
          "token_lists: count ", rule.count, ", step ", rule.step, ", window ", rule.window,
          ", heads ", heads, " of ", key_heads);
  const int64_t rows = grid.B * grid.T * heads;
  const TokenLists lists{empty({rows * rule.count}, Dtype::i32, device),
                         empty({rows, 1, 1, rule.count}, Dtype::u8, device)};
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_token_lists(rule, grid, heads, key_heads, lists);
    return lists;
  }
  if (device.is_meta()) return lists;
  const TokenRows of = rows_on_cpu(rule, grid, heads, key_heads);
  int32_t* const index = lists.index.data<int32_t>();
  uint8_t* const mask = lists.mask.data<uint8_t>();
  parallel_for(rows, [&](int64_t row) { of.find(row, index, mask); });
  return lists;
}

Tensor token_mask(const std::vector<TokenRule>& rules, const TokenGrid& grid, int64_t heads) {
  require(grid.B == 1, "token_mask: a batch of ", grid.B, ", expected 1");
  const Tensor mask = zeros({1, heads, grid.T, grid.S}, Dtype::u8);
  const View<uint8_t> to = view<uint8_t>(mask);
  for (const TokenRule& rule : rules) {
    const TokenLists lists = token_lists(rule, grid, heads, 1, kCpu);
    for (int64_t n = 0; n < lists.index.numel(); ++n)
      if (lists.mask.data<uint8_t>()[n])
        to(0, n / rule.count % heads, n / rule.count / heads, lists.index.data<int32_t>()[n]) = 1;
  }
  return mask;
}

Tensor leading_tokens(int64_t count, const TokenGrid& grid, Dtype dtype, Device device) {
  check("leading_tokens", grid);
  const Tensor there = empty({grid.B, grid.T}, dtype, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_leading_tokens(count, grid, there);
    return there;
  }
  if (device.is_meta()) return there;
  const TokenRows of = rows_on_cpu({}, grid, 1, 1);
  for_dtype(dtype, [&]<class Real>() {
    for (int64_t r = 0; r < there.numel(); ++r)
      there.data<Real>()[r] = Real(of.at(r % grid.T).i < count ? 1.f : 0.f);
  });
  return there;
}

Tensor at_most(const Tensor& position, int64_t most) {
  const Tensor result = empty({1}, Dtype::i32, position.device());
  if (position.device().takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_at_most(position, most, result);
    return result;
  }
  if (position.is_meta()) return result;
  result.data<int32_t>()[0] =
      static_cast<int32_t>(std::min<int64_t>(position.data<int32_t>()[0], most));
  return result;
}

ClassOrder class_order(const Tensor& cu_seqlens, int64_t T, int64_t step, Device device) {
  require(step >= 1, "class_order: step is ", step, ", expected 1 or more");
  check_documents("class_order", cu_seqlens, 1, T);
  // Where the CPU plans or computes, the borders count beside the rest.
  const bool own = !device.takes_cuda_forms();
  const Tensor host = empty({3 * T + 1}, Dtype::i32);
  int32_t *const order = host.data<int32_t>(), *const back = order + T, *const borders = back + T;
  std::fill_n(borders, T + 1, static_cast<int32_t>(T));
  const View<const int32_t> cu = view<const int32_t>(cu_seqlens);
  int64_t at = 0, count = 0;
  for (int64_t n = 0; n + 1 < cu.size(0); ++n)
    for (int64_t c = 0; c < std::min<int64_t>(step, cu(n + 1) - cu(n)); ++c) {
      borders[count++] = static_cast<int32_t>(at);
      for (int64_t t = cu(n) + c; t < cu(n + 1); t += step) {
        order[at] = static_cast<int32_t>(t);
        back[t] = static_cast<int32_t>(at++);
      }
    }
  const Tensor room = device.is_cpu()    ? host
                      : device.is_meta() ? empty({own ? 3 * T + 1 : 2 * T}, Dtype::i32, device)
                                         : host.slice(0, 0, 2 * T).to(device);
  return {room.slice(0, 0, T), room.slice(0, T, 2 * T), host.slice(0, 2 * T, 3 * T + 1)};
}

}  // namespace weft::kernels
