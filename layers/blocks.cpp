#include "layers/blocks.h"

#include <algorithm>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/text.h"
#include "kernels/products/matmul.h"
#include "kernels/rows/activation.h"
#include "kernels/rows/norms.h"
#include "kernels/sequence/short_conv.h"

namespace weft::layers {

using autograd::apply;
using autograd::reshape;

const std::vector<std::string> kMlpKinds = {"swiglu", "geglu", "gelu", "gelu_tanh",
                                            "relu2",  "moe",   "none"};

namespace {

Shape with_last(Shape shape, int64_t size) {
  shape[-1] = size;
  return shape;
}

// Three matrices: the activation of one half gates the other. Factors of the gate, before its
// activation, and of the result.
class GatedMlp final : public Layer {
 public:
  GatedMlp(const Spec& spec, const std::string& activation, int64_t width, const TomlTable& t,
           bool bias, const Builder& b)
      : activation_(activation),
        gate_scale_(t.number("gate_scale", kFactor, 1)),
        out_scale_(t.number("out_scale", kFactor, 1)),
        gate_(b.within("gate_proj"), spec.width, width, spec.init, bias),
        up_(b.within("up_proj"), spec.width, width, spec.init, bias),
        down_(b.within("down_proj"), width, spec.width, spec.residual_init(), bias) {}
  Var forward(const Var& x, Context&) const override {
    return scaled(down_(gated(scaled(gate_(x), gate_scale_), up_(x), activation_)), out_scale_);
  }
  double flops_per_token(int64_t) const override { return 0; }

 private:
  static Var scaled(const Var& x, double factor) {
    return factor == 1 ? x : autograd::scale(x, factor);
  }

  std::string activation_;
  double gate_scale_, out_scale_;
  Linear gate_, up_, down_;
};

class PlainMlp final : public Layer {
 public:
  PlainMlp(const Spec& spec, const std::string& activation, int64_t width, bool bias,
           const Builder& b)
      : activation_(activation),
        fc1_(b.within("fc1"), spec.width, width, spec.init, bias),
        fc2_(b.within("fc2"), width, spec.width, spec.residual_init(), bias) {}
  Var forward(const Var& x, Context&) const override {
    return fc2_(activation(fc1_(x), activation_));
  }
  double flops_per_token(int64_t) const override { return 0; }

