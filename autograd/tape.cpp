// backward() keeps a heap of nodes by the order in which they were made: when a node comes up, all
// that used its outputs have been visited.
#include "autograd/tape.h"

#include "autograd/leaves.h"

#include <atomic>
#include <cmath>
#include <queue>

#include "core/parallel.h"
#include "core/trace.h"

namespace weft::autograd {

struct Var::Body {
  Tensor value;
  Tensor grad;
  bool leaf = false;
  std::shared_ptr<Node> node;
  int index = 0;
};

namespace {

thread_local bool recording = true;
thread_local int finite_checks = 0;
std::atomic<uint64_t> nodes_made{0};

// a += b without writing into memory that others hold.
void add_into(Tensor& a, const Tensor& b) {
  if (!a) {
    a = b;
    return;
  }
  if (a.use_count() > 1) a = a.clone();
  a.add_from(b);
}

// A node's inputs without recursion: a long chain of nodes must not overflow the stack.
void unlink(std::vector<Edge>& edges) {
  std::vector<std::shared_ptr<Node>> open;
  for (Edge& e : edges)
    if (e.node) open.push_back(std::move(e.node));
  edges.clear();
  while (!open.empty()) {
    const std::shared_ptr<Node> node = std::move(open.back());
    open.pop_back();
    if (node.use_count() > 1) continue;
    for (Edge& e : node->inputs)
      if (e.node) open.push_back(std::move(e.node));
    node->inputs.clear();
  }
}

}  // namespace

Var::Var(Tensor value) {
  if (!value.defined()) return;
  body_ = std::make_shared<Body>();
  body_->value = std::move(value);
}

Var Var::leaf(Tensor value) {
  require(value.defined(), "a leaf needs a tensor");
  Var v(std::move(value));
  v.body_->leaf = true;
  return v;
}

Var Var::made_by(std::shared_ptr<Node> node, int index, Tensor value) {
  Var v(std::move(value));
  v.body_->node = std::move(node);
  v.body_->index = index;
  return v;
}

const Tensor& Var::value() const {
  static const Tensor absent;
  return body_ ? body_->value : absent;
}
bool Var::requires_grad() const { return body_ && (body_->leaf || body_->node); }
const Tensor& Var::grad() const {
  static const Tensor absent;
  return body_ ? body_->grad : absent;
}
void Var::zero_grad() const {
  require(body_ && body_->leaf, "zero_grad: not a leaf");
  if (!body_->grad) {
    const Dtype t = dtype() == Dtype::bf16 ? Dtype::f32 : dtype();
    body_->grad = empty(shape(), t, body_->value.device());
  }
  body_->grad.zero();
}
void Var::drop_grad() const {
  if (body_) body_->grad = {};
}
void Var::set_grad(Tensor place) const {
  require(body_ && body_->leaf && place.shape() == shape(), "set_grad: not a leaf's gradient");
  body_->grad = std::move(place);
}
Var Var::detach() const { return Var(value()); }

Edge::Edge(const Var& from) {
  if (!from.body_) return;
  if (from.body_->leaf) leaf = from.body_;
  node = from.body_->node;
  index = from.body_->index;
}

void move_value(const Var& var, const Tensor& place) {
  const Edge to(var);
  require(to.leaf && place.shape() == var.shape() && place.dtype() == var.dtype(),
          "move_value: not a place for this leaf");
  place.copy_from(var.value());
  to.leaf->value = place;
}

Tensor Edge::sum() const {
  if (!leaf || !leaf->grad || leaf->grad.dtype() != Dtype::f32) return {};
  return leaf->grad.device().takes_cuda_forms() ? leaf->grad : Tensor();
}

Tensor Edge::take_flow(const Tensor& value) const {
  const Edge* to = this;
  while (to->node && to->node->flow.empty() && to->node->only_reshapes()) to = &to->node->inputs[0];
  if (!to->node || to->node->flow.empty()) return {};
  return take_gradient(to->node->flow[static_cast<size_t>(to->index)], value);
}

Tensor take_gradient(Tensor& gradient, const Tensor& value) {
  if (!value.device().takes_cuda_forms() || !gradient || gradient.use_count() > 1 ||
      gradient.dtype() != value.dtype() || !gradient.is_contiguous())
    return {};
  return std::exchange(gradient, {}).reshape(value.shape());
}

const Tensor& Kept::get(const std::string& operation) const {
  require(tensor_.version() == version_, operation, ": a tensor of shape ", tensor_.shape(),
          " kept for the backward pass was changed in place after the forward pass; "
          "clone it before changing it");
  return tensor_;
}

Node::Node(std::string name_of_operation)
    : name(std::move(name_of_operation)), owner(current_owner()), order(nodes_made++) {}

Node::~Node() { unlink(inputs); }

bool grad_enabled() { return recording; }
NoGrad::NoGrad() : before_(recording) { recording = false; }
NoGrad::~NoGrad() { recording = before_; }

FiniteCheck::FiniteCheck() { ++finite_checks; }
FiniteCheck::~FiniteCheck() { --finite_checks; }
bool finite_checked() { return finite_checks > 0; }

bool all_finite(const Tensor& t) {
  if (!t || t.is_meta() || !is_float(t.dtype())) return true;
  const Tensor c = t.to(kCpu).contiguous();
  return for_dtype(c.dtype(), [&]<class Real>() {
    // Not all through float: 1e300 is a number.
    using Tested = std::conditional_t<std::is_same_v<Real, double>, double, float>;
    const Real* x = c.data<Real>();
    bool finite = true;
    for (int64_t i = 0; i < c.numel(); ++i) finite &= std::isfinite(static_cast<Tested>(x[i]));
    return finite;
  });
}

void check_finite(const Tensor& t, const std::string& operation, const char* what) {
  require(all_finite(t), what, " of ", operation, " in ", current_owner(), " is not finite");
}

bool records(const std::vector<Var>& inputs) {
  if (!recording) return false;
  for (const Var& v : inputs)
    if (v.requires_grad()) return true;
  return false;
}

void backward(const Var& loss) {
  require(loss.defined() && loss.value().numel() == 1, "backward: the loss must be one number");
  backward({{loss, full(loss.shape(), 1, loss.dtype(), loss.value().device())}});
}

void backward(const std::vector<std::pair<Var, Tensor>>& results) {
  const NoGrad no_grad;
  const auto later = [](const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) {
    return a->order < b->order;
  };
  std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, decltype(later)>
      open(later);
  const auto send = [&](const Edge& to, const Tensor& gradient) {
    if (to.leaf) {
      if (to.leaf->grad)
        to.leaf->grad.add_from(gradient);
      else
        to.leaf->grad = gradient.use_count() > 1 ? gradient.clone() : gradient.contiguous();
    }
    if (!to.node) return;
    auto& flow = to.node->flow;
    if (flow.empty()) {
      flow.resize(static_cast<size_t>(to.node->outputs));
      open.push(to.node);
    }
    add_into(flow[static_cast<size_t>(to.index)], gradient);
  };
  // A handle of its own beside the caller's: so nothing is ever summed into the memory handed in.
  for (const auto& [result, gradient] : results) send(Edge(result), Tensor(gradient));

  while (!open.empty()) {
    const std::shared_ptr<Node> node = open.top();
    open.pop();
    const OwnerScope owner(node->owner);
    const TraceScope trace(node->name);
    std::vector<Tensor> dx = node->backward(std::exchange(node->flow, {}));
    node->release();
    std::vector<Edge> edges = std::exchange(node->inputs, {});
    for (size_t i = 0; i < dx.size(); ++i) {
      if (!dx[i] || !edges[i].wanted()) continue;
      if (finite_checked()) check_finite(dx[i], node->name, "the gradient");
      const Tensor gradient = std::move(dx[i]);
      dx[i] = {};
      send(edges[i], gradient);
    }
    unlink(edges);
  }
}

namespace {

struct RecomputeNode final : Node {
  using Node::Node;
  std::function<std::vector<Var>(const std::vector<Var>&)> block;
  std::vector<Kept> kept;

