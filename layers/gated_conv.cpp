// A gated short convolution: the mixer of LFM2 where it does not attend.
//   b, c, x = in_proj u;   y = out_proj(c conv1d(b x))
// with a causal convolution of each channel over a few tokens and no activation. Its state is the
// last tokens that the convolution needs.
// Source: arXiv:2511.23404 (LFM2).
#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/sequence/short_conv.h"
#include "layers/blocks.h"

namespace weft::layers {
namespace {

class GatedConv final : public Layer {
 public:
  GatedConv(const Spec& spec, const TomlTable& t, const Builder& b)
      : D_(spec.heads_width()),
        taps_(t.integer("conv", kSize, 3)),
        bias_(t.boolean("bias", false)),
        in_(b.within("in_proj"), spec.width, 3 * D_, spec.init, bias_),
        weight_(b.parameter("conv1d.weight", {D_, taps_}, filter())),
        conv_bias_(bias_ ? b.parameter("conv1d.bias", {D_}, Init::constant(0)) : Var()),
        out_(b.within("out_proj"), D_, spec.width, spec.residual_init(), bias_) {}

  Var forward(const Var& u, Context& c) const override {
    const auto parts = autograd::split(in_(u), 2, {D_, D_, D_});
    kernels::ShortConv::Options o;
    o.silu = false;
    o.return_state = c.state != nullptr;
    o.cu_seqlens = c.cu_seqlens;
    const auto mixed = autograd::apply<kernels::ShortConv>(
        {autograd::multiply(parts[0], parts[2]), weight_, conv_bias_, remembered(c, "conv1d")}, o);
    remember(c, "conv1d", mixed.final_state);
    return out_(autograd::multiply(parts[1], mixed.y));
  }

  double flops_per_token(int64_t) const override { return 2 * static_cast<double>(D_); }

 private:
  // As torch starts it.
  Init filter() const {
    const double bound = 1 / std::sqrt(static_cast<double>(taps_));
    return Init::uniform(-bound, bound);
  }

  int64_t D_, taps_;
  bool bias_;
  Linear in_;
  Var weight_, conv_bias_;
  Linear out_;
};

const RegisteredMixer registered{"gated_conv", maker<GatedConv>()};

}  // namespace
}  // namespace weft::layers
