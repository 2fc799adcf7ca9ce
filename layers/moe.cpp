// Mixture of experts: each token goes through the top_k of E small networks that the router likes
// best, weighted by its probabilities, which add up to one unless normalize = false (Jamba). No
// token is dropped: rows are sorted by expert, and the sorted matrix has R * top_k rows however
// they fall, so that memory depends on shapes alone.
// Sources: arXiv:2401.04088 (routing), 2403.19887 (Jamba), 2101.03961 (balance loss), 2202.08906 (z
// loss), 2508.10925 (gpt-oss: biases, clamped SwiGLU). A gate of the shared experts is that of
// Qwen2-MoE and Qwen3-Next.
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/text.h"
#include "kernels/experts/routing.h"
#include "layers/blocks.h"

namespace weft::layers {
namespace {

using autograd::apply;

// What stands between the matrices of an expert of hidden width `width`:
//   swiglu           silu(g) u
//   clamped_swiglu   g sigmoid(alpha g) (u + 1), with g at most `limit` and u within +-limit
//   gelu             gelu(u), and there is no g
class ExpertActivation {
 public:
  ExpertActivation(const TomlTable& t, const Builder& b)
      : kind_(t.one_of("activation", {"swiglu", "gelu", "clamped_swiglu"}, "swiglu")) {
    if (kind_ != "clamped_swiglu") {
      for (const char* key : {"limit", "alpha"})
        t.unused(key, concat("it has no use with activation = \"", kind_, "\"; leave it out"),
                 t.overridden("activation"));
      return;
    }
    limit_ = t.number("limit", kFactor, 7);
    alpha_ = t.number("alpha", kFactor, 1.702);
    bound_ = b.buffer({1}, [limit = limit_](int64_t) { return -limit; });
    one_ = b.buffer({1}, [](int64_t) { return 1.0; });
  }

  bool gates() const { return kind_ != "gelu"; }
  // `gate` is absent where there is none.
  Var operator()(const Var& gate, const Var& up) const {
    if (kind_ == "gelu") return activation(up, "gelu");
    if (kind_ == "swiglu") return gated(gate, up, "silu");
    const Var g = below(gate), u = negative(below(negative(below(up))));
    const Var glu = gated(autograd::scale(g, alpha_), g, "sigmoid");
    return autograd::multiply(glu, plus(u, one_));
  }

 private:
  static Var negative(const Var& x) { return autograd::scale(x, -1); }
  static Var plus(const Var& x, const Tensor& number) {
    const Var flat = autograd::reshape(x, {-1, 1});
    return autograd::reshape(autograd::add_along(flat, Var(number), 1), x.shape());
  }
  // min(x, limit) = x - relu(x - limit): what lies below stays as it is, bit by bit.
  Var below(const Var& x) const {
    return autograd::add(x, negative(activation(plus(x, bound_), "relu")));
  }

  std::string kind_;
  double limit_ = 0, alpha_ = 0;
  Tensor bound_, one_;  // [1]: minus the limit, and one
};

class Moe final : public Layer {
 public:
  Moe(const Spec& spec, const TomlTable& t, const Builder& b)
      : experts_(t.integer("experts", kSize, 8)),
        top_k_(t.integer("top_k", kSize, 2)),
        width_(t.integer("width", kSize, spec.width)),
        shared_(t.integer("shared", kCount, 0)),
        normalize_(t.boolean("normalize", true)),
        bias_(t.boolean("bias", false)),
        activation_(t, b),
        balance_loss_(t.number("balance_loss", kLossWeight, 0.01)),
        z_loss_(t.number("z_loss", kLossWeight, 0.001)) {
    if (top_k_ > experts_) t.refuse("top_k", "top_k is ", top_k_, " of ", experts_, " experts");
    const bool swiglu = activation_.gates();
    const int64_t D = spec.width;
    const Init in = Init::normal(spec.init), out = Init::normal(spec.residual_init());
    router_ = b.parameter("router.weight", {experts_, D}, in, /*decay=*/false);
    const Builder e = b.within("experts");
    const auto vector = [&](const Builder& at, const char* name, const Shape& shape) {
      return bias_ ? at.parameter(name, shape, Init::constant(0), /*decay=*/false) : Var();
    };
    router_bias_ = vector(b, "router.bias", {experts_});
    if (swiglu) gate_ = e.parameter("gate_proj", {experts_, width_, D}, in);
    if (swiglu) gate_bias_ = vector(e, "gate_bias", {experts_, width_});
    up_ = e.parameter("up_proj", {experts_, width_, D}, in);
    up_bias_ = vector(e, "up_bias", {experts_, width_});
    down_ = e.parameter("down_proj", {experts_, D, width_}, out);
    down_bias_ = vector(e, "down_bias", {experts_, D});
    if (shared_ == 0) {
      t.unused("shared_gate", "it has no use with shared = 0; leave it out",
               t.overridden("shared"));
      return;
    }
    const Builder s = b.within("shared_expert");
    if (swiglu) shared_gate_.emplace(s.within("gate_proj"), D, shared_ * width_, in, bias_);
    shared_up_.emplace(s.within("up_proj"), D, shared_ * width_, in, bias_);
    shared_down_.emplace(s.within("down_proj"), shared_ * width_, D, out, bias_);
    if (t.boolean("shared_gate", false))
      shared_scale_ = b.parameter("shared_expert_gate.weight", {1, D}, in, /*decay=*/false);
  }

