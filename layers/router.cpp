// A mixer that learns which mechanism to apply at each layer and position. For each block of
// queries a router chooses what softmax attention sees: nothing, a window of blocks, the blocks
// whose mean keys fit best, or all of the past. A linear path with the same q, k and v goes along
// with it always.
//
//   z = (W x + b) / tau,  p = softmax(z)          of a block's first token, for the whole block
//   y = o_proj(sum_m p_m norm(y_m) + linear)             while the choice is soft
//   y = o_proj(norm(y_m) + linear),  m the largest       once it is hard: one call of block_sparse,
//                                                        whose mask has the rows of what was chosen
//
// The first token of a block is known before any of the block needs the choice, so training, a
// prompt and single tokens choose alike. In generation the state keeps what that token gave.
//
// Phases follow from the step alone. For `soft_steps` tau is 1; then it falls to `temperature` in
// `anneal_steps`; then choices are hard: drawn for `draw_steps`, and settled after them. Until
// choices are settled a step of training adds Gumbel noise, `noise` times, a function of seed,
// layer, step, row and slot of the block: to W x + b while choices are soft, to z once they are
// hard, and so less of it. Without noise a mixture learns to live on a small part of what attention
// gives, for o_proj can make up for the rest, and its largest part may be nothing. With it a
// mixture is a draw that the temperature smooths. The gradient of a hard draw is
//   dz_m = (1[m = m*] - p_m) <norm(y_m*), dy>,
// that of log p_m* times the result. All else takes the largest p and has the gradient of what it
// computes, in which a choice is constant; W and b have none, and no choice has a price. A norm
// would hide the factor of p from its gradient, so it stands before it, on each branch.
//
// C, the mean over tokens of the part of its past that a token sees by p, is free up to a budget,
// and costs `price` nats for each whole attention beyond. So a layer buys what is worth more to the
// loss than its price, and a layer to which it is worth less stays at the budget. A square would
// ask less the closer C comes, and a multiplier that learns would be a state to resume. While
// choices are soft all is free, for attention is worth nothing before it has learned; in the anneal
// the budget falls from all to `budget`.
#include <algorithm>
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "kernels/delta/delta.h"
#include "kernels/experts/routing.h"
#include "kernels/linear/linear.h"
#include "kernels/selection/block_routes.h"
#include "layers/choice.h"
#include "layers/recurrent.h"
#include "layers/selection.h"

namespace weft::layers {
namespace {

using autograd::apply;
using autograd::reshape;
using kernels::kRoutes;

// The linear path: a state for each head, gates of its own, norm and output gate.
class LinearPath {
 public:
  LinearPath(const Spec& spec, bool delta, int64_t H, int64_t K, double eps, const Builder& b)
      : H_(H), K_(K), g_(b.within("g_proj"), spec.width, H * K, spec.init) {
    if (delta) {
      beta_.emplace(b.within("b_proj"), spec.width, H, spec.init);
      a_.emplace(b.within("a_proj"), spec.width, H, spec.init);
      decay_.emplace(b, H, 0.01, 16);
    } else {
      gk_.emplace(b.within("gk_proj"), spec.width, H, spec.init, /*bias=*/true);
    }
    norm_.emplace(b.within("linear_norm"), K, eps);
  }

  Var operator()(const Var& x, const HeadProjections::Result& own, const Context& c) const {
    return (*norm_)(decay_ ? delta(x, own, c) : gated(x, own, c), heads(g_(x), H_));
  }

  double flops() const {
    const double K = static_cast<double>(K_);
    const auto of = decay_ ? kernels::Delta::flops(K, K) : kernels::Linear::flops(K, K);
    return static_cast<double>(H_) * of.forward;
  }

