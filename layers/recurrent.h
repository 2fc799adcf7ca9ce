// What the mixers with a state share: sizes of heads, q, k and v behind short convolutions, and the
// call of a mechanism that carries the state on.
#pragma once

#include "autograd/kernel_op.h"
#include "layers/blocks.h"

namespace weft::layers {

// H value heads of width V share Hk key heads of width K.
struct HeadSizes {
  int64_t H = 1, Hk = 1, K = 1, V = 1;
  // FLOPs of a token's forward pass in mechanism M.
  template <class M>
  double flops() const {
    return static_cast<double>(H) *
           M::flops(static_cast<double>(K), static_cast<double>(V)).forward;
  }
};

// Reads heads, key_heads, key_width and value_width; the widths, per head, are by default such that
// all heads together have expand_k and expand_v times the model's width. Where heads cannot share
// keys, there is no key_heads to read.
HeadSizes head_sizes(const Spec& spec, const TomlTable& t, double expand_k, double expand_v,
                     bool shared = true);

// q, k [B, T, Hk, K] and v [B, T, H, V]: projections q_proj, k_proj, v_proj, each through a short
// convolution q_conv1d, k_conv1d, v_conv1d and silu.
class MixedQkv {
 public:
  MixedQkv(const Builder& b, const Spec& spec, const HeadSizes& size, int64_t taps);
  struct Result {
    Var q, k, v;
  };
  Result operator()(const Var& x, Context& c) const {
    return {heads(q_conv_(q_(x), c), size_.Hk), heads(k_conv_(k_(x), c), size_.Hk),
            heads(v_conv_(v_(x), c), size_.H)};
  }

 private:
  HeadSizes size_;
  Linear q_, k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
};

// The output o of a mechanism with a state, within the context's documents: from the layer's state
// on if it keeps one (generation), leaving the new state in it.
template <class M>
Var recurrence(kernels::Inputs<M, Var> in, kernels::Options<M> o, const Context& c) {
  o.cu_seqlens = c.cu_seqlens;
  o.return_state = c.state != nullptr;
  in.initial_state = remembered(c, "state");
  if constexpr (requires { in.initial_z; })
    if (o.normalize) in.initial_z = remembered(c, "z");
  const auto y = autograd::apply<M>(in, o);
  remember(c, "state", y.final_state);
  if constexpr (requires { in.initial_z; })
    if (o.normalize) remember(c, "z", y.final_z);
  return y.o;
}

// Gates g = logsigmoid(x) / 16 forget slowly at first (arXiv:2312.06635).
inline constexpr double kGateTemperature = 16;

}  // namespace weft::layers
