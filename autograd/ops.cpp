// Each operation is one node type: forward, then its gradient beneath it.
#include "autograd/ops.h"

#include <functional>

#include "kernels/rows/pointwise.h"

namespace weft::autograd {
namespace {

// A node whose gradient is a function made on the spot. What it captures is what it keeps.
struct FunctionNode final : Node {
  using Node::Node;
  std::function<std::vector<Tensor>(const Tensor& dy)> gradient;

  std::vector<Tensor> backward(std::vector<Tensor> dy) override {
    require(static_cast<bool>(gradient), "backward: the tape was spent by an earlier backward()");
    return gradient(dy[0]);
  }
  void release() override { gradient = nullptr; }
};

struct ReshapeNode final : Node {
  ReshapeNode() : Node("reshape") {}
  Shape before;

  std::vector<Tensor> backward(std::vector<Tensor> dy) override { return {dy[0].reshape(before)}; }
  void release() override {}
  bool only_reshapes() const override { return true; }
};

Var record(const char* name, const std::vector<Var>& inputs, Tensor value,
           std::function<std::vector<Tensor>(const Tensor&)> gradient) {
  if (finite_checked()) check_finite(value, name, "the result");
  if (!records(inputs)) return Var(std::move(value));
  const auto node = std::make_shared<FunctionNode>(name);
  node->gradient = std::move(gradient);
  for (const Var& v : inputs) node->inputs.emplace_back(v);
  return Var::made_by(node, 0, std::move(value));
}

}  // namespace

Var reshape(const Var& x, const Shape& shape) {
  Tensor value = x.value().reshape(shape);
  if (!records({x})) return Var(std::move(value));
  const auto node = std::make_shared<ReshapeNode>();
  node->before = x.shape();
  node->inputs.emplace_back(x);
  return Var::made_by(node, 0, std::move(value));
}

Var transpose(const Var& x, int a, int b) {
  return record("transpose", {x}, x.value().transpose(a, b),
                [a, b](const Tensor& dy) { return std::vector{dy.transpose(a, b)}; });
}

Var slice(const Var& x, int dim, int64_t begin, int64_t end) {
  const Shape before = x.shape();
  return record("slice", {x}, x.value().slice(dim, begin, end),
                [before, dim, begin, end](const Tensor& dy) {
                  const Tensor dx = zeros(before, dy.dtype(), dy.device());
                  dx.slice(dim, begin, end).copy_from(dy);
                  return std::vector{dx};
                });
}

Var concat(const std::vector<Var>& parts, int dim) {
  require(!parts.empty(), "concat: nothing to join");
  Shape shape = parts[0].shape();
  shape[dim] = 0;
  std::vector<int64_t> sizes;
  for (const Var& p : parts) {
    Shape other = p.shape();
    sizes.push_back(other[dim]);
    shape[dim] += other[dim];
    other[dim] = shape[dim];
    require(other == shape, "concat along ", dim, ": ", p.shape(), " does not fit ",
            parts[0].shape());
  }
  const Tensor out = empty(shape, parts[0].dtype(), parts[0].value().device());
  int64_t at = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    out.slice(dim, at, at + sizes[i]).copy_from(parts[i].value());
    at += sizes[i];
  }
  return record("concat", parts, out, [sizes, dim](const Tensor& dy) {
    std::vector<Tensor> dx;
    int64_t begin = 0;
    for (const int64_t size : sizes) {
      dx.push_back(dy.slice(dim, begin, begin + size));
      begin += size;
    }
    return dx;
  });
}

namespace {

// Outputs are views of x; the gradient of x is put together from theirs.
struct SplitNode final : Node {
  SplitNode() : Node("split") {}
  Shape shape;
  int dim = 0;
  std::vector<int64_t> sizes;

