// DeltaNet and Gated DeltaNet: a state that overwrites what a key holds.
//   q, k of length one after convolution and silu,   beta = sigmoid(b_proj x)  (doubled on request)
//   g = -exp(A_log) softplus(a_proj x + dt_bias)     Gated DeltaNet
//   y = o_proj(norm(o) silu(g_proj x)), without the gate where use_gate = false
// With gate_bias = true, b_proj and g_proj have biases: a model that was made of another one starts
// with beta and the output gate near one. Else weights and wiring are as in fla's DeltaNet and
// GatedDeltaNet.
// Sources: arXiv:2406.06484, 2412.06464; doubled beta: 2411.12537.
#include "kernels/delta/delta.h"

#include <optional>

#include "autograd/ops.h"
#include "layers/blocks.h"
#include "layers/recurrent.h"

namespace weft::layers {
namespace {

class DeltaNet : public Layer {
 public:
  DeltaNet(const Spec& spec, const TomlTable& t, const Builder& b)
      : DeltaNet(spec, t, b, head_sizes(spec, t, 1, 1), /*gated=*/false) {}

  Var forward(const Var& x, Context& c) const override {
    const auto [q, k, v] = mixed_(x, c);
    kernels::Inputs<kernels::Delta, Var> in;
    in.q = l2_norm(q);
    in.k = l2_norm(k);
    in.v = v;
    in.beta = activation(wide(b_(x)), "sigmoid");
    if (double_beta_) in.beta = autograd::scale(in.beta, 2);
    if (decay_) in.g = decay_->log_decay(decay_->step((*a_)(x)));
    const Var y = recurrence<kernels::Delta>(in, {}, c);
    return o_(merged(norm_ ? (*norm_)(y) : (*gated_norm_)(y, heads((*g_)(x), size_.H))));
  }

  double flops_per_token(int64_t) const override { return size_.flops<kernels::Delta>(); }

 protected:
  DeltaNet(const Spec& spec, const TomlTable& t, const Builder& b, const HeadSizes& size,
           bool gated)
      : size_(size),
        double_beta_(t.boolean("negative_eigenvalues", false)),
        mixed_(b, spec, size_, t.integer("conv", kCount, 4)),
        gate_bias_(t.boolean("gate_bias", false)),
        b_(b.within("b_proj"), spec.width, size_.H, spec.init, gate_bias_),
        o_(b.within("o_proj"), size_.H * size_.V, spec.width, spec.residual_init()) {
    if (gated) {
      a_.emplace(b.within("a_proj"), spec.width, size_.H, spec.init);
      decay_.emplace(b, size_.H, 0.01, 16);
    }
    const double eps = t.number("norm_eps", kEpsilon, 1e-5);
    if (t.boolean("use_gate", gated)) {
      g_.emplace(b.within("g_proj"), spec.width, size_.H * size_.V, spec.init, gate_bias_);
      gated_norm_.emplace(b.within("o_norm"), size_.V, eps);
    } else {
      norm_.emplace(b.within("o_norm"), size_.V, Norm::Kind::rms, eps);
    }
  }

 private:
  HeadSizes size_;
  bool double_beta_;
  MixedQkv mixed_;
  bool gate_bias_;
  Linear b_, o_;
  std::optional<Linear> a_, g_;
  std::optional<Decay> decay_;
  std::optional<GatedNorm> gated_norm_;
  std::optional<Norm> norm_;
};

class GatedDeltaNet final : public DeltaNet {
 public:
  GatedDeltaNet(const Spec& spec, const TomlTable& t, const Builder& b)
      : DeltaNet(spec, t, b, head_sizes(spec, t, 0.75, 1.5), /*gated=*/true) {}
};

const RegisteredMixer delta{"delta", maker<DeltaNet>()};
const RegisteredMixer gated_delta{"gated_delta", maker<GatedDeltaNet>()};

}  // namespace
}  // namespace weft::layers
