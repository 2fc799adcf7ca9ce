// Mixture of block attention: each token of each head sees its own block up to itself, and those
// complete blocks before it whose mean key fits its query best; `top_k` counts the own one too. The
// choice has no gradient: queries and keys learn by the blocks that were chosen. Where a text has
// at most top_k blocks this is attention.
// With `lost` above 0 a token sees more blocks than top_k where that is needed, until no more than
// this part of what attention gives can be lost: the others are those that a bound from their mean
// key and their radius lets be left out.
// Source: arXiv:2502.13189.
#include "autograd/ops.h"
#include "autograd/watch.h"
#include "core/allocator.h"
#include "kernels/selection/select_mass.h"
#include "layers/selection.h"

namespace weft::layers {
namespace {

class Moba final : public Layer {
 public:
  Moba(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        selection_(spec, t),
        lost_(t.number("lost", {.least = 0, .most = 1, .below = true}, 0)) {
    if (lost_ > 0 && t.number("softcap", kCap, 0) > 0)
      t.refuse("softcap", "the bound on what is lost knows no soft cap; leave softcap or lost out");
  }

  Var forward(const Var& x, Context& c) const override {
    const auto all = heads_(x, c, /*window=*/0);
    return heads_.out(selection_.attend(all, chosen(all, c), /*by_block=*/false, heads_.scale(), c),
                      all.gate);
  }

  Ways ways() const override { return Ways::softmax; }
  double flops_per_token(int64_t T) const override {
    const double blocks = static_cast<double>(T) / static_cast<double>(2 * selection_.block());
    return (4 * selection_.keys_seen(T) + 2 * blocks) *
           static_cast<double>(heads_.H() * heads_.K());
  }

 private:
  Tensor chosen(const HeadProjections::Result& x, const Context& c) const {
    const autograd::NoGrad no_grad;
    const Tensor q = x.q.value();
    if (lost_ > 0) return bounded(x, c);
    return kernels::select_blocks(q, selection_.means(x.k.value(), c).value(), q.size(1),
                                  x.k.size(1), selection_.options(c));
  }

  // Whoever watches is told the bounds.
  Tensor bounded(const HeadProjections::Result& x, const Context& c) const {
    const Tensor q = x.q.value(), k = x.k.value(), means = selection_.means(x.k, c).value();
    kernels::SelectBlocks o = selection_.options(c);
    o.scale = heads_.factor();
    const auto chosen =
        kernels::select_mass(q, k, means, kernels::block_radius(k, means, o), o, lost_);
    if (const auto* see = autograd::watching())
      (*see)({"select_mass", current_owner(), {}, {{"bound", chosen.bound}}, {}});
    return chosen.mask;
  }

  HeadProjections heads_;
  Selection selection_;
  double lost_;
};

const RegisteredMixer registered{"moba", maker<Moba>()};

}  // namespace
}  // namespace weft::layers
