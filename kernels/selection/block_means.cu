// Block means on a GPU: a thread owns a column of a slot, and sums along the tokens of its block in
// order; backward, a number of x.
#include "core/cuda.cuh"
#include "kernels/selection/block_means.h"
#include "kernels/selection/grid.cuh"

namespace weft::kernels {
namespace {

using namespace selection;

constexpr int kThreads = 256;

// What a thread owns of [B, rows, H, K].
struct Item {
  int64_t b, row;
  int h, c;
  __device__ Item(int64_t i, int64_t rows, int H, int K)
      : b(i / K / H / rows),
        row(i / K / H % rows),
        h(static_cast<int>(i / K % H)),
        c(static_cast<int>(i % K)) {}
};

template <class Real>
__global__ void __launch_bounds__(kThreads) means(const BlockGrid grid, int64_t count, int H, int K,
                                                  const AnyHeads<const Real> x, Real* y) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const Item item(i, grid.slots(), H, K);
  const int64_t first = grid.first_token(item.row);
  float sum = 0;
  if (first >= 0)
    for (int64_t t = first; t < first + grid.block; ++t)
      sum += to_float(x.at(item.b, t, item.h, item.c));
  y[i] = from_float<Real>(sum / static_cast<float>(grid.block));
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    means_backward(const BlockGrid grid, int64_t count, int H, int K, const AnyHeads<const Real> dy,
                   Real* dx) {
  const int64_t i = thread_of_grid();
  if (i >= count) return;
  const Item item(i, grid.T, H, K);
  const int64_t slot = grid.slot_of(item.row);
  const float flow = slot < 0 ? 0.f : to_float(dy.at(item.b, slot, item.h, item.c));
  dx[i] = from_float<Real>(flow / static_cast<float>(grid.block));
}

}  // namespace

void BlockMeans::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                              Saved* saved) {
  const int64_t T = x.x.size(1), count = y.y.numel();
  const Tensor cu = borders_on(o.cu_seqlens, T, x.x.device());
  require(!o.position || !saved, name, ": position without a gradient alone");
  if (x.x.is_meta()) return;
  const BlockGrid grid = grid_on(T, T, o.block, o.cu_seqlens, cu, o.position);
  for_cuda_dtype(x.x.dtype(), [&]<class Real>() {
    launch(means<Real>, ceil_div(count, kThreads), kThreads, 0, grid, count,
           static_cast<int>(x.x.size(2)), static_cast<int>(x.x.size(3)), strided<const Real>(x.x),
           dptr<Real>(y.y));
  });
  check_launch("block_means forward");
}

void BlockMeans::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (!dx.x) return;
  const int64_t T = x.x.size(1), count = dx.x.numel();
  const Tensor cu = borders_on(o.cu_seqlens, T, x.x.device());
  if (x.x.is_meta()) return;
  const BlockGrid grid = grid_on(T, T, o.block, o.cu_seqlens, cu, {});
  for_cuda_dtype(x.x.dtype(), [&]<class Real>() {
    launch(means_backward<Real>, ceil_div(count, kThreads), kThreads, 0, grid, count,
           static_cast<int>(x.x.size(2)), static_cast<int>(x.x.size(3)), strided<const Real>(dy.y),
           dptr<Real>(dx.x));
  });
  check_launch("block_means backward");
}

}  // namespace weft::kernels
