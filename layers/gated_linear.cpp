// Mixers over kernels/gated_linear: GLA and HGRN2.
//
// Gated linear attention: the state forgets per key channel, by a gate of low rank.
//   g = logsigmoid(gk_proj.1(gk_proj.0 x)) / 16,   y = o_proj(norm(o) silu(g_proj x))
// Weights and wiring as in fla's GatedLinearAttention; gate_bias gives g_proj a bias.
// Source: arXiv:2312.06635.
#include "kernels/gated_linear/gated_linear.h"

#include "autograd/ops.h"
#include "kernels/features/forget_gate.h"
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
        g_(b.within("g_proj"), spec.width, size_.H * size_.V, spec.init,
           t.boolean("gate_bias", false)),
        rank_(t.integer("gate_rank", kSize, 16)),
        gk0_(b.within("gk_proj.0"), spec.width, rank_, spec.init),
        gk1_(b.within("gk_proj.1"), rank_, size_.H * size_.K, spec.init, /*bias=*/true),
        norm_(b.within("g_norm_swish_gate"), size_.V, t.number("norm_eps", kEpsilon, 1e-5)),
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

// HGRN2: what a channel forgets is what it can write, k = 1 - f, with f in place of a gate of low
// rank. Layer l of L keeps at least l / L of its state a token, as HGRN2's learned bounds start.
//   f = bound + (1 - bound) sigmoid(f_proj x),   q = silu(q_proj x),   v = i_proj x
//   y = o_proj(norm(o)), the norm over all heads
// Weights and wiring as in fla's HGRN2Attention, which takes its bounds from the model.
class Hgrn2 final : public Layer {
 public:
  Hgrn2(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 1, /*shared=*/false)),  // a head's keys are its own gates
        bound_(t.number("lower_bound", Numbers{.least = 0, .most = 0.999},
                        static_cast<double>(spec.layer) / static_cast<double>(spec.layers))),
        q_(b.within("q_proj"), spec.width, size_.Hk * size_.K, spec.init),
        f_(b.within("f_proj"), spec.width, size_.Hk * size_.K, spec.init),
        i_(b.within("i_proj"), spec.width, size_.H * size_.V, spec.init),
        norm_(b.within("g_norm"), size_.H * size_.V, Norm::Kind::rms,
              t.number("norm_eps", kEpsilon, 1e-5)),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {}

  Var forward(const Var& x, Context& c) const override {
    const Var f = f_(x);
    const auto gate = autograd::apply<kernels::ForgetGate>({rows(f)}, {bound_});
    kernels::Inputs<kernels::GatedLinear, Var> in;
    in.q = heads(activation(q_(x), "silu"), size_.H);
    in.k = heads(autograd::reshape(gate.k, f.shape()), size_.H);
    in.v = heads(i_(x), size_.H);
    in.g = heads(autograd::reshape(gate.g, f.shape()), size_.H);
    return o_(norm_(merged(recurrence<kernels::GatedLinear>(in, {}, c))));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::GatedLinear>(); }

 private:
  HeadSizes size_;
  double bound_;
  Linear q_, f_, i_;
  Norm norm_;
  Linear o_;
};

const RegisteredMixer gated_linear{"gated_linear", maker<Gla>()};
const RegisteredMixer hgrn2{"hgrn2", maker<Hgrn2>()};

}  // namespace
}  // namespace weft::layers