 private:
  std::string activation_;
  Linear fc1_, fc2_;
};

// The activation of each MLP, as kernels/rows names it.
const std::map<std::string, std::string> kGatedMlps = {{"swiglu", "silu"}, {"geglu", "gelu_tanh"}},
                                         kPlainMlps = {{"gelu", "gelu"},
                                                       {"gelu_tanh", "gelu_tanh"},
                                                       {"relu2", "square_relu"}};

}  // namespace

Var rows(const Var& x) { return x.value().dims() == 2 ? x : reshape(x, {-1, x.size(-1)}); }

Var activation(const Var& x, const std::string& kind) {
  return reshape(apply<kernels::Activation>({rows(x)}, {kind}).y, x.shape());
}

Var product(const Var& x, const Var& weight, const Var& bias) {
  const Var y = apply<kernels::Matmul>({rows(x), weight, bias}).y;
  return reshape(y, with_last(x.shape(), y.size(1)));
}

Var wide(const Var& x) { return x.dtype() == Dtype::bf16 ? autograd::cast(x, Dtype::f32) : x; }

Var gated(const Var& a, const Var& b, const std::string& kind) {
  return reshape(apply<kernels::GatedActivation>({rows(a), rows(b)}, {kind}).y, a.shape());
}

Var weighed(const Var& y, const Var& w) {
  const int64_t R = w.value().numel(), n = y.value().numel();
  const Var parts = reshape(y, {R, R > 0 ? n / R : y.size(-1)});
  return reshape(autograd::multiply_along(parts, reshape(w, {-1}), 0), y.shape());
}

Var l2_norm(const Var& x, double eps) {
  return reshape(apply<kernels::L2Norm>({rows(x)}, {eps}).y, x.shape());
}

Var heads(const Var& x, int64_t H) { return reshape(x, {x.size(0), x.size(1), H, x.size(2) / H}); }

Var merged(const Var& x) { return reshape(x, {x.size(0), x.size(1), x.size(2) * x.size(3)}); }

Var rotated(const Var& x, double base, const Context& c) {
  return rotated(x, kernels::Rotary::Options{.base = base}, c);
}

Var rotated(const Var& x, kernels::Rotary::Options o, const Context& c) {
  if (c.place)
    o.position = c.place;
  else
    o.offset = c.position;
  o.cu_seqlens = c.cu_seqlens;
  return apply<kernels::Rotary>({x}, o).y;
}

Linear::Linear(const Builder& b, int64_t in, int64_t out, double deviation, bool with_bias)
    : Linear(b, in, out, Init::normal(deviation), with_bias) {}

Linear::Linear(const Builder& b, int64_t in, int64_t out, const Init& init, bool with_bias)
    : weight(b.parameter("weight", {out, in}, init)) {
  if (with_bias) bias = b.parameter("bias", {out}, Init::constant(0));
}

Var Linear::operator()(const Var& x) const { return product(x, weight, bias); }

Norm::Norm(const Builder& b, int64_t width, Kind kind, double eps, bool plus_one, bool bias)
    : kind_(kind),
      eps_(eps > 0             ? eps
           : kind == Kind::rms ? 1e-6
                               : 1e-5),
      weight_(b.parameter("weight", {width}, Init::constant(plus_one ? 0 : 1))) {
  if (bias) bias_ = b.parameter("bias", {width}, Init::constant(0));
  if (plus_one) ones_ = b.buffer({1, width}, [](int64_t) { return 1.0; });
}

Var Norm::weight() const {
  return ones_ ? reshape(autograd::add_along(Var(ones_), weight_, -1), {-1}) : weight_;
}

Var Stream::sum() {
  if (added) *this = {autograd::add(x, added), {}};
  return x;
}

Var Norm::operator()(const Var& x) const {
  Stream alone{x, {}};
  return (*this)(alone);
}

Var Norm::operator()(Stream& stream) const {
  const Shape shape = stream.x.shape();
  const auto finished = [&](const auto& made) {
    if (made.sum) stream = {reshape(made.sum, shape), {}};
    return reshape(made.y, shape);
  };
  const Var x = rows(stream.x), added = stream.added ? rows(stream.added) : Var();
  if (kind_ == Kind::rms) return finished(apply<kernels::RmsNorm>({x, weight(), added}, {eps_}));
  return finished(apply<kernels::LayerNorm>({x, weight(), bias_, added}, {eps_}));
}

GatedNorm::GatedNorm(const Builder& b, int64_t width, double eps, const std::string& gate,
                     bool gate_first, int64_t groups)
    : eps_(eps),
      gate_(gate),
      gate_first_(gate_first),
      groups_(groups),
      weight_(b.parameter("weight", {width}, Init::constant(1))) {}

Var GatedNorm::operator()(const Var& x, const Var& z) const {
  kernels::GatedNorm::Options o;
  o.eps = eps_;
  o.groups = groups_;
  o.gate = gate_;
  o.gate_first = gate_first_;
  return reshape(apply<kernels::GatedNorm>({rows(x), rows(z), weight_}, o).y, x.shape());
}

ShortConv::ShortConv(const Builder& b, const std::string& name, int64_t channels, int64_t taps,
                     bool with_bias)
    : name_(name) {
  if (taps == 0) return;
  const Builder own = b.within(name);
  const double bound = 1 / std::sqrt(static_cast<double>(taps));
  weight_ = own.parameter("weight", {channels, taps}, Init::uniform(-bound, bound));
  if (with_bias) bias_ = own.parameter("bias", {channels}, Init::constant(0));
}

Var ShortConv::operator()(const Var& x, Context& c) const {
  if (!weight_) return activation(x, "silu");
  kernels::ShortConv::Options o;
  o.return_state = c.state != nullptr;
  o.cu_seqlens = c.cu_seqlens;
  const auto y = apply<kernels::ShortConv>({x, weight_, bias_, remembered(c, name_)}, o);
  remember(c, name_, y.final_state);
  return y.y;
}

Init step_init() {
  return Init::function([](int64_t, double u) {
    const double dt = std::max(1e-4, 1e-3 * std::pow(100.0, u));
    return dt + std::log(-std::expm1(-dt));  // softplus of this is dt
  });
}

Decay::Decay(const Builder& b, int64_t H, double low, double high, int64_t channels)
    : H_(H),
      channels_(channels),
      A_log_(b.wide().parameter("A_log", {H}, Init::function([low, high](int64_t, double u) {
                                  return std::log(low + (high - low) * u);
                                }))),
      dt_bias_(b.wide().parameter("dt_bias", {channels > 0 ? H * channels : H}, step_init())) {}

Var Decay::step(const Var& x) const {
  const Var dt = activation(autograd::add_along(x, dt_bias_, -1), "softplus");
  return channels_ > 0 ? heads(dt, H_) : dt;
}

Var Decay::log_decay(const Var& dt) const {
  const Var A = autograd::scale(activation(reshape(A_log_, {1, -1}), "exp"), -1);
  return autograd::multiply_along(dt, reshape(A, {-1}), 2);
}

std::unique_ptr<Layer> make_mlp(const std::string& kind, const Spec& spec, const TomlTable& recipe,
                                const Builder& b) {
  if (kind == "none") return nullptr;
  if (kind == "moe") return make_moe(spec, recipe.table("moe"), b);
  const TomlTable table = recipe.table("mlp");
  const int64_t D = spec.width;
  const bool bias = table.boolean("bias", false);
  if (const auto plain = kPlainMlps.find(kind); plain != kPlainMlps.end())
    return std::make_unique<PlainMlp>(spec, plain->second, table.integer("width", kSize, 4 * D),
                                      bias, b);
  const auto found = kGatedMlps.find(kind);
  if (found == kGatedMlps.end()) fail(unknown_name("mlp", kind, kMlpKinds));
  // Three matrices of 8/3 D rows weigh as much as two of 4 D.
  const int64_t usual = (8 * D / 3 + 31) / 32 * 32;
  return std::make_unique<GatedMlp>(spec, found->second, table.integer("width", kSize, usual),
                                    table, bias, b);
}

Tensor remembered(const Context& c, const std::string& name) {
  if (!c.state) return {};
  const auto found = c.state->tensors.find(name);
  return found == c.state->tensors.end() ? Tensor() : found->second;
}

void remember(const Context& c, const std::string& name, const Var& value) {
  if (c.state) c.state->tensors[name] = value.value();
}

}  // namespace weft::layers
