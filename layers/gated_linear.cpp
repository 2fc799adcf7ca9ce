// Gated linear attention: the state forgets per key channel, by a gate of low rank.
//   g = logsigmoid(gk_proj.1(gk_proj.0 x)) / 16,   y = o_proj(norm(o) silu(g_proj x))
// Weights and wiring as in fla's GatedLinearAttention. Source: arXiv:2312.06635.
#include "kernels/gated_linear/gated_linear.h"

#include "autograd/ops.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

class Gla final : public Layer {
 public:
  Gla(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 0.5, 1)),
        q_(b.within("q_proj"), spec.width, size_.Hk * size_.K, spec.init),
        k_(b.within("k_proj"), spec.width, size_.Hk * size_.K, spec.init),
        v_(b.within("v_proj"), spec.width, size_.H * size_.V, spec.init),
        g_(b.within("g_proj"), spec.width, size_.H * size_.V, spec.init),
        rank_(t.integer("gate_rank", kSize, 16)),
        gk0_(b.within("gk_proj.0"), spec.width, rank_, spec.init),
        gk1_(b.within("gk_proj.1"), rank_, size_.H * size_.K, spec.init, /*bias=*/true),
        norm_(b.within("g_norm_swish_gate"), size_.V, 1e-5),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {}

  Var forward(const Var& x, Context& c) const override {
    const Var gate = activation(wide(gk1_(gk0_(x))), "logsigmoid");
    kernels::Inputs<kernels::GatedLinear, Var> in;
    in.q = heads(q_(x), size_.Hk);
    in.k = heads(k_(x), size_.Hk);
    in.v = heads(v_(x), size_.H);
    in.g = heads(autograd::scale(gate, 1 / kGateTemperature), size_.H);
    const Var y = recurrence<kernels::GatedLinear>(in, {}, c);
    return o_(merged(norm_(y, heads(g_(x), size_.H))));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::GatedLinear>(); }

 private:
  HeadSizes size_;
  Linear q_, k_, v_, g_;
  int64_t rank_;
  Linear gk0_, gk1_;
  GatedNorm norm_;
  Linear o_;
};

const RegisteredMixer registered{"gated_linear", maker<Gla>()};

}  // namespace
}  // namespace weft::layers
