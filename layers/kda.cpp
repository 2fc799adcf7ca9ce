// Kimi Delta Attention: the delta rule with a learned gate a key channel.
//   q, k of length one after convolution and silu,   beta = sigmoid(b_proj x)  (doubled on request)
//   g = -exp(A_log) softplus(f_proj.1(f_proj.0 x) + dt_bias)     A_log a head, dt_bias a channel
//   y = o_proj(norm(o) sigmoid(g_proj.1(g_proj.0 x)))
// Weights and wiring as in fla's KimiDeltaAttention. Source: arXiv:2510.26692.
#include "kernels/kda/kda.h"

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/basic/norms.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

class Kda final : public Layer {
 public:
  Kda(const Spec& spec, const TomlTable& t, const Builder& b)
      : size_(head_sizes(spec, t, 1, 1)),
        double_beta_(t.boolean("negative_eigenvalues", false)),
        eps_(t.number("norm_eps", 1e-5)),
        rank_(at_least(1, t, "gate_rank", size_.V)),
        mixed_(b, spec, size_, at_least(0, t, "conv", 4)),
        f0_(b.within("f_proj.0"), spec.width, rank_, spec.init),
        f1_(b.within("f_proj.1"), rank_, size_.H * size_.K, spec.init),
        b_(b.within("b_proj"), spec.width, size_.H, spec.init),
        A_log_(b.parameter("A_log", {size_.H},
                           Init::function([](int64_t, double u) { return std::log(1 + 15 * u); }))),
        dt_bias_(b.parameter("dt_bias", {size_.H * size_.K}, step_init())),
        g0_(b.within("g_proj.0"), spec.width, rank_, spec.init),
        g1_(b.within("g_proj.1"), rank_, size_.H * size_.V, spec.init, /*bias=*/true),
        norm_(b.parameter("o_norm.weight", {size_.V}, Init::constant(1))),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {}

  Var forward(const Var& x, Context& c) const override {
    const auto [q, k, v] = mixed_(x, c);
    kernels::Inputs<kernels::Kda, Var> in;
    in.q = l2_norm(q);
    in.k = l2_norm(k);
    in.v = v;
    in.beta = activation(b_(x), "sigmoid");
    if (double_beta_) in.beta = autograd::scale(in.beta, 2);
    in.g = log_decay(x);
    in.initial_state = remembered(c, "state");
    kernels::Kda::Options o;
    o.cu_seqlens = c.cu_seqlens;
    o.return_state = c.state != nullptr;
    const auto y = autograd::apply<kernels::Kda>(in, o);
    remember(c, "state", y.final_state);
    return o_(gated_output(y.o, g1_(g0_(x))));
  }

  double flops_per_token(int64_t) const override { return size_.delta_flops(); }

 private:
  Var log_decay(const Var& x) const {  // [B, T, H, K]
    const Var step = activation(autograd::add_along(f1_(f0_(x)), dt_bias_, -1), "softplus");
    const Var A = autograd::scale(activation(autograd::reshape(A_log_, {1, -1}), "exp"), -1);
    return autograd::multiply_along(heads(step, size_.H), autograd::reshape(A, {-1}), 2);
  }

  Var gated_output(const Var& o, const Var& gate) const {  // [B, T, H * V]
    kernels::GatedNorm::Options options;
    options.eps = eps_;
    options.gate = "sigmoid";
    const Var z = heads(gate, size_.H);
    const auto y = autograd::apply<kernels::GatedNorm>({rows(o), rows(z), norm_}, options);
    return autograd::reshape(y.y, gate.shape());
  }

  HeadSizes size_;
  bool double_beta_;
  double eps_;
  int64_t rank_;
  MixedQkv mixed_;
  Linear f0_, f1_, b_;
  Var A_log_, dt_bias_;
  Linear g0_, g1_;
  Var norm_;
  Linear o_;
};

const RegisteredMixer registered{"kda", maker<Kda>()};

}  // namespace
}  // namespace weft::layers
