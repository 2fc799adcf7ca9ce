// Lists of tokens on a GPU: a thread for each query and head.
#include "kernels/selection/grid.cuh"
#include "kernels/selection/token_lists.h"
#include "kernels/selection/token_rows.h"

namespace weft::kernels {
namespace {

using namespace selection;

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    find_lists(const TokenRows rows, int64_t count, int32_t* index, uint8_t* mask) {
  const int64_t row = thread_of_grid();
  if (row < count) rows.find(row, index, mask);
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    find_leading(const TokenRows rows, int64_t count, int64_t leading, E* there) {
  const int64_t r = thread_of_grid();
  if (r < count) there[r] = E(rows.at(r % rows.grid.T).i < leading ? 1.f : 0.f);
}

__global__ void bound(const int32_t* position, int64_t most, int32_t* result) {
  *result = static_cast<int32_t>(min(int64_t{*position}, most));
}

TokenRows rows_on(const TokenRule& rule, const TokenGrid& g, const Tensor& cu, int64_t heads,
                  int64_t key_heads) {
  return {rule,     grid_on(g.T, g.S, 1, g.cu_seqlens, cu, g.position), g.start, g.from, heads,
          key_heads};
}

}  // namespace

void cuda_token_lists(const TokenRule& rule, const TokenGrid& grid, int64_t heads,
                      int64_t key_heads, const TokenLists& lists) {
  const Tensor cu = borders_on(grid.cu_seqlens, grid.T, lists.index.device());
  if (lists.index.is_meta()) return;
  const int64_t rows = lists.mask.size(0);
  launch(find_lists, ceil_div(rows, kThreads), kThreads, 0,
         rows_on(rule, grid, cu, heads, key_heads), rows, dptr<int32_t>(lists.index),
         dptr<uint8_t>(lists.mask));
  check_launch("token_lists");
}

void cuda_leading_tokens(int64_t count, const TokenGrid& grid, const Tensor& there) {
  const Tensor cu = borders_on(grid.cu_seqlens, grid.T, there.device());
  if (there.is_meta()) return;
  for_cuda_dtype(there.dtype(), [&]<class E>() {
    launch(find_leading<E>, ceil_div(there.numel(), kThreads), kThreads, 0,
           rows_on({}, grid, cu, 1, 1), there.numel(), count, dptr<E>(there));
  });
  check_launch("leading_tokens");
}

void cuda_at_most(const Tensor& position, int64_t most, const Tensor& result) {
  if (result.is_meta()) return;
  launch(bound, 1, 1, 0, dptr<const int32_t>(position), most, dptr<int32_t>(result));
  check_launch("at_most");
}

}  // namespace weft::kernels
