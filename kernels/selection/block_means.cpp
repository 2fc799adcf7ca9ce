// A thread owns whole slots, or tokens; a sum runs along the tokens of its block in order.
#include "kernels/selection/block_means.h"

#include "core/parallel.h"
#include "kernels/selection/block_means_reference.h"
#include "kernels/selection/grid_cpu.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

using selection::BlockGrid;

const Registered<BlockMeans> registered;

BlockGrid grid_of(const Inputs<BlockMeans>& x, const BlockMeans::Options& o) {
  const int64_t T = x.x.size(1);
  return selection::grid_on_cpu(T, T, o.block, o.cu_seqlens, o.position);
}

}  // namespace

void BlockMeans::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 4, name, ": x has shape ", x.x.shape(), ", expected [B, T, H, K]");
  require(o.block >= 1, name, ": block is ", o.block, ", expected 1 or more");
  check_documents(name, o.cu_seqlens, x.x.size(0), x.x.size(1));
  if (!o.position) return;
  require(!o.cu_seqlens, name, ": position with cu_seqlens; a cache holds one document");
  require(o.position.dtype() == Dtype::i32 && o.position.numel() == 1 &&
              o.position.device() == x.x.device(),
          name, ": position is ", o.position.dtype(), " ", o.position.shape(), " on ",
          o.position.device(), ", expected i32 [1] as x");
}

Outputs<BlockMeans> BlockMeans::outputs(const Inputs<Tensor>& x, const Options& o) {
  const int64_t slots = (x.x.size(1) + o.block - 1) / o.block;
  return {empty({x.x.size(0), slots, x.x.size(2), x.x.size(3)}, x.x.dtype(), x.x.device())};
}

void BlockMeans::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                             Saved* saved) {
  require(!o.position || !saved, name, ": position without a gradient alone");
  if (x.x.is_meta()) return;
  const BlockGrid grid = grid_of(x, o);
  for_real(x.x.dtype(), [&]<class Real>() {
    const View<const Real> in = view<const Real>(x.x);
    const View<Real> out = view<Real>(y.y);
    const int64_t slots = out.size(1), K = in.size(3);
    parallel_for(in.size(0) * slots, [&](int64_t unit) {
      const int64_t b = unit / slots, slot = unit % slots, first = grid.first_token(slot);
      for (int64_t h = 0; h < in.size(2); ++h) {
        Real* const to = out.at(b, slot, h, 0);
        std::fill_n(to, K, Real(0));
        for (int64_t t = first; first >= 0 && t < first + o.block; ++t)
          for (int64_t c = 0; c < K; ++c) to[c] += in(b, t, h, c);
        for (int64_t c = 0; c < K; ++c) to[c] /= static_cast<Real>(o.block);
      }
    });
  });
}

void BlockMeans::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (x.x.is_meta() || !dx.x) return;
  const BlockGrid grid = grid_of(x, o);
  for_real(x.x.dtype(), [&]<class Real>() {
    const View<const Real> flow = view<const Real>(dy.y);
    const View<Real> out = view<Real>(dx.x);
    const int64_t T = out.size(1);
    parallel_for(out.size(0) * T, [&](int64_t unit) {
      const int64_t b = unit / T, t = unit % T, slot = grid.slot_of(t);
      for (int64_t h = 0; h < out.size(2); ++h)
        for (int64_t c = 0; c < out.size(3); ++c)
          out(b, t, h, c) = slot < 0 ? Real(0) : flow(b, slot, h, c) / static_cast<Real>(o.block);
    });
  });
}

}  // namespace weft::kernels
