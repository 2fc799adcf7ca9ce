// apply<M>(): puts any operation of kernels/ on the tape.
//
// Where an operation has M::kSum, its inputs number 0 and M::kResidual count by their sum alone,
// which is output M::kSum if the latter is there. Backward then needs nothing but that sum: the
// tape keeps it in place of both. Their gradients are one tensor; on a GPU the sum's own gradient
// becomes it.
#pragma once

#include <optional>

#include "autograd/tape.h"
#include "autograd/watch.h"
#include "core/allocator.h"
#include "core/trace.h"
#include "kernels/contract/mechanism.h"

namespace weft::autograd {

template <class M>
concept SumsInputs = requires {
  M::kSum;
};

template <class M>
struct KernelNode final : Node {
  KernelNode() : Node(std::string(M::name)) {}
  kernels::Inputs<M, Kept> kept;
  kernels::Inputs<M, bool> wanted{};
  kernels::Options<M> options;
  std::optional<typename M::Saved> saved;
  bool sums = false;  // is M::kSum there?
  Shape first_shape;
  Dtype first_dtype = Dtype::f32;

  std::vector<Tensor> backward(std::vector<Tensor> dy) override {
    require(saved.has_value(), "backward: the tape was spent by an earlier backward()");
    kernels::Inputs<M> x;
    kernels::for_fields([&](Tensor& t, const Kept& k) { t = k.get(name); }, x, kept);
    if (!dy[0]) dy[0] = zeros(first_shape, first_dtype, std::get<0>(x.fields()).device());
    kernels::Outputs<M> dys;
    size_t i = 0;
    kernels::for_fields([&](Tensor& d) { d = std::move(dy[i++]); }, dys);
    kernels::Inputs<M, bool> made = wanted;
    if constexpr (kernels::detail::AddsGradient<M>)
      if (const Tensor sum = inputs[M::kAdded].sum()) {
        kernels::add_gradient<M>(x, options, *saved, dys, sum);
        if (finite_checked()) check_finite(sum, name, "the gradient");
        std::get<M::kAdded>(made.fields()) = false;
      }
    if constexpr (SumsInputs<M>)
      if (std::get<0>(made.fields()) && sums) std::get<M::kResidual>(made.fields()) = false;
    Tensor onto = place(x, made, dys);
    auto dx = kernels::backward<M>(x, options, *saved, std::move(dys), made, std::move(onto));
    std::vector<Tensor> list;
    kernels::for_fields([&](Tensor& d) { list.push_back(std::move(d)); }, dx);
    if constexpr (SumsInputs<M>)
      if (std::get<M::kResidual>(wanted.fields()) && list[0]) list[M::kResidual] = list[0];
    return list;
  }
  void release() override {
    kept = {};
    saved.reset();
    options = {};
  }

 private:
  // What the gradient of input M::kOnto may be added to: taken from where it lies, or absent.
  Tensor place(kernels::Inputs<M>& x, kernels::Inputs<M, bool>& made,
               kernels::Outputs<M>& dy) const {
    if constexpr (kernels::detail::AddsOnto<M>) {
      if (!std::get<M::kOnto>(made.fields())) return {};
      const Tensor& value = std::get<M::kOnto>(x.fields());
      if constexpr (SumsInputs<M>)
        if (sums) return take_gradient(std::get<M::kSum>(dy.fields()), value);
      return inputs[M::kOnto].take_flow(value);
    }
    return {};
  }
};

// The fields that are there, by name.
template <class Fields, size_t N>
kernels::Tensors named(Fields fields, const kernels::Field (&info)[N]) {
  kernels::Tensors list;
  size_t i = 0;
  kernels::for_fields(
      [&](const Tensor& t) {
        if (t) list[info[i].name] = t;
        ++i;
      },
      fields);
  return list;
}

// What a Watch is told of a call of M.
template <class M>
Watched watched(const kernels::Inputs<M>& x, const kernels::Options<M>& options,
                const kernels::Outputs<M>& y) {
  const auto again = [options](const kernels::Tensors& in) {
    kernels::Inputs<M> other;
    size_t i = 0;
    kernels::for_fields(
        [&](Tensor& t) {
          const auto found = in.find(M::kInputs[i++].name);
          if (found != in.end()) t = found->second;
        },
        other);
    return named(kernels::forward<M>(other, options), M::kOutputs);
  };
  return {std::string(M::name), current_owner(), named(x, M::kInputs), named(y, M::kOutputs),
          again};
}

// The forward pass of M on the values of x; recorded if any of x needs a gradient.
template <class M>
kernels::Outputs<M, Var> apply(const kernels::Inputs<M, Var>& in,
                               const kernels::Options<M>& options = {}) {
  auto& x = const_cast<kernels::Inputs<M, Var>&>(in);
  kernels::Inputs<M> values;
  std::vector<Var> list;
  kernels::for_fields(
      [&](Tensor& t, const Var& v) {
        t = v.value();
        list.push_back(v);
      },
      values, x);
  kernels::Outputs<M, Var> out;
  std::shared_ptr<KernelNode<M>> node;
  if (records(list)) node = std::make_shared<KernelNode<M>>();
  if (node) node->saved.emplace();
  const TraceScope trace(M::name.data());
  auto y = kernels::forward<M>(values, options, node ? &*node->saved : nullptr);
  int index = 0;
  kernels::for_fields(
      [&](Var& to, const Tensor& t) {
        if (finite_checked()) check_finite(t, std::string(M::name), "the result");
        to = node && t ? Var::made_by(node, index, t) : Var(t);
        ++index;
      },
      out, y);
  if (const Watch::See* see = watching()) (*see)(watched<M>(values, options, y));
  if (!node) return out;
  node->outputs = index;
  node->options = options;
  node->first_shape = std::get<0>(y.fields()).shape();
  node->first_dtype = std::get<0>(y.fields()).dtype();
  if constexpr (SumsInputs<M>)
    if (const Tensor& sum = std::get<M::kSum>(y.fields())) {
      node->sums = true;
      std::get<0>(values.fields()) = std::get<M::kResidual>(values.fields()) = sum;
    }
  kernels::for_fields([](Kept& k, const Tensor& t) { k = Kept(t); }, node->kept, values);
  kernels::for_fields(
      [&](bool& want, const Var& v) {
        node->inputs.emplace_back(v);
        want = node->inputs.back().wanted();
      },
      node->wanted, x);
  return out;
}

}  // namespace weft::autograd
