// What the mixers share that learn to choose among n mechanisms by n logits a row: the phases in
// which a mixture becomes a choice, the noise of training, the gradient of a draw, and the price of
// what is seen beyond a budget. router.cpp has the derivation.
#pragma once

#include "layers/blocks.h"

namespace weft::layers {

class Choice {
 public:
  // Reads soft_steps, anneal_steps, draw_steps, temperature, budget, price and noise. The draws of
  // two mixers with other names differ.
  Choice(const Spec& spec, const TomlTable& t, const Builder& b, const std::string& name,
         int64_t n);

  void at_step(int64_t step);
  int64_t form() const { return settled_ ? 2 : hard_ ? 1 : 0; }
  bool hard() const { return hard_; }
  bool settled() const { return settled_; }
  double budget() const { return budget_; }
  double price() const { return price_; }

  // Logits divided by the temperature.
  Var sharp(const Var& z) const;
  // softmax(z), [R, n].
  static Var probabilities(const Var& z);
  // i32 [R]: of each row.
  static Tensor largest(const Var& z);
  // price max(0, C - free), C the mean of `parts` [R, n] of all rows by softmax(z).
  Var cost(const Var& z, const Tensor& parts) const;
  // Is a row of training drawn? Then noise() is.
  bool draws(const Context& c) const { return c.training && !settled_; }
  // Gumbel's, [R, n]: row i has the numbers of slot[i], of `slots` of them.
  Var noise(int64_t slots, const Tensor& slot, const Var& like) const;
  // One for each row, exactly, with the gradient of log softmax(z) of the route.
  Var factor(const Var& z, const Tensor& route) const;

 private:
  double annealed() const;  // 0 to 1 in the anneal
  double tau() const;
  double free_part() const;  // of what attention sees
  void draw() const;

  std::string name_;
  int64_t n_, soft_steps_, anneal_steps_, draw_steps_;
  double temperature_, budget_, price_, noise_scale_;
  uint64_t seed_;
  int64_t layer_;
  Tensor sharpness_;  // [n], 1 / tau, where recorded work reads it
  Tensor free_;       // [1], minus the part that is free
  Tensor unit_;       // [n, n]
  int64_t step_ = 0;
  bool hard_ = false, settled_ = false;
  double sharpness_now_ = 1, free_now_ = -1;
  mutable Tensor noise_;  // [slots, n] of the step
};

}  // namespace weft::layers