  std::vector<Tensor> backward(std::vector<Tensor> dy) override {
    require(static_cast<bool>(block), "backward: the tape was spent by an earlier backward()");
    std::vector<Var> leaves;
    for (size_t i = 0; i < kept.size(); ++i) {
      const Tensor& t = kept[i].get(name);
      leaves.push_back(inputs[i].wanted() ? Var::leaf(t) : Var(t));
    }
    std::vector<std::pair<Var, Tensor>> results;
    {
      const bool before = std::exchange(recording, true);
      const std::vector<Var> y = block(leaves);
      recording = before;
      for (size_t i = 0; i < y.size(); ++i)
        if (dy[i]) results.emplace_back(y[i], std::move(dy[i]));
    }
    autograd::backward(results);
    std::vector<Tensor> dx;
    for (const Var& leaf : leaves) {
      dx.push_back(leaf.grad());
      leaf.drop_grad();
    }
    return dx;
  }
  void release() override {
    block = nullptr;
    kept.clear();
  }
};

}  // namespace

std::vector<Var> recompute(const std::function<std::vector<Var>(const std::vector<Var>&)>& block,
                           const std::vector<Var>& inputs) {
  if (!grad_enabled()) return block(inputs);
  const auto node = std::make_shared<RecomputeNode>("recompute");
  node->block = block;
  for (const Var& v : inputs) {
    node->kept.emplace_back(v.value());
    node->inputs.emplace_back(v);
  }
  std::vector<Var> made;
  {
    const NoGrad no_grad;
    made = block(inputs);
  }
  node->outputs = static_cast<int>(made.size());
  std::vector<Var> out;
  for (size_t i = 0; i < made.size(); ++i)
    out.push_back(Var::made_by(node, static_cast<int>(i), made[i].value()));
  return out;
}

}  // namespace weft::autograd
