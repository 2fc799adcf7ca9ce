// The model: embedding, blocks of a mixer and an MLP, final norm, head.
#pragma once

#include "layers/layer.h"

namespace weft::layers {

// One batch as the model wants it. tokens and targets: i32, [B, T]; a target of -100 is not
// counted.
struct Batch {
  Tensor tokens, targets;
  Tensor cu_seqlens;  // i32 [N+1] for packed documents (then B == 1), or absent
};

struct Loss {
  Var total;  // [1]: what is differentiated: mean cross-entropy + z-loss + auxiliary losses
  Tensor cross_entropy;  // [1], nats a labelled token
};

// The states of all layers while text is generated.
struct Generation {
  std::vector<State> states;
  int64_t position = 0;
  int64_t capacity = 0;
  // i32 [1] on the model's device, or absent. Once set, next() takes one token a call, which stands
  // at the position that is read there as the work runs, and writes the states in place: each call
  // is the same work on the same memory, to be recorded and run again. Needs `capacity`.
  Tensor place;
  int64_t bytes() const;
};

// The mixer, the MLP and the place of the norms of each layer, by the names that the recipe gives
// them.
struct LayerNames {
  std::vector<std::string> mixers, mlps, norms;
};
LayerNames layer_names(const TomlTable& recipe);

class Model {
 public:
  // `recipe` is the whole recipe; the tables it reads are [model], [mlp], [moe] and one per name in
  // model.pattern. `vocabulary` comes from the tokenizer. Throws Error with file and line.
  Model(const TomlTable& recipe, int64_t vocabulary, Dtype dtype, Device device, uint64_t seed);
  ~Model();
  Model(Model&&) noexcept;

  Loss loss(const Batch& batch) const;
  // Logits of every position [B, T, vocabulary], without recording.
  Tensor logits(const Tensor& tokens, const Tensor& cu_seqlens = {}) const;
  // Feeds tokens [1, n] on from what the generation has seen; logits of the last one, [vocabulary].
  Tensor next(const Tensor& tokens, Generation& generation) const;

  // --- For a student that learns of this model, or this model as a student -----------------------

  // What each layer's mixer reads and gives, without recording.
  std::vector<Mixed> mixed(const Batch& batch) const;
  // The mixer of one layer on x [B, T, D]; its auxiliary losses are appended.
  Var mix(size_t layer, const Var& x, const Batch& batch, std::vector<Var>& losses) const;
  // What the head reads, [B T, D]; auxiliary losses are appended.
  Var states(const Batch& batch, std::vector<Var>& losses) const;
  const Var& head() const;  // [vocabulary, D]
  double softcap() const;   // of the logits; 0: none

  // Evaluations from now on show what the model is without one way of its mixers.
  void leave_out(bool softmax, bool linear) { no_softmax_ = softmax, no_linear_ = linear; }
  // Has it mixers of both ways, in one layer or in several?
  bool has_both_ways() const;

  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  int64_t context() const { return context_; }
  // The most tokens of a text that can be fed: the context where positions are learned, what the
  // layers say, else as many as 32 bits number.
  int64_t longest_text() const;
  // Says that `step` optimizer steps were taken: before a step of training, and before the model is
  // used as it was after them.
  void at_step(int64_t step);
  // A number of the operations that a step runs now: Layer::form() of all layers.
  int64_t form() const;
  int64_t vocabulary() const { return vocabulary_; }
  int64_t width() const { return width_; }
  // Forward FLOPs a token at the context's length: 2 a parameter met, plus the mixers' own.
  double flops_per_token() const;
  int64_t parameter_count() const;
  int64_t active_parameter_count() const;

 private:
  Tensor step(const Tensor& token, Generation& generation) const;
  Context context_of(const Batch& batch, std::vector<Var>* losses) const;

  struct Parts;
  std::unique_ptr<Parts> parts_;
  std::vector<Parameter> parameters_;
  int64_t width_ = 0, context_ = 0, vocabulary_ = 0;
  bool no_softmax_ = false, no_linear_ = false;
};

}  // namespace weft::layers