 private:
  Var gated(const Var& x, const HeadProjections::Result& own, const Context& c) const {
    const Var g = autograd::scale(activation(wide((*gk_)(x)), "logsigmoid"), 1 / kGateTemperature);
    return recurrence<kernels::Linear>(
        {.q = own.q, .k = for_each_head(own.k), .v = for_each_head(own.v), .g = g}, {}, c);
  }
  Var delta(const Var& x, const HeadProjections::Result& own, const Context& c) const {
    kernels::Inputs<kernels::Delta, Var> in;
    in.q = l2_norm(own.q);
    in.k = for_each_head(l2_norm(own.k));
    in.v = for_each_head(own.v);
    in.beta = activation(wide((*beta_)(x)), "sigmoid");
    in.g = decay_->log_decay(decay_->step((*a_)(x)));
    return recurrence<kernels::Delta>(in, {}, c);
  }
  // [B, T, Hk, K] to [B, T, H, K]: each query's head has a state of its own.
  Var for_each_head(const Var& x) const {
    const int64_t B = x.size(0), T = x.size(1), Hk = x.size(2);
    if (Hk == H_) return x;
    const Var one = reshape(x, {B, T, Hk, 1, K_});
    const std::vector<Var> copies(static_cast<size_t>(H_ / Hk), one);
    return reshape(autograd::concat(copies, 3), {B, T, H_, K_});
  }

