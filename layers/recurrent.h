// What the mixers with a state share: sizes of heads, q, k and v behind short convolutions, and the
// call of kernels/linear that carries the state on.
#pragma once

#include "autograd/kernel_op.h"
#include "kernels/linear/linear.h"
#include "layers/blocks.h"

namespace weft::layers {

// H value heads of width V share Hk key heads of width K.
struct HeadSizes {
  int64_t H = 1, Hk = 1, K = 1, V = 1;
  // FLOPs a token in chunks of 64: without and with erasing.
  double linear_flops() const;
  double delta_flops() const;
};

// Reads heads, key_heads, key_width and value_width; the widths, per head, are by default such that
// all heads together have expand_k and expand_v times the model's width.
HeadSizes head_sizes(const Spec& spec, const TomlTable& t, double expand_k, double expand_v);

// q, k [B, T, Hk, K] and v [B, T, H, V]: projections q_proj, k_proj, v_proj, each through a short
// convolution q_conv1d, k_conv1d, v_conv1d and silu.
class MixedQkv {
 public:
  MixedQkv(const Builder& b, const Spec& spec, const HeadSizes& size, int64_t taps);
  struct Result {
    Var q, k, v;
  };
  Result operator()(const Var& x, Context& c) const;

 private:
  HeadSizes size_;
  Linear q_, k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
};

// o [B, T, H, V] of kernels/linear, from the state on and leaving the new one in it.
Var linear_recurrence(kernels::Inputs<kernels::Linear, Var> in, kernels::Linear::Options o,
                      const Context& c);

// Gates g = logsigmoid(x) / 16 forget slowly at first (arXiv:2312.06635).
inline constexpr double kGateTemperature = 16;

}  // namespace weft::layers
