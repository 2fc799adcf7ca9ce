// Mixture of block attention: each token of each head sees its own block up to itself, and those
// complete blocks before it whose mean key fits its query best; `top_k` counts the own one too. The
// choice has no gradient: queries and keys learn by the blocks that were chosen. Where a text has
// at most top_k blocks this is attention.
// Source: arXiv:2502.13189.
#include "autograd/ops.h"
#include "layers/selection.h"

namespace weft::layers {
namespace {

class Moba final : public Layer {
 public:
  Moba(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b), selection_(spec, t) {}

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
    return kernels::select_blocks(q, selection_.means(x.k.value(), c).value(), q.size(1),
                                  x.k.size(1), selection_.options(c));
  }

  HeadProjections heads_;
  Selection selection_;
};

const RegisteredMixer registered{"moba", maker<Moba>()};

}  // namespace
}  // namespace weft::layers
