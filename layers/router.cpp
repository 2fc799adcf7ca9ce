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
#include <cmath>
#include <optional>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/random.h"
#include "kernels/delta/delta.h"
#include "kernels/experts/routing.h"
#include "kernels/linear/linear.h"
#include "kernels/selection/block_routes.h"
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

// When a choice is soft, and how sharp it is.
class Phases {
 public:
  explicit Phases(const TomlTable& t)
      : soft_(t.integer("soft_steps", kSteps, 1000)),
        anneal_(t.integer("anneal_steps", kSteps, 1000)),
        draw_(t.integer("draw_steps", kSteps, 0)),
        last_(t.number("temperature", Numbers{.least = 0, .most = 1, .above = true}, 0.3)) {}

  bool settled(int64_t step) const { return step >= soft_ + anneal_ + draw_; }
  bool hard(int64_t step) const { return step >= soft_ + anneal_; }
  double tau(int64_t step) const {
    if (step < soft_) return 1;
    if (hard(step)) return last_;
    return std::pow(last_, annealed(step));
  }
  // What is free of what attention sees.
  double budget(int64_t step, double last) const {
    if (step < soft_) return 1;
    return hard(step) ? last : 1 + (last - 1) * annealed(step);
  }

 private:
  static constexpr Integers kSteps{0, 9'999'999'999};

  double annealed(int64_t step) const {
    return static_cast<double>(step - soft_) / static_cast<double>(anneal_);
  }

  int64_t soft_, anneal_, draw_;
  double last_;
};

class RouterMixer final : public Layer {
 public:
  RouterMixer(const Spec& spec, const TomlTable& t, const Builder& b)
      : heads_(spec, t, b),
        selection_(spec, t),
        window_(t.integer("window_blocks", kSize, 2)),
        phases_(t),
        budget_(t.number("budget", {0, 1}, 0.25)),
        price_(t.number("price", kLossWeight, 1)),
        noise_scale_(t.number("noise", {0, 10}, 1)),
        weight_(b.parameter("router.weight", {kRoutes, spec.width}, Init::constant(0), false)),
        bias_(b.parameter("router.bias", {kRoutes}, Init::constant(0), false)),
        seed_(spec.seed),
        layer_(spec.layer),
        sharpness_(b.wide().buffer({kRoutes}, [](int64_t) { return 1.0; })),
        free_(b.wide().buffer({1}, [](int64_t) { return -1.0; })),
        unit_(b.wide().buffer({kRoutes, kRoutes}, [](int64_t i) { return i % 5 == 0; })) {
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
    at_step(0);
  }

  Var forward(const Var& x, Context& c) const override {
    const auto own = heads_.of(x, c);
    const auto all = heads_.behind_past(own, c, /*window=*/0);
    const int64_t B = x.size(0), T = x.size(1), S = all.k.size(1);
    const Tensor lead = kernels::block_leads(B, T, S, c.state != nullptr, selection_.options(c),
                                             x.value().device());
    const Var scores = wide(product(x, weight_, bias_));
    const Var raw = rows(led(scores, "lead_scores", lead, c)), z = sharp(raw);
    const Tensor selected = chosen_blocks(all, lead, c);
    if (c.losses && price_ > 0 && !settled_) c.losses->push_back(cost(z, B, T, c));
    const Var g = c.training && !settled_ ? noise(B, T, z, c) : Var();
    const auto drawn = [&](const Var& x) { return g ? autograd::add(x, g) : x; };
    Var y = c.no_softmax ? Var(zeros_like(own.q.value()))
            : hard_      ? hard(all, z, drawn(z), selected, c)
                         : soft(all, g ? sharp(drawn(raw)) : z, selected, c);
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
        price_ > 0 ? budget_ * full
                   : (selection_.keys_seen(T, window_) + selection_.keys_seen(T) + full) / 4;
    return H * (kernels::softmax_flops(keys, K, K).forward + 2 * blocks * K) +
           (linear_ ? linear_->flops() : 0);
  }

  void at_step(int64_t step) override {
    step_ = step;
    hard_ = phases_.hard(step);
    settled_ = phases_.settled(step);
    set(sharpness_, sharpness_now_, 1 / phases_.tau(step));
    set(free_, free_now_, -phases_.budget(step, budget_));
    if (noise_) draw();
  }
  int64_t form() const override { return settled_ ? 2 : hard_ ? 1 : 0; }

 private:
  // All of a buffer, where recorded work reads it; `now` is what it holds.
  static void set(const Tensor& t, double& now, double value) {
    if (value != now && !t.is_meta()) t.copy_from(full(t.shape(), value, t.dtype()).to(t.device()));
    now = value;
  }

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

  Var sharp(const Var& z) const { return autograd::multiply_along(z, Var(sharpness_), -1); }

