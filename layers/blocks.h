// Parts that mixers and the model share. Each holds its parameters and is called on [..., D].
#pragma once

#include "kernels/sequence/rotary.h"
#include "layers/layer.h"

namespace weft::layers {

// --- Functions without parameters ------------------------------------------------------------

// [..., D] as [R, D], the shape that the operations on rows take.
Var rows(const Var& x);
// y = f(x) elementwise; kinds as in kernels/rows/activation.h. Any shape.
Var activation(const Var& x, const std::string& kind);
// x weight', over the last dimension. weight [out, in].
Var product(const Var& x, const Var& weight, const Var& bias = {});
// x in f32 where it is bf16: for gates and step sizes, whose rounding would add up over a text.
Var wide(const Var& x);
// f(a) * b; shapes equal.
Var gated(const Var& a, const Var& b, const std::string& kind);
// y in as many equal parts, one behind the other, as w has numbers: each times its number.
Var weighed(const Var& y, const Var& w);
// The last dimension scaled to length one: x / sqrt(sum x^2 + eps).
Var l2_norm(const Var& x, double eps = 1e-6);
// [B, T, H * K] as [B, T, H, K], and back.
Var heads(const Var& x, int64_t H);
Var merged(const Var& x);
// Rotary positions on [B, T, H, K], from the context's position on, anew in every document.
Var rotated(const Var& x, double base, const Context& c);
Var rotated(const Var& x, kernels::Rotary::Options o, const Context& c);

// --- Parts with parameters -------------------------------------------------------------------

// y = x weight' + bias. Weight [out, in], as the field stores it.
class Linear {
 public:
  Linear(const Builder& b, int64_t in, int64_t out, double deviation, bool bias = false);
  Linear(const Builder& b, int64_t in, int64_t out, const Init& init, bool bias = false);
  Var operator()(const Var& x) const;  // [..., in] -> [..., out]

  Var weight, bias;
};

// The residual stream between two parts: x + added. The norm before the next part adds up in
// passing.
struct Stream {
  Var x, added;  // added may be absent
  Var sum();     // adds up where no norm does
};

// RMS or layer norm of the last dimension, with a weight. With plus_one it multiplies by one plus
// the weight, which starts at zero. A bias is a layer norm's.
class Norm {
 public:
  enum class Kind { rms, layer };
  Norm(const Builder& b, int64_t width, Kind kind = Kind::rms, double eps = 0,  // eps 0: usual one
       bool plus_one = false, bool bias = false);
  Var operator()(const Var& x) const;
  // Of the sum, which the stream then is.
  Var operator()(Stream& stream) const;

 private:
  Var weight() const;

  Kind kind_;
  double eps_;
  Var weight_, bias_;
  Tensor ones_;  // [1, width] with plus_one
};

// RMS norm with a gate z of the same shape: n(x) w act(z), or n(x act(z)) w where gate_first; act
// is silu or sigmoid. Normalises the last dimension in `groups` groups of neighbours.
class GatedNorm {
 public:
  GatedNorm(const Builder& b, int64_t width, double eps, const std::string& gate = "silu",
            bool gate_first = false, int64_t groups = 1);
  Var operator()(const Var& x, const Var& z) const;

 private:
  double eps_;
  std::string gate_;
  bool gate_first_;
  int64_t groups_;
  Var weight_;
};

// Causal convolution of each channel over `taps` tokens, silu after it; silu alone where taps is 0.
// Keeps the tokens it needs in the state under `name`.
class ShortConv {
 public:
  ShortConv(const Builder& b, const std::string& name, int64_t channels, int64_t taps,
            bool bias = false);
  Var operator()(const Var& x, Context& c) const;  // [B, T, channels]

 private:
  std::string name_;
  Var weight_, bias_;
};

// How state spaces and the delta rules make a step and a decay from a projection x:
//   dt = softplus(x + dt_bias),   g = -exp(A_log) dt   (log decay, <= 0)
// x is [B, T, H], or [B, T, H * channels] and then dt and g are [B, T, H, channels]; dt_bias is one
// a number of it, A_log one a head. exp(A_log) starts uniform in [low, high], softplus(dt_bias)
// log-uniform in [1e-3, 1e-1].
class Decay {
 public:
  Decay(const Builder& b, int64_t H, double low, double high, int64_t channels = 0);
  Var step(const Var& x) const;  // dt
  Var log_decay(const Var& dt) const;

 private:
  int64_t H_, channels_;
  Var A_log_, dt_bias_;
};
// dt_bias of such a kind.
Init step_init();

// --- What stands after the mixer -----------------------------------------------------------------

// swiglu: down_proj(silu(gate_proj x) * up_proj x); geglu the same with the tanh form of gelu.
// gelu: fc2(gelu(fc1 x)); gelu_tanh and relu2 (the square of relu) the same with theirs.
// moe: tokens go to the best of several such networks (moe.cpp). Reads [mlp] or [moe].
std::unique_ptr<Layer> make_mlp(const std::string& kind, const Spec& spec, const TomlTable& recipe,
                                const Builder& b);
std::unique_ptr<Layer> make_moe(const Spec& spec, const TomlTable& table, const Builder& b);
extern const std::vector<std::string> kMlpKinds;

// --- Reading tables --------------------------------------------------------------------------

// What a width, or a number of heads, experts or taps, may be: a product of two fits 64 bits with
// room to spare. kCount may be none.
inline constexpr Integers kSize{1, 1 << 24}, kCount{0, 1 << 24};
// Numbers that a divisor, a bound of logits, the weight of a loss and a factor may be.
inline constexpr Numbers kEpsilon{.least = 0, .most = 1, .above = true}, kCap{0, 1e6},
    kLossWeight{0, 1e3}, kRotaryBase{1, 1e12}, kFactor{.least = 0, .most = 1e6, .above = true};

// --- States of generation --------------------------------------------------------------------

// The state's tensor of that name; an absent one where there is no state or nothing in it yet.
Tensor remembered(const Context& c, const std::string& name);
void remember(const Context& c, const std::string& name, const Var& value);

}  // namespace weft::layers
