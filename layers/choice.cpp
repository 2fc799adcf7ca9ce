#include "layers/choice.h"

#include <cmath>

#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/random.h"
#include "kernels/experts/routing.h"
#include "kernels/selection/block_routes.h"

namespace weft::layers {
namespace {

using autograd::apply;

constexpr Integers kSteps{0, 9'999'999'999};

// All of a buffer, where recorded work reads it; `now` is what it holds.
void set(const Tensor& t, double& now, double value) {
  if (value != now && !t.is_meta()) t.copy_from(full(t.shape(), value, t.dtype()).to(t.device()));
  now = value;
}

}  // namespace

Choice::Choice(const Spec& spec, const TomlTable& t, const Builder& b, const std::string& name,
               int64_t n)
    : name_(name),
      n_(n),
      soft_steps_(t.integer("soft_steps", kSteps, 1000)),
      anneal_steps_(t.integer("anneal_steps", kSteps, 1000)),
      draw_steps_(t.integer("draw_steps", kSteps, 0)),
      temperature_(t.number("temperature", Numbers{.least = 0, .most = 1, .above = true}, 0.3)),
      budget_(t.number("budget", {0, 1}, 0.25)),
      price_(t.number("price", kLossWeight, 1)),
      noise_scale_(t.number("noise", {0, 10}, 1)),
      seed_(spec.seed),
      layer_(spec.layer),
      sharpness_(b.wide().buffer({n}, [](int64_t) { return 1.0; })),
      free_(b.wide().buffer({1}, [](int64_t) { return -1.0; })),
      unit_(b.wide().buffer({n, n}, [n](int64_t i) { return i % (n + 1) == 0; })) {
  at_step(0);
}

void Choice::at_step(int64_t step) {
  step_ = step;
  hard_ = step >= soft_steps_ + anneal_steps_;
  settled_ = step >= soft_steps_ + anneal_steps_ + draw_steps_;
  set(sharpness_, sharpness_now_, 1 / tau());
  set(free_, free_now_, -free_part());
  if (noise_) draw();
}

double Choice::annealed() const {
  return static_cast<double>(step_ - soft_steps_) / static_cast<double>(anneal_steps_);
}

double Choice::tau() const {
  if (step_ < soft_steps_) return 1;
  return hard_ ? temperature_ : std::pow(temperature_, annealed());
}

double Choice::free_part() const {
  if (step_ < soft_steps_) return 1;
  return hard_ ? budget_ : 1 + (budget_ - 1) * annealed();
}

Var Choice::sharp(const Var& z) const { return autograd::multiply_along(z, Var(sharpness_), -1); }

Var Choice::probabilities(const Var& z) {
  kernels::Router::Options o;
  o.top_k = z.size(1);
  o.normalize = false;
  o.forced = true;
  o.index = kernels::column_numbers(z.size(0), z.size(1), z.value().device());
  return apply<kernels::Router>({z}, o).weight;
}

Tensor Choice::largest(const Var& z) {
  const autograd::NoGrad no_grad;
  kernels::Router::Options o;
  o.index = empty({z.size(0), 1}, Dtype::i32, z.value().device());
  apply<kernels::Router>({z.value()}, o);
  return o.index.reshape({-1});
}

Var Choice::cost(const Var& z, const Tensor& parts) const {
  const Var mean = autograd::scale(autograd::sum(autograd::multiply(probabilities(z), Var(parts))),
                                   1 / static_cast<double>(z.size(0)));
  return autograd::scale(activation(autograd::add(mean, Var(free_)), "relu"), price_);
}

Var Choice::factor(const Var& z, const Tensor& route) const {
  const int64_t R = z.size(0);
  Var slope, one;
  {
    const autograd::NoGrad no_grad;
    slope = autograd::add(apply<kernels::PermuteRows>({Var(unit_), {}}, {route}).y,
                          autograd::scale(probabilities(z), -1));
    one = full({R, 1}, 1, z.dtype(), z.value().device());
  }
  const Var ones = full({1, n_}, 1, z.dtype(), z.value().device());
  const Var s = product(autograd::multiply(slope, z), ones);
  const Var nothing = autograd::add(s, autograd::scale(s.value(), -1));
  return autograd::reshape(autograd::add(nothing, one), {R});
}

Var Choice::noise(int64_t slots, const Tensor& slot, const Var& like) const {
  if (!noise_ || noise_.size(0) != slots) {
    noise_ = empty({slots, n_}, like.dtype(), like.value().device());
    draw();
  }
  return apply<kernels::PermuteRows>({Var(noise_), {}}, {slot}).y;
}

void Choice::draw() const {
  if (noise_.is_meta() || settled_) return;
  const Random random(seed_, stream_of(concat(name_, ".", layer_, ".", step_)));
  const Tensor drawn = zeros(noise_.shape(), Dtype::f64);
  for (int64_t i = 0; i < drawn.numel() && noise_scale_ > 0; ++i) {
    const double u = random.uniform(static_cast<uint64_t>(i)) + 0x1.0p-54;
    drawn.data<double>()[i] = -std::log(-std::log(u)) * noise_scale_;
  }
  noise_.copy_from(drawn.to(noise_.dtype()).to(noise_.device()));
}

}  // namespace weft::layers
