// Native sparse attention: three branches with the same queries, each weighed by a gate of the
// token and head,
//   y = g_c compressed + g_s selected + g_w window,   g = sigmoid(g_proj x)
//   compressed  over the mean key and value of each complete block that ends with the token or
//               before it
//   selected    over the tokens of `top_k` blocks: the first, the own one, those just before it,
//               and those to which the compressed branch gives the most, added up over the heads
//               that share keys
//   window      over the last `window` tokens
// The choice is constant for the gradient; queries and keys learn its scores by what the compressed
// branch gives. The softmaxes are three, not one that is cut in three. Blocks of compression are
// those of the choice, and a block is its mean; all branches have the same keys and values. So it
// is in fla's NativeSparseAttention, whose names the weights have. The paper also describes a
// learned compression of overlapping blocks, and keys and values of each branch.
// Source: arXiv:2502.11089.
#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/attention/attention.h"
#include "kernels/block_sparse/block_sparse.h"
#include "layers/selection.h"

namespace weft::layers {
namespace {

using autograd::apply;

class Nsa final : public Layer {
 public:
  Nsa(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        selection_(spec, t),
        first_(t.integer("first_blocks", kCount, 1)),
        recent_(t.integer("recent_blocks", kSize, 2)),
        window_(t.integer("window", kSize, 512)),
        softcap_(t.number("softcap", kCap, 0)),
        gates_(b.within("g_proj"), spec.width, 3 * heads_.H(), spec.init) {}

  Var forward(const Var& x, Context& c) const override {
    const auto own = heads_.of(x, c), all = heads_.behind_past(own, c, /*window=*/0);
    const auto gates =
        autograd::split(heads(activation(gates_(x), "sigmoid"), heads_.H()), 3, {1, 1, 1});
    const Var keys = selection_.means(all.k, c), values = selection_.means(all.v, c);
    const auto coarse = compressed(all, keys, values, c);
    const Var selected = selection_.attend(all, chosen(all, keys, coarse.lse, c),
                                           /*by_block=*/false, heads_.scale(), c);
    Var y = weighed(coarse.o, gates[0]);
    y = autograd::add(y, weighed(selected, gates[1]));
    y = autograd::add(y, weighed(window(own, c), gates[2]));
    return heads_.out(y, all.gate);
  }

  Ways ways() const override { return Ways::softmax; }
  double flops_per_token(int64_t T) const override {
    const double n = static_cast<double>(T), K = static_cast<double>(heads_.K());
    const double W = std::min(n, static_cast<double>(window_));
    const double blocks = n / static_cast<double>(2 * selection_.block());
    const double keys = selection_.keys_seen(T) + blocks + W - W * (W - 1) / (2 * n);
    return static_cast<double>(heads_.H()) * kernels::softmax_flops(keys, K, K).forward;
  }

 private:
  // A query sees a mean by its slot, whatever document it is of.
  kernels::Outputs<kernels::BlockSparse, Var> compressed(const HeadProjections::Result& x,
                                                         const Var& keys, const Var& values,
                                                         const Context& c) const {
    kernels::BlockSparse::Options o;
    o.block_mask =
        kernels::past_slots(x.q.size(1), x.k.size(1), selection_.options(c), x.q.value().device());
    o.block = 1;
    o.by_token = true;
    o.causal = false;
    o.scale = heads_.scale();
    return apply<kernels::BlockSparse>({x.q, keys, values}, o);
  }

  Tensor chosen(const HeadProjections::Result& x, const Var& keys, const Var& lse,
                const Context& c) const {
    kernels::SelectBlocks o = selection_.options(c);
    o.heads = x.k.size(2);
    o.first = first_;
    o.recent = recent_;
    o.lse = lse.value();
    o.scale = heads_.factor();
    const Tensor q = x.q.value();
    return kernels::select_blocks(q, keys.value(), q.size(1), x.k.size(1), o);
  }

  // Its keys have a cache of their own: a ring cannot hold both all tokens and a window of them.
  Var window(const HeadProjections::Result& own, const Context& c) const {
    Context inner = c;
    if (c.state) {
      c.state->parts.resize(1);
      inner.state = &c.state->parts[0];
    }
    const auto near = heads_.behind_past(own, inner, window_);
    kernels::Attention::Options o;
    o.scale = heads_.scale();
    o.window = c.place ? 0 : window_;
    o.position = c.place;
    o.softcap = softcap_;
    o.cu_seqlens = c.cu_seqlens;
    return apply<kernels::Attention>({near.q, near.k, near.v, {}}, o).o;
  }

  HeadProjections heads_;
  Selection selection_;
  int64_t first_, recent_, window_;
  double softcap_;
  Linear gates_;
};

const RegisteredMixer registered{"nsa", maker<Nsa>()};

}  // namespace
}  // namespace weft::layers