  int64_t H_, K_;
  Linear g_;
  std::optional<Linear> gk_, beta_, a_;
  std::optional<Decay> decay_;
  std::optional<GatedNorm> norm_;
};

class RouterMixer final : public Layer {
 public:
  RouterMixer(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        selection_(spec, t),
        window_(t.integer("window_blocks", kSize, 2)),
        weight_(b.parameter("router.weight", {kRoutes, spec.width}, Init::constant(0), false)),
        bias_(b.parameter("router.bias", {kRoutes}, Init::constant(0), false)),
        choice_(spec, t, b, "router", kRoutes) {
    const std::string linear =
        t.one_of("linear", {"simple_gla", "gated_delta", "none"}, "simple_gla");
    if (linear != "none") {
      linear_.emplace(spec, linear == "gated_delta", heads_.H(), heads_.K(),
                      t.number("norm_eps", kEpsilon, 1e-5), b);
      norm_.emplace(b.within("softmax_norm"), heads_.K(), Norm::Kind::rms, spec.norm_eps);
    } else {
      t.unused("norm_eps", "it has no use with linear = \"none\"; leave it out",
               t.overridden("linear"));
    }
  }

  Var forward(const Var& x, Context& c) const override {
    const auto own = heads_.of(x, c);
    const auto all = heads_.behind_past(own, c, /*window=*/0);
    const int64_t B = x.size(0), T = x.size(1), S = all.k.size(1);
    const Tensor lead = kernels::block_leads(B, T, S, c.state != nullptr, selection_.options(c),
                                             x.value().device());
    const Var scores = wide(product(x, weight_, bias_));
    const Var raw = rows(led(scores, "lead_scores", lead, c)), z = choice_.sharp(raw);
    const Tensor selected = chosen_blocks(all, lead, c);
    if (c.losses && choice_.price() > 0 && !choice_.settled())
      c.losses->push_back(choice_.cost(z, kernels::route_parts(B, T, window_, selection_.options(c),
                                                               z.dtype(), z.value().device())));
    const Var g = choice_.draws(c) ? noise(B, T, z, c) : Var();
    const auto drawn = [&](const Var& x) { return g ? autograd::add(x, g) : x; };
    Var y = c.no_softmax     ? Var(zeros_like(own.q.value()))
            : choice_.hard() ? hard(all, z, drawn(z), selected, c)
                             : soft(all, g ? choice_.sharp(drawn(raw)) : z, selected, c);
    if (linear_ && !c.no_linear) y = autograd::add(y, (*linear_)(x, own, c));
    return heads_.out(y, all.gate);
  }
  Ways ways() const override { return linear_ ? Ways::both : Ways::softmax; }

  // At the budget, or where nothing asks for one with all routes alike.
  double flops_per_token(int64_t T) const override {
    const double H = static_cast<double>(heads_.H()), K = static_cast<double>(heads_.K());
    const double blocks = static_cast<double>(T) / static_cast<double>(2 * selection_.block());
    const double full = static_cast<double>(T + 1) / 2;
    const double keys =
        choice_.price() > 0
            ? choice_.budget() * full
            : (selection_.keys_seen(T, window_) + selection_.keys_seen(T) + full) / 4;
    return H * (kernels::softmax_flops(keys, K, K).forward + 2 * blocks * K) +
           (linear_ ? linear_->flops() : 0);
  }

  void at_step(int64_t step) override { choice_.at_step(step); }
  int64_t form() const override { return choice_.form(); }

 private:
  // What the first token of its block gives, for each token of x [B, T, n]; the state keeps that of
  // the last block.
  static Var led(const Var& x, const char* name, const Tensor& lead, Context& c) {
    const int64_t B = x.size(0), T = x.size(1), n = x.size(2);
    Var from = x;
    if (c.state) {
      const Tensor before = remembered(c, name);
      from = autograd::concat(
          {before ? before : zeros({B, 1, n}, x.dtype(), x.value().device()), x}, 1);
    }
    const Var y = reshape(apply<kernels::PermuteRows>({rows(from), {}}, {lead}).y, x.shape());
    if (c.state) remember(c, name, y.value().slice(1, T - 1, T).clone());
    return y;
  }

  Tensor chosen_blocks(const HeadProjections::Result& x, const Tensor& lead, Context& c) const {
    const autograd::NoGrad no_grad;
    const Tensor q = heads(led(merged(x.q.value()), "lead_q", lead, c), heads_.H()).value();
    kernels::SelectBlocks o = selection_.options(c);
    o.heads = x.k.size(2);
    return kernels::select_blocks(q, selection_.means(x.k.value(), c).value(), q.size(1),
                                  x.k.size(1), o);
  }

  Var attend(const HeadProjections::Result& x, const Tensor& mask, const Context& c) const {
    const Var y = selection_.attend(x, mask, /*by_block=*/true, heads_.scale(), c);
    return norm_ ? (*norm_)(y) : y;
  }

  Var soft(const HeadProjections::Result& x, const Var& drawn, const Tensor& selected,
           const Context& c) const {
    const int64_t R = drawn.size(0);
    const Var p = Choice::probabilities(drawn);
    const auto share = [&](int64_t m) { return reshape(autograd::slice(p, 1, m, m + 1), {R}); };
    Var y = weighed(attend(x, selected, c), share(kernels::kSelectedRoute));
    for (const int64_t m : {kernels::kWindowRoute, kernels::kFullRoute}) {
      Shape shape = selected.shape();
      shape[1] = 1;
      const Tensor mask = empty(shape, Dtype::u8, selected.device());
      take(mask, full({R}, static_cast<double>(m), Dtype::i32, selected.device()), x, c);
      y = autograd::add(y, weighed(attend(x, mask, c), share(m)));
    }
    return y;
  }

  Var hard(const HeadProjections::Result& x, const Var& z, const Var& drawn, const Tensor& mask,
           const Context& c) const {
    const Tensor route = Choice::largest(drawn);
    take(mask, route, x, c);
    const Var y = attend(x, mask, c);
    return choice_.draws(c) ? weighed(y, choice_.factor(z, route)) : y;
  }

  void take(const Tensor& mask, const Tensor& route, const HeadProjections::Result& x,
            const Context& c) const {
    kernels::take_routes(mask, route, x.k.size(1), window_, selection_.options(c));
  }

  // The same for all tokens of a block.
  Var noise(int64_t B, int64_t T, const Var& like, const Context& c) const {
    const int64_t slots = B * ((T + selection_.block() - 1) / selection_.block());
    return choice_.noise(
        slots, kernels::block_slots(B, T, selection_.options(c), like.value().device()), like);
  }

  HeadProjections heads_;
  Selection selection_;
  int64_t window_;
  Var weight_, bias_;
  Choice choice_;
  std::optional<LinearPath> linear_;
  std::optional<Norm> norm_;
};

const RegisteredMixer registered{"router", maker<RouterMixer>()};

}  // namespace
}  // namespace weft::layers