  // softmax(z), [R, routes].
  static Var probabilities(const Var& z) {
    kernels::Router::Options o;
    o.top_k = kRoutes;
    o.normalize = false;
    o.forced = true;
    o.index = kernels::column_numbers(z.size(0), kRoutes, z.value().device());
    return apply<kernels::Router>({z}, o).weight;
  }

  Var cost(const Var& z, int64_t B, int64_t T, const Context& c) const {
    const Var p = probabilities(z);
    const Tensor parts =
        kernels::route_parts(B, T, window_, selection_.options(c), p.dtype(), p.value().device());
    const Var mean = autograd::scale(autograd::sum(autograd::multiply(p, Var(parts))),
                                     1 / static_cast<double>(B * T));
    return autograd::scale(activation(autograd::add(mean, Var(free_)), "relu"), price_);
  }

  Var attend(const HeadProjections::Result& x, const Tensor& mask, const Context& c) const {
    const Var y = selection_.attend(x, mask, /*by_block=*/true, heads_.scale(), c);
    return norm_ ? (*norm_)(y) : y;
  }

  Var soft(const HeadProjections::Result& x, const Var& drawn, const Tensor& selected,
           const Context& c) const {
    const int64_t R = drawn.size(0);
    const Var p = probabilities(drawn);
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
    const Tensor route = largest(drawn);
    take(mask, route, x, c);
    const Var y = attend(x, mask, c);
    return c.training && !settled_ ? weighed(y, factor(z, route)) : y;
  }

  void take(const Tensor& mask, const Tensor& route, const HeadProjections::Result& x,
            const Context& c) const {
    kernels::take_routes(mask, route, x.k.size(1), window_, selection_.options(c));
  }

  // i32 [R]: of each row.
  static Tensor largest(const Var& z) {
    const autograd::NoGrad no_grad;
    kernels::Router::Options o;
    o.index = empty({z.size(0), 1}, Dtype::i32, z.value().device());
    apply<kernels::Router>({z.value()}, o);
    return o.index.reshape({-1});
  }

  // One, exactly, with the gradient of log p of the route.
  Var factor(const Var& z, const Tensor& route) const {
    const int64_t R = z.size(0);
    Var slope, one;
    {
      const autograd::NoGrad no_grad;
      slope = autograd::add(apply<kernels::PermuteRows>({Var(unit_), {}}, {route}).y,
                            autograd::scale(probabilities(z), -1));
      one = full({R, 1}, 1, z.dtype(), z.value().device());
    }
    const Var ones = full({1, kRoutes}, 1, z.dtype(), z.value().device());
    const Var s = product(autograd::multiply(slope, z), ones);
    const Var nothing = autograd::add(s, autograd::scale(s.value(), -1));
    return reshape(autograd::add(nothing, one), {R});
  }

  // Gumbel's, [R, routes], the same for all tokens of a block.
  Var noise(int64_t B, int64_t T, const Var& like, const Context& c) const {
    const int64_t rows = B * ((T + selection_.block() - 1) / selection_.block());
    if (!noise_ || noise_.size(0) != rows) {
      noise_ = empty({rows, kRoutes}, like.dtype(), like.value().device());
      draw();
    }
    const Tensor slot = kernels::block_slots(B, T, selection_.options(c), like.value().device());
    return apply<kernels::PermuteRows>({Var(noise_), {}}, {slot}).y;
  }
  void draw() const {
    if (noise_.is_meta() || settled_) return;
    const Random random(seed_, stream_of(concat("router.", layer_, ".", step_)));
    const Tensor drawn = zeros(noise_.shape(), Dtype::f64);
    for (int64_t i = 0; i < drawn.numel() && noise_scale_ > 0; ++i) {
      const double u = random.uniform(static_cast<uint64_t>(i)) + 0x1.0p-54;
      drawn.data<double>()[i] = -std::log(-std::log(u)) * noise_scale_;
    }
    noise_.copy_from(drawn.to(noise_.dtype()).to(noise_.device()));
  }

  HeadProjections heads_;
  Selection selection_;
  int64_t window_;
  Phases phases_;
  double budget_, price_, noise_scale_;
  Var weight_, bias_;
  uint64_t seed_;
  int64_t layer_;
  Tensor sharpness_;  // [routes], 1 / tau, where recorded work reads it
  Tensor free_;       // [1], minus the budget
  Tensor unit_;       // [routes, routes]
  std::optional<LinearPath> linear_;
  std::optional<Norm> norm_;
  int64_t step_ = 0;
  bool hard_ = false, settled_ = false;
  double sharpness_now_ = 1, free_now_ = -1;
  mutable Tensor noise_;  // [B * slots, routes] of the step
};

const RegisteredMixer registered{"router", maker<RouterMixer>()};

}  // namespace
}  // namespace weft::layers
