// Every operation on the tape: whichever of its inputs need a gradient, and whichever of its
// outputs have one, the gradients are those of the operation itself.
#include "autograd/kernel_op.h"

#include <algorithm>

#include "kernels/attention/attention.h"
#include "kernels/block_sparse/block_sparse.h"
#include "kernels/contract/agreement.h"
#include "kernels/contract/reference.h"
#include "kernels/delta/delta.h"
#include "kernels/experts/routing.h"
#include "kernels/features/cosine_features.h"
#include "kernels/features/forget_gate.h"
#include "kernels/features/random_features.h"
#include "kernels/gated_linear/gated_linear.h"
#include "kernels/kda/kda.h"
#include "kernels/linear/linear.h"
#include "kernels/lookup/embedding.h"
#include "kernels/products/cross_entropy.h"
#include "kernels/products/matmul.h"
#include "kernels/rows/activation.h"
#include "kernels/rows/norms.h"
#include "kernels/selection/block_means.h"
#include "kernels/selective_scan/selective_scan.h"
#include "kernels/sequence/rotary.h"
#include "kernels/sequence/short_conv.h"
#include "tests/catch.h"

namespace weft::autograd {
namespace {

using kernels::NamedCase;
using kernels::Tensors;
using Set = std::vector<bool>;

template <class... M>
struct List {
  static std::vector<std::string> names() { return {std::string(M::name)...}; }
  // Calls f.operator()<M>() for each.
  template <class F>
  static void each(const F& f) {
    (f.template operator()<M>(), ...);
  }
};

using All = List<kernels::Activation, kernels::Attention, kernels::BlockMeans, kernels::BlockSparse,
                 kernels::CombineRows, kernels::CosineFeatures, kernels::CrossEntropy,
                 kernels::Delta, kernels::Embedding, kernels::ForgetGate, kernels::GatedActivation,
                 kernels::GatedLinear, kernels::GatedNorm, kernels::GroupedMatmul, kernels::Kda,
                 kernels::L2Norm, kernels::LayerNorm, kernels::Linear, kernels::Matmul,
                 kernels::PermuteRows, kernels::RandomFeatures, kernels::RmsNorm, kernels::Rotary,
                 kernels::Router, kernels::SelectiveScan, kernels::ShortConv>;

template <class M>
kernels::Options<M> options_of(const NamedCase& c) {
  kernels::Options<M> o;
  o.each([&]<class Value>(const char* name, Value& member, const char*) {
    if constexpr (std::is_same_v<Value, Tensor>) {
      if (const auto found = c.inputs.find(name); found != c.inputs.end()) member = found->second;
    } else if (const auto found = c.settings.find(name); found != c.settings.end()) {
      member = kernels::detail::parsed<Value>(name, found->second);
    }
  });
  return o;
}

// The gradients, by name, of the inputs that `wanted` holds, where the outputs have `dy`.
template <class M>
Tensors through_tape(const NamedCase& c, const Set& wanted, const Tensors& dy) {
  kernels::Inputs<M, Var> x;
  size_t i = 0;
  kernels::for_fields(
      [&](Var& v) {
        const auto found = c.inputs.find(M::kInputs[i].name);
        if (found != c.inputs.end()) v = wanted[i] ? Var::leaf(found->second) : Var(found->second);
        ++i;
      },
      x);
  {
    auto y = apply<M>(x, options_of<M>(c));
    std::vector<std::pair<Var, Tensor>> results;
    i = 0;
    kernels::for_fields(
        [&](const Var& v) {
          const auto found = dy.find(kernels::gradient_name(M::kOutputs[i++].name));
          if (v && found != dy.end()) results.emplace_back(v, found->second);
        },
        y);
    backward(results);
  }
  Tensors dx;
  i = 0;
  kernels::for_fields(
      [&](const Var& v) {
        if (v.grad()) dx[kernels::gradient_name(M::kInputs[i].name)] = v.grad();
        ++i;
      },
      x);
  return dx;
}

// Of n: each alone, each pair, and all but each.
std::vector<Set> subsets(const Set& there) {
  const size_t n = there.size();
  std::vector<Set> list;
  const auto add = [&](Set set) {
    for (size_t i = 0; i < n; ++i) set[i] = set[i] && there[i];
    const bool any = std::find(set.begin(), set.end(), true) != set.end();
    if (any && std::find(list.begin(), list.end(), set) == list.end()) list.push_back(set);
  };
  for (size_t i = 0; i < n; ++i)
    for (size_t j = i; j < n; ++j) {
      Set some(n, false);
      some[i] = some[j] = true;
      add(some);
      if (i == j) some.flip();
      add(some);
    }
  return list;
}

void check_same(const Tensors& got, const Tensors& expected) {
  CHECK(got.size() == expected.size());
  for (const auto& [name, t] : expected) {
    INFO(name);
    REQUIRE(got.count(name) == 1);
    CHECK(kernels::difference(got.at(name), t, kernels::floor_of(Dtype::f64)).error <= 1e-12);
  }
}

// Calls f(case, its output gradients) for all cases of M.
template <class M, class F>
void for_cases(const F& f) {
  const kernels::Operation& op = kernels::operation(std::string(M::name));
  for (const NamedCase& c : op.cases()) {
    INFO(M::name << ", case \"" << c.name << "\"");
    const kernels::Expected e = kernels::expected_of(op, c, Dtype::f64, kernels::Form::chunkwise);
    f(op, NamedCase{c.name, e.inputs, c.settings}, e.output_gradients);
  }
}

template <class M>
Set inputs_of(const NamedCase& c) {
  Set there;
  for (const kernels::Field& f : M::kInputs) there.push_back(c.inputs.count(f.name) == 1);
  return there;
}

}  // namespace

TEST_CASE("kernel_op: every operation is tested here") {
  std::vector<std::string> names;
  for (const kernels::Operation* op : kernels::operations()) names.push_back(op->name());
  CHECK(All::names() == names);
}

TEST_CASE("kernel_op: an input's gradient is the same, whichever others need one") {
  All::each([]<class M>() {
    for_cases<M>([](const kernels::Operation& op, const NamedCase& c, const Tensors& dy) {
      const Tensors all = op.backward(kernels::Form::chunkwise, c.inputs, c.settings, dy);
      for (const Set& wanted : subsets(inputs_of<M>(c))) {
        Tensors expected;
        std::string label;
        for (size_t i = 0; i < wanted.size(); ++i) {
          if (!wanted[i]) continue;
          const std::string name = kernels::gradient_name(M::kInputs[i].name);
          label += " " + name;
          if (all.count(name)) expected[name] = all.at(name);
        }
        INFO("wanted:" << label);
        check_same(through_tape<M>(c, wanted, dy), expected);
      }
    });
  });
}

TEST_CASE("kernel_op: under a check, a result that is not finite names its operation") {
  const Tensor huge = full({1, 3}, 1e300, Dtype::f64);
  const kernels::Inputs<kernels::Matmul, Var> x{Var(huge), Var(huge)};
  CHECK_NOTHROW(apply<kernels::Matmul>(x));
  const FiniteCheck check;
  CHECK_THROWS_WITH(apply<kernels::Matmul>(x), ContainsSubstring("the result of matmul"));
}

TEST_CASE("kernel_op: an output without a gradient counts as one whose gradient is zero") {
  All::each([]<class M>() {
    for_cases<M>([](const kernels::Operation& op, const NamedCase& c, const Tensors& dy) {
      const Set there = inputs_of<M>(c);
      for (const auto& [name, d] : dy) {
        INFO("the gradient of the outputs is " << name << " alone");
        Tensors others = dy;
        for (const auto& [other, t] : dy)
          if (other != name) others[other] = zeros_like(t);
        const Tensors expected =
            op.backward(kernels::Form::chunkwise, c.inputs, c.settings, others);
        check_same(through_tape<M>(c, there, {{name, d}}), expected);
      }
    });
  });
}

}  // namespace weft::autograd
