// A student that learns of a teacher: the losses of the stages of [distill].
// Sources: arXiv:1503.02531 (matching with a temperature), 2408.10189 and 2505.03005 (alignment).
#pragma once

#include <memory>
#include <optional>

#include "train/stages.h"
#include "train/teacher.h"

namespace weft::train {

// Mean square of y - target over the mean square of the target; y, target of one shape.
autograd::Var alignment(const autograd::Var& y, const Tensor& target);

// What a head reads [R, D], its matrix [V, D], and the soft cap of its logits (0: none).
struct HeadInput {
  autograd::Var x, weight;
  double softcap = 0;
};
// The mean over rows of KL(p || q) t^2: p = softmax(logits / t) of the teacher, q that of the
// student. No more than `most` logits of each exist at a time (or a row of them), in f32 at least.
autograd::Var divergence(const HeadInput& student, const HeadInput& teacher, double temperature,
                         int64_t most = int64_t{1} << 22);

class Distillation {
 public:
  // Opens the recipe's teacher. Throws Error that says what differs where it does not fit.
  // A plan reads no numbers of it. `student` outlives this.
  Distillation(const Recipe& recipe, const layers::Model& student, bool planned = false);

  // Throws Error where tokens of the data are others than the teacher's.
  void require_tokens(const std::string& ours) const;
  const std::string& hash() const { return hash_; }  // of the teacher's parameters
  const std::string& path() const { return path_; }
  layers::Model& teacher() const { return *model_; }

  // The loss of a step of that stage. What is reported is it without auxiliary losses.
  layers::Loss loss(const layers::Batch& batch, const Stage& stage) const;

 private:
  layers::Loss align(const layers::Batch& batch) const;
  layers::Loss match(const layers::Batch& batch) const;

  const layers::Model& student_;
  std::string path_, hash_, tokens_;
  std::unique_ptr<layers::Model> model_;
  std::vector<size_t> changed_;  // layers whose mixer is another than the teacher's
  double temperature_;
};

// The loss of a step of `stage`, of a model that may have a teacher.
layers::Loss loss_of(const layers::Model& model, const Distillation* distillation,
                     const layers::Batch& batch, const Stage& stage);

}  // namespace weft::train
