// Simple GLA: linear attention whose state forgets by one learned gate per head. Weights and wiring
// as in fla's SimpleGatedLinearAttention. Source: arXiv:2312.06635 (GLA, whose gate it takes per
// head).
#include "kernels/linear/linear.h"

#include "autograd/ops.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

// A gate per head and token: g = logsigmoid(gk_proj x) / 16; convolutions before q, k and v.
class SimpleGla final : public Layer {
 public:
  SimpleGla(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 1)),
        mixed_(b, spec, size_, t.integer("conv", kCount, 4)),
        gk_(b.within("gk_proj"), spec.width, size_.H, spec.init, /*bias=*/true),
        g_(b.within("g_proj"), spec.width, size_.H * size_.V, spec.init,
           t.boolean("gate_bias", false)),
        norm_(b.within("g_norm_swish_gate"), size_.V, t.number("norm_eps", kEpsilon, 1e-5)),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {}

  Var forward(const Var& x, Context& c) const override {
    const auto [q, k, v] = mixed_(x, c);
    const Var g = autograd::scale(activation(wide(gk_(x)), "logsigmoid"), 1 / kGateTemperature);
    const Var y = recurrence<kernels::Linear>({.q = q, .k = k, .v = v, .g = g}, {}, c);
    return o_(merged(norm_(y, heads(g_(x), size_.H))));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::Linear>(); }

 private:
  HeadSizes size_;
  MixedQkv mixed_;
  Linear gk_, g_;
  GatedNorm norm_;
  Linear o_;
};

const RegisteredMixer simple_gla{"simple_gla", maker<SimpleGla>()};

}  // namespace
}  // namespace weft::layers
