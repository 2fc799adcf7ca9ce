// Variables and the tape.
// A Var is a handle on a tensor and on what made it. Each differentiable operation leaves a Node
// that holds what its backward pass needs; backward() visits the nodes from the last made to the
// first, frees each as it passes, and adds up gradients in the leaves (parameters, inputs of a
// check).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace weft::autograd {

struct Node;

class Var {
 public:
  Var() = default;  // absent
  // A constant. Implicit: a Tensor may stand wherever a Var is expected.
  Var(Tensor value);
  // A leaf whose gradient backward() adds up.
  static Var leaf(Tensor value);

  bool defined() const { return body_ != nullptr; }
  explicit operator bool() const { return defined(); }
  const Tensor& value() const;
  const Shape& shape() const { return value().shape(); }
  int64_t size(int dim) const { return value().size(dim); }
  Dtype dtype() const { return value().dtype(); }
  bool requires_grad() const;

  // Of a leaf: the sum of the gradients since zero_grad(), f32 where the leaf is bf16; undefined
  // before the first.
  const Tensor& grad() const;
  // Sets the gradient to zero, allocating it at first: so its memory is there from the start.
  void zero_grad() const;
  void drop_grad() const;
  // Gives a leaf's gradient its place; f32 where the leaf is bf16. Its numbers are the caller's.
  void set_grad(Tensor place) const;
  // The same value, cut off from what made it.
  Var detach() const;

  // For operations: output `index` of `node`.
  static Var made_by(std::shared_ptr<Node> node, int index, Tensor value);

 private:
  friend struct Edge;
  friend void backward(const std::vector<std::pair<Var, Tensor>>&);
  struct Body;
  std::shared_ptr<Body> body_;
};

// Where a gradient goes: into an output slot of an earlier node, or into a leaf. Empty for
// constants.
struct Edge {
  Edge() = default;
  explicit Edge(const Var& from);
  std::shared_ptr<Node> node;
  int index = 0;
  std::shared_ptr<Var::Body> leaf;
  bool wanted() const { return node || leaf; }
  // On a GPU: where a leaf's gradient is summed in f32, for an operation that can add to it. Else
  // absent.
  Tensor sum() const;
  // On a GPU, during backward(): the gradient that has come in so far for the value this edge leads
  // to, in that value's shape as the operation took it, where nobody else holds it. It is taken
  // out: who adds its own part to it hands it back as this edge's gradient. Else absent.
  Tensor take_flow(const Tensor& value) const;
};

// Takes `gradient` out where another, of a tensor like `value`, may be written to its memory: on a
// GPU, and where nobody else holds it. Else absent, and `gradient` stays.
Tensor take_gradient(Tensor& gradient, const Tensor& value);

// A tensor kept for backward, with its version: get() throws Error if it was changed in place
// since.
class Kept {
 public:
  Kept() = default;
  Kept(Tensor t) : tensor_(std::move(t)), version_(tensor_.version()) {}
  const Tensor& get(const std::string& operation) const;

 private:
  Tensor tensor_;
  uint64_t version_ = 0;
};

// One step of the tape.
struct Node {
  explicit Node(std::string name);
  virtual ~Node();
  // Gradients of the outputs (absent ones are zero) to gradients of the inputs, one per edge; an
  // entry may be absent where the edge is not wanted or the gradient is zero.
  virtual std::vector<Tensor> backward(std::vector<Tensor> dy) = 0;
  // Drops what was kept for backward.
  virtual void release() = 0;
  // Is its backward a reshape of the gradient, and nothing else?
  virtual bool only_reshapes() const { return false; }

  std::string name;    // the operation
  std::string owner;   // the part of the model that made it (core/allocator.h, OwnerScope)
  uint64_t order = 0;  // grows with every node made
  int outputs = 1;
  std::vector<Edge> inputs;
  std::vector<Tensor> flow;  // gradients that have come in so far, during backward()
};

// True where nodes are recorded.
bool grad_enabled();

// Records nothing while it lives.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// While it lives, every result of an operation and every gradient is checked; the first that is not
// finite throws Error naming the operation and its owner.
class FiniteCheck {
 public:
  FiniteCheck();
  ~FiniteCheck();
  FiniteCheck(const FiniteCheck&) = delete;
  FiniteCheck& operator=(const FiniteCheck&) = delete;
};
void check_finite(const Tensor& t, const std::string& operation, const char* what);
bool finite_checked();
bool all_finite(const Tensor& t);

// Should an operation on these inputs be recorded?
bool records(const std::vector<Var>& inputs);

// Gradients of the loss (one element) with respect to every leaf it came from. The tape is spent
// afterwards: a second call throws Error.
void backward(const Var& loss);
// The same with given gradients of several results.
void backward(const std::vector<std::pair<Var, Tensor>>& results);

// Runs `block` without keeping its inner activations; backward runs it again. The results are the
// same to the bit. Leaves that `block` captures (parameters) get their gradients as always.
std::vector<Var> recompute(const std::function<std::vector<Var>(const std::vector<Var>&)>& block,
                           const std::vector<Var>& inputs);

}  // namespace weft::autograd
