#include "layers/selection.h"

#include "autograd/kernel_op.h"
#include "kernels/block_sparse/block_sparse.h"
#include "kernels/block_sparse/patterns.h"
#include "kernels/selection/block_means.h"

namespace weft::layers {

using namespace kernels;

Selection::Selection(const Spec& spec, const TomlTable& t, bool one_number)
    : block_(t.integer("block", kSize, 64)),
      top_k_(one_number ? t.integer("top_k", kSize, 8) : 1),
      softcap_(t.number("softcap", kCap, 0)) {
  constexpr int64_t kMost = 8192;  // blocks, for a mask has a column for each
  const int64_t n = block_count(spec.context, block_);
  if (n > kMost)
    t.refuse("block", "a context of ", spec.context, " has ", n, " blocks of ", block_,
             ", expected at most ", kMost, "; set a larger block");
}

Var Selection::means(const Var& x, const Context& c, const Tensor& held) const {
  return autograd::apply<BlockMeans>({x}, {block_, c.cu_seqlens, c.place, held}).y;
}

SelectBlocks Selection::options(const Context& c) const {
  SelectBlocks o;
  o.block = block_;
  o.top_k = top_k_;
  o.cu_seqlens = c.cu_seqlens;
  o.position = c.place;
  return o;
}

Var Selection::attend(const HeadProjections::Result& x, const Tensor& mask, bool by_block,
                      double scale, const Context& c) const {
  BlockSparse::Options o;
  o.block_mask = mask;
  o.block = block_;
  o.by_token = true;
  o.alike = by_block ? block_ : 1;
  o.scale = scale;
  o.softcap = softcap_;
  o.cu_seqlens = c.cu_seqlens;
  o.position = c.place;
  return autograd::apply<BlockSparse>({x.q, x.k, x.v}, o).o;
}

double Selection::keys_seen(int64_t T, int64_t blocks) const {
  double sum = 0;
  for (int64_t i = 0; i < T; ++i)
    sum += static_cast<double>(std::min(i / block_, blocks - 1) * block_ + i % block_ + 1);
  return sum / static_cast<double>(T);
}

}  // namespace weft::layers
