// Kimi Delta Attention: the delta rule with a learned gate a key channel.
//   q, k of length one after convolution and silu,   beta = sigmoid(b_proj x)  (doubled on request)
//   g = -exp(A_log) softplus(f_proj.1(f_proj.0 x) + dt_bias)     A_log a head, dt_bias a channel
//   y = o_proj(norm(o) sigmoid(g_proj.1(g_proj.0 x)))
// Weights and wiring as in fla's KimiDeltaAttention. Source: arXiv:2510.26692.
#include "kernels/kda/kda.h"

#include "autograd/ops.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

class Kda final : public Layer {
 public:
  Kda(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 1)),
        double_beta_(t.boolean("negative_eigenvalues", false)),
        eps_(t.number("norm_eps", kEpsilon, 1e-5)),
        rank_(t.integer("gate_rank", kSize, size_.V)),
        mixed_(b, spec, size_, t.integer("conv", kCount, 4)),
        f0_(b.within("f_proj.0"), spec.width, rank_, spec.init),
        f1_(b.within("f_proj.1"), rank_, size_.H * size_.K, spec.init),
        b_(b.within("b_proj"), spec.width, size_.H, spec.init),
        decay_(b, size_.H, 1, 16, size_.K),
        g0_(b.within("g_proj.0"), spec.width, rank_, spec.init),
        g1_(b.within("g_proj.1"), rank_, size_.H * size_.V, spec.init, /*bias=*/true),
        norm_(b.within("o_norm"), size_.V, eps_, "sigmoid"),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {}

  Var forward(const Var& x, Context& c) const override {
    const auto [q, k, v] = mixed_(x, c);
    kernels::Inputs<kernels::Kda, Var> in;
    in.q = l2_norm(q);
    in.k = l2_norm(k);
    in.v = v;
    in.beta = activation(wide(b_(x)), "sigmoid");
    if (double_beta_) in.beta = autograd::scale(in.beta, 2);
    in.g = decay_.log_decay(decay_.step(f1_(f0_(x))));
    const Var y = recurrence<kernels::Kda>(in, {}, c);
    return o_(merged(norm_(y, heads(g1_(g0_(x)), size_.H))));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::Kda>(); }

 private:
  HeadSizes size_;
  bool double_beta_;
  double eps_;
  int64_t rank_;
  MixedQkv mixed_;
  Linear f0_, f1_, b_;
  Decay decay_;
  Linear g0_, g1_;
  GatedNorm norm_;
  Linear o_;
};

const RegisteredMixer registered{"kda", maker<Kda>()};

}  // namespace
}  // namespace weft::layers
