// Mixture of experts: each token goes through the top_k of E small networks that the router likes
// best, weighted by its probabilities, which add up to one unless normalize = false (Jamba). No
// token is dropped: rows are sorted by expert, and the sorted matrix has R * top_k rows however
// they fall, so that memory depends on shapes alone.
// Sources: arXiv:2401.04088 (routing), 2403.19887 (Jamba), 2101.03961 (balance loss), 2202.08906 (z
// loss). A gate of the shared experts is that of Qwen2-MoE and Qwen3-Next.
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/experts/routing.h"
#include "layers/blocks.h"

namespace weft::layers {
namespace {

using autograd::apply;

class Moe final : public Layer {
 public:
  Moe(const Spec& spec, const TomlTable& t, const Builder& b)
      : experts_(t.integer("experts", kSize, 8)),
        top_k_(t.integer("top_k", kSize, 2)),
        width_(t.integer("width", kSize, spec.width)),
        shared_(t.integer("shared", kCount, 0)),
        normalize_(t.boolean("normalize", true)),
        balance_loss_(t.number("balance_loss", kLossWeight, 0.01)),
        z_loss_(t.number("z_loss", kLossWeight, 0.001)) {
    if (top_k_ > experts_) t.refuse("top_k", "top_k is ", top_k_, " of ", experts_, " experts");
    const bool swiglu = t.one_of("activation", {"swiglu", "gelu"}, "swiglu") == "swiglu";
    const int64_t D = spec.width;
    const Init in = Init::normal(spec.init), out = Init::normal(spec.residual_init());
    router_ = b.parameter("router.weight", {experts_, D}, in, /*decay=*/false);
    const Builder e = b.within("experts");
    if (swiglu) gate_ = e.parameter("gate_proj", {experts_, width_, D}, in);
    up_ = e.parameter("up_proj", {experts_, width_, D}, in);
    down_ = e.parameter("down_proj", {experts_, D, width_}, out);
    if (shared_ == 0) {
      t.unused("shared_gate", "it has no use with shared = 0; leave it out",
               t.overridden("shared"));
      return;
    }
    const Builder s = b.within("shared_expert");
    if (swiglu) shared_gate_.emplace(s.within("gate_proj"), D, shared_ * width_, in);
    shared_up_.emplace(s.within("up_proj"), D, shared_ * width_, in);
    shared_down_.emplace(s.within("down_proj"), shared_ * width_, D, out);
    if (t.boolean("shared_gate", false))
      shared_scale_ = b.parameter("shared_expert_gate.weight", {1, D}, in, /*decay=*/false);
  }

  Var forward(const Var& x, Context& c) const override {
    const Var in = rows(x);
    kernels::Router::Options o;
    o.top_k = top_k_;
    o.normalize = normalize_;
    o.index = empty({in.size(0), top_k_}, Dtype::i32, in.value().device());
    const auto routed = apply<kernels::Router>({product(in, router_)}, o);
    const kernels::ExpertOrder order = kernels::sorted_by_expert(o.index, experts_);

    const Var sorted = apply<kernels::PermuteRows>({in, {}}, {order.token}).y;
    const auto expert = [&](const Var& a, const Var& w) {
      return apply<kernels::GroupedMatmul>({a, w}, {order.offsets}).y;
    };
    const Var up = expert(sorted, up_);
    const Var inner = gate_ ? gated(expert(sorted, gate_), up, "silu") : activation(up, "gelu");
    Var y = apply<kernels::CombineRows>({expert(inner, down_), routed.weight}, {order.slot}).y;
    if (shared_up_) {
      const Var u = (*shared_up_)(in);
      const Var h = shared_gate_ ? gated((*shared_gate_)(in), u, "silu") : activation(u, "gelu");
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
    return (experts_ + (shared_scale_ ? 1 : 0)) * D + (top_k_ + shared_) * matrices * width_ * D;
  }

 private:
  // What the shared experts give a token, times sigmoid(shared_expert_gate x).
  Var scaled(const Var& y, const Var& x) const {
    if (!shared_scale_) return y;
    const Var gate = activation(wide(product(x, shared_scale_)), "sigmoid");
    return weighed(y, gate);
  }

  int64_t experts_, top_k_, width_, shared_;
  bool normalize_;
  double balance_loss_, z_loss_;
  Var router_, gate_, up_, down_, shared_scale_;
  std::optional<Linear> shared_gate_, shared_up_, shared_down_;
};

}  // namespace

std::unique_ptr<Layer> make_moe(const Spec& spec, const TomlTable& table, const Builder& b) {
  return std::make_unique<Moe>(spec, table, b);
}

}  // namespace weft::layers
