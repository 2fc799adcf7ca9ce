// Each operation is one node type: forward, then its gradient beneath it.
#include "autograd/ops.h"

#include <functional>

#include "core/parallel.h"

namespace weft::autograd {
namespace {

constexpr int64_t kGrain = 1 << 14;

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

Var record(const char* name, const std::vector<Var>& inputs, Tensor value,
           std::function<std::vector<Tensor>(const Tensor&)> gradient) {
  if (finite_checked()) check_finite(value, name, "the result");
  if (!records(inputs)) return Var(std::move(value));
  const auto node = std::make_shared<FunctionNode>(name);
  node->gradient = std::move(gradient);
  for (const Var& v : inputs) node->inputs.emplace_back(v);
  return Var::made_by(node, 0, std::move(value));
}

template <class T, class From>
T number(From value) {
  if constexpr (std::is_same_v<T, bf16>)
    return bf16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

// out[i] = f(a[i], b[i]) over contiguous tensors.
template <class F>
Tensor elementwise(const Tensor& a_in, const Tensor& b_in, const F& f) {
  const Tensor a = a_in.contiguous(), b = b_in.contiguous();
  const Tensor out = empty(a.shape(), a.dtype(), a.device());
  if (out.is_meta()) return out;
  for_dtype(a.dtype(), [&]<class T>() {
    const T* x = a.data<T>();
    const T* y = b.data<T>();
    T* z = out.data<T>();
    parallel_ranges(a.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) z[i] = number<T>(f(x[i], y[i]));
    });
  });
  return out;
}

// Sizes before, of and after a dimension.
struct Around {
  int64_t before = 1, size = 1, after = 1;
};
Around around(const Shape& shape, int dim) {
  Around a;
  const int at = dim < 0 ? dim + shape.dims() : dim;
  for (int i = 0; i < shape.dims(); ++i)
    (i < at ? a.before : i == at ? a.size : a.after) *= shape[i];
  return a;
}

// out = f(x, w[along dim])
template <class F>
Tensor along(const Tensor& x_in, const Tensor& w_in, int dim, const F& f) {
  const Tensor x = x_in.contiguous(), w = w_in.contiguous();
  const Around s = around(x.shape(), dim);
  require(w.shape() == Shape{s.size}, "along dimension ", dim, " of ", x.shape(),
          ": the vector has shape ", w.shape());
  const Tensor out = empty(x.shape(), x.dtype(), x.device());
  if (out.is_meta()) return out;
  for_dtype(x.dtype(), [&]<class T>() {
    parallel_ranges(s.before * s.size, std::max<int64_t>(1, kGrain / s.after),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t r = begin; r < end; ++r) {
                        const T factor = w.data<T>()[r % s.size];
                        const T* from = x.data<T>() + r * s.after;
                        T* to = out.data<T>() + r * s.after;
                        for (int64_t i = 0; i < s.after; ++i) to[i] = number<T>(f(from[i], factor));
                      }
                    });
  });
  return out;
}

// The sum of a * b (or of a, where b is absent) over all but one dimension; in f64 or f32 partial sums
// of fixed pieces, so that the result does not depend on threads.
Tensor reduce_to(const Tensor& a_in, const Tensor& b_in, int dim) {
  const Tensor a = a_in.contiguous(), b = b_in ? b_in.contiguous() : Tensor();
  const Around s = around(a.shape(), dim);
  const Tensor out = empty({s.size}, a.dtype(), a.device());
  if (out.is_meta()) return out;
  for_dtype(a.dtype(), [&]<class T>() {
    parallel_ranges(s.size, 16, [&](int64_t begin, int64_t end) {
      std::vector<double> total(static_cast<size_t>(end - begin), 0.0);
      for (int64_t r = 0; r < s.before; ++r)
        for (int64_t j = begin; j < end; ++j) {
          const int64_t at = (r * s.size + j) * s.after;
          double part = 0;
          for (int64_t i = at; i < at + s.after; ++i)
            part += static_cast<double>(a.data<T>()[i]) *
                    (b ? static_cast<double>(b.data<T>()[i]) : 1.0);
          total[static_cast<size_t>(j - begin)] += part;
        }
      for (int64_t j = begin; j < end; ++j)
        out.data<T>()[j] = number<T>(total[static_cast<size_t>(j - begin)]);
    });
  });
  return out;
}

}  // namespace

Var reshape(const Var& x, const Shape& shape) {
  const Shape before = x.shape();
  return record("reshape", {x}, x.value().reshape(shape),
                [before](const Tensor& dy) { return std::vector{dy.reshape(before)}; });
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
  return record("add", {a, b},
                elementwise(a.value(), b.value(), [](auto x, auto y) { return x + y; }),
                [](const Tensor& dy) {
                  return std::vector{dy, dy};
                });
}

Var multiply(const Var& a, const Var& b) {
  require(a.shape() == b.shape(), "multiply: ", a.shape(), " and ", b.shape());
  const auto times = [](auto x, auto y) { return x * y; };
  const Kept ka = a.value(), kb = b.value();
  return record("multiply", {a, b}, elementwise(a.value(), b.value(), times),
                [ka, kb, times](const Tensor& dy) {
                  return std::vector{elementwise(dy, kb.get("multiply"), times),
                                     elementwise(dy, ka.get("multiply"), times)};
                });
}

Var scale(const Var& x, double factor) {
  const auto scaled = [factor](const Tensor& t) {
    return elementwise(t, t, [factor](auto a, auto) {
      return number<decltype(a)>(static_cast<double>(a) * factor);
    });
  };
  return record("scale", {x}, scaled(x.value()),
                [scaled](const Tensor& dy) { return std::vector{scaled(dy)}; });
}

Var multiply_along(const Var& x, const Var& w, int dim) {
  const auto times = [](auto a, auto b) { return a * b; };
  const Kept kx = x.value(), kw = w.value();
  return record("multiply_along", {x, w}, along(x.value(), w.value(), dim, times),
                [kx, kw, dim, times](const Tensor& dy) {
                  return std::vector{along(dy, kw.get("multiply_along"), dim, times),
                                     reduce_to(dy, kx.get("multiply_along"), dim)};
                });
}

Var add_along(const Var& x, const Var& b, int dim) {
  return record("add_along", {x, b},
                along(x.value(), b.value(), dim, [](auto u, auto v) { return u + v; }),
                [dim](const Tensor& dy) {
                  return std::vector{dy, reduce_to(dy, {}, dim)};
                });
}

Var sum(const Var& x) {
  const Shape shape = x.shape();
  const Tensor total = reduce_to(x.value().reshape({1, -1}), {}, 0);
  return record("sum", {x}, total, [shape](const Tensor& dy) {
    const Tensor dx = empty(shape, dy.dtype(), dy.device());
    if (!dx.is_meta()) dx.fill(dy.item());
    return std::vector{dx};
  });
}

}  // namespace weft::autograd