  Var forward(const Var& x, Context& c) const override {
    const Var in = rows(x);
    kernels::Router::Options o;
    o.top_k = top_k_;
    o.normalize = normalize_;
    o.index = empty({in.size(0), top_k_}, Dtype::i32, in.value().device());
    const auto routed = apply<kernels::Router>({product(in, router_, router_bias_)}, o);
    const kernels::ExpertOrder order = kernels::sorted_by_expert(o.index, experts_);

    const Var sorted = apply<kernels::PermuteRows>({in, {}}, {order.token}).y;
    const auto expert = [&](const Var& a, const Var& w, const Var& bias) {
      const Var y = apply<kernels::GroupedMatmul>({a, w}, {order.offsets}).y;
      return bias ? autograd::add(y, of_rows(bias, order)) : y;
    };
    const Var gate = gate_ ? expert(sorted, gate_, gate_bias_) : Var();
    const Var inner = activation_(gate, expert(sorted, up_, up_bias_));
    Var y =
        apply<kernels::CombineRows>({expert(inner, down_, down_bias_), routed.weight}, {order.slot})
            .y;
    if (shared_up_) {
      const Var u = (*shared_up_)(in);
      const Var h = activation_(shared_gate_ ? (*shared_gate_)(in) : Var(), u);
      y = autograd::add(y, scaled((*shared_down_)(h), in));
    }
    if (c.losses && balance_loss_ > 0)
      c.losses->push_back(autograd::scale(routed.balance, balance_loss_));
    if (c.losses && z_loss_ > 0) c.losses->push_back(autograd::scale(routed.z, z_loss_));
    return autograd::reshape(y, x.shape());
  }

  double flops_per_token(int64_t) const override { return 0; }

  int64_t active_parameters() const override {
    const int64_t matrices = gate_ ? 3 : 2, D = router_.size(1);
    const int64_t biases = bias_ ? experts_ + top_k_ * ((matrices - 1) * width_ + D) +
                                       (shared_ > 0 ? (matrices - 1) * shared_ * width_ + D : 0)
                                 : 0;
    return (experts_ + (shared_scale_ ? 1 : 0)) * D + (top_k_ + shared_) * matrices * width_ * D +
           biases;
  }

 private:
  // The bias [E, O] of the expert that each of the sorted rows goes to: a matrix of one column that
  // meets a one.
  static Var of_rows(const Var& bias, const kernels::ExpertOrder& order) {
    const Var ones = full({order.token.size(0), 1}, 1, bias.dtype(), bias.value().device());
    return apply<kernels::GroupedMatmul>(
               {ones, autograd::reshape(bias, {bias.size(0), bias.size(1), 1})}, {order.offsets})
        .y;
  }

  // What the shared experts give a token, times sigmoid(shared_expert_gate x).
  Var scaled(const Var& y, const Var& x) const {
    if (!shared_scale_) return y;
    const Var gate = activation(wide(product(x, shared_scale_)), "sigmoid");
    return weighed(y, gate);
  }

  int64_t experts_, top_k_, width_, shared_;
  bool normalize_, bias_;
  ExpertActivation activation_;
  double balance_loss_, z_loss_;
  Var router_, gate_, up_, down_, shared_scale_;
  Var router_bias_, gate_bias_, up_bias_, down_bias_;
  std::optional<Linear> shared_gate_, shared_up_, shared_down_;
};

}  // namespace

std::unique_ptr<Layer> make_moe(const Spec& spec, const TomlTable& table, const Builder& b) {
  return std::make_unique<Moe>(spec, table, b);
}

}  // namespace weft::layers