  std::vector<Tensor> backward(std::vector<Tensor> dy) override {
    Tensor like;
    for (const Tensor& d : dy)
      if (d) like = d;
    const Tensor dx = empty(shape, like.dtype(), like.device());
    int64_t at = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const Tensor part = dx.slice(dim, at, at + sizes[i]);
      if (dy[i])
        part.copy_from(dy[i]);
      else
        part.zero();
      dy[i] = {};
      at += sizes[i];
    }
    return {dx};
  }
  void release() override {}
};

}  // namespace

std::vector<Var> split(const Var& x, int dim, const std::vector<int64_t>& sizes) {
  std::shared_ptr<SplitNode> node;
  if (records({x})) {
    node = std::make_shared<SplitNode>();
    node->shape = x.shape();
    node->dim = dim;
    node->sizes = sizes;
    node->outputs = static_cast<int>(sizes.size());
    node->inputs.emplace_back(x);
  }
  std::vector<Var> parts;
  int64_t at = 0;
  for (const int64_t size : sizes) {
    const Tensor part = x.value().slice(dim, at, at + size);
    at += size;
    parts.push_back(node ? Var::made_by(node, static_cast<int>(parts.size()), part) : Var(part));
  }
  require(at == x.size(dim), "split: sizes add up to ", at, ", the dimension has ", x.size(dim));
  return parts;
}

Var add(const Var& a, const Var& b) {
  require(a.shape() == b.shape(), "add: ", a.shape(), " and ", b.shape());
  return record("add", {a, b}, kernels::added(a.value(), b.value()), [](const Tensor& dy) {
    return std::vector{dy, dy};
  });
}

Var multiply(const Var& a, const Var& b) {
  require(a.shape() == b.shape(), "multiply: ", a.shape(), " and ", b.shape());
  const Kept ka = a.value(), kb = b.value();
  return record("multiply", {a, b}, kernels::multiplied(a.value(), b.value()),
                [ka, kb](const Tensor& dy) {
                  return std::vector{kernels::multiplied(dy, kb.get("multiply")),
                                     kernels::multiplied(dy, ka.get("multiply"))};
                });
}

Var scale(const Var& x, double factor) {
  return record("scale", {x}, kernels::scaled(x.value(), factor),
                [factor](const Tensor& dy) { return std::vector{kernels::scaled(dy, factor)}; });
}

Var cast(const Var& x, Dtype dtype) {
  if (x.dtype() == dtype) return x;
  const Dtype before = x.dtype();
  return record("cast", {x}, x.value().to(dtype),
                [before](const Tensor& dy) { return std::vector{dy.to(before)}; });
}

Var multiply_along(const Var& x, const Var& w, int dim) {
  const Kept kx = x.value(), kw = w.value();
  return record("multiply_along", {x, w}, kernels::multiplied_along(x.value(), w.value(), dim),
                [kx, kw, dim](const Tensor& dy) {
                  const Tensor &xs = kx.get("multiply_along"), &ws = kw.get("multiply_along");
                  return std::vector{kernels::multiplied_along(dy, ws, dim),
                                     kernels::reduced_to(dy, xs, dim, ws.dtype())};
                });
}

Var add_along(const Var& x, const Var& b, int dim) {
  const Dtype dtype = b.dtype();
  return record("add_along", {x, b}, kernels::added_along(x.value(), b.value(), dim),
                [dim, dtype](const Tensor& dy) {
                  return std::vector{dy, kernels::reduced_to(dy, {}, dim, dtype)};
                });
}

Var sum(const Var& x) {
  const Shape shape = x.shape();
  const Tensor total = kernels::reduced_to(x.value().reshape({1, -1}), {}, 0, x.dtype());
  return record("sum", {x}, total, [shape](const Tensor& dy) {
    // The one number, repeated.
    const Shape still(std::vector<int64_t>(static_cast<size_t>(shape.dims()), 0));
    return std::vector{dy.as_strided(shape, still, 0).contiguous()};
  });
}

}  // namespace weft::autograd
