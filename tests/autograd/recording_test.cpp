// What is recorded and what is checked: both sides of each condition.
#include <cmath>
#include <limits>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "autograd/tape.h"
#include "core/allocator.h"
#include "kernels/contract/operation.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::autograd;
using kernels::normal;

TEST_CASE("recording: the end of an inner NoGrad leaves the outer one at work") {
  const Var x = Var::leaf(normal({3}, 1, "x"));
  CHECK(grad_enabled());
  {
    const NoGrad outer;
    {
      const NoGrad inner;
      CHECK_FALSE(grad_enabled());
    }
    CHECK_FALSE(grad_enabled());
    CHECK_FALSE(scale(x, 2).requires_grad());
    CHECK_FALSE(records({x}));
  }
  CHECK(grad_enabled());
  CHECK(records({x}));
  CHECK(records({Var(), x}));
  CHECK_FALSE(records({Var(), x.detach()}));
  CHECK_FALSE(records({}));
}

TEST_CASE("recording: finite is what is finite at the first, a middle and the last place") {
  const double odd[] = {std::numeric_limits<double>::quiet_NaN(),
                        std::numeric_limits<double>::infinity(),
                        -std::numeric_limits<double>::infinity()};
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    CHECK(all_finite(full({7}, -3, dtype)));
    for (const double value : odd)
      for (const int64_t at : {0, 3, 6}) {
        INFO(dtype << ", " << value << " at " << at);
        const Tensor t = full({7}, 1, dtype);
        t.slice(0, at, at + 1).fill(value);
        CHECK_FALSE(all_finite(t));
        CHECK_FALSE(all_finite(t.reshape({1, 7}).transpose(0, 1)));
        CHECK(all_finite(t.slice(0, at, at)));
      }
  }
  CHECK(all_finite(full({2}, 1e300, Dtype::f64)));
  CHECK(all_finite(full({2}, 7, Dtype::i32)));
  CHECK(all_finite(Tensor()));
  CHECK(all_finite(empty({2}, Dtype::f32, kMeta)));
}

TEST_CASE("recording: results and gradients are checked while a check lives, nested or not") {
  const Var x = Var::leaf(full({3}, 1e300, Dtype::f64));
  CHECK_FALSE(finite_checked());
  CHECK_NOTHROW(multiply(x, x));
  {
    const FiniteCheck outer;
    {
      const FiniteCheck inner;
      CHECK(finite_checked());
    }
    CHECK(finite_checked());
    CHECK_THROWS_WITH(multiply(x, x), ContainsSubstring("the result of multiply"));
    // The result is finite, its gradient is not.
    const Var y = scale(x, 1e-300);
    CHECK_THROWS_WITH(backward({{scale(y, 1e10), full({3}, 1e305, Dtype::f64)}}),
                      ContainsSubstring("the gradient of scale"));
  }
  CHECK_FALSE(finite_checked());
}

TEST_CASE("recording: backward wants one number, or a gradient for each result") {
  const Var x = Var::leaf(normal({3}, 1, "x"));
  CHECK_THROWS_WITH(backward(scale(x, 2)), ContainsSubstring("the loss must be one number"));
  CHECK_THROWS_WITH(backward(Var()), ContainsSubstring("the loss must be one number"));
  backward({{scale(x, 2), tensor_of<double>({1, 10, 100})}});
  CHECK(to_doubles(x.grad()) == std::vector<double>{2, 20, 200});
  backward(sum(slice(x, 0, 1, 2)));
  CHECK(to_doubles(x.grad()) == std::vector<double>{2, 21, 200});
}

TEST_CASE("recording: a leaf's gradient is f32 where it is bf16, and has a place of its own") {
  const Var x = Var::leaf(full({4}, 1, Dtype::bf16)), y = Var::leaf(full({4}, 1, Dtype::f64));
  CHECK_FALSE(x.grad());
  x.zero_grad();
  y.zero_grad();
  CHECK(x.grad().dtype() == Dtype::f32);
  CHECK(y.grad().dtype() == Dtype::f64);
  for (int i = 0; i < 3; ++i) backward({{scale(x, 1), full({4}, 1.0 + 1.0 / 128, Dtype::bf16)}});
  CHECK(to_doubles(x.grad()) == std::vector<double>(4, 3 * (1 + 1.0 / 128)));  // not in bf16
  const Tensor place = full({4}, 5, Dtype::f64);
  y.set_grad(place);
  backward(sum(y));
  CHECK(to_doubles(place) == std::vector<double>(4, 6));
  y.drop_grad();
  CHECK_FALSE(y.grad());
  CHECK_THROWS_WITH(y.set_grad(full({3}, 1, Dtype::f64)), ContainsSubstring("set_grad"));
  CHECK_THROWS_WITH(scale(y, 2).zero_grad(), ContainsSubstring("not a leaf"));
  CHECK_THROWS_WITH(Var::leaf(Tensor()), ContainsSubstring("a leaf needs a tensor"));
}

TEST_CASE("recording: plain operations refuse shapes that do not fit") {
  const Var a = normal({3, 4}, 1, "a"), b = normal({4, 3}, 1, "b");
  CHECK_THROWS_WITH(add(a, b), ContainsSubstring("[3, 4] and [4, 3]"));
  CHECK_THROWS_WITH(multiply(a, b), ContainsSubstring("[3, 4] and [4, 3]"));
  CHECK_THROWS_WITH(concat({a, b}, 0), ContainsSubstring("does not fit"));
  CHECK_THROWS_WITH(concat({}, 0), ContainsSubstring("nothing to join"));
  CHECK_THROWS_WITH(split(a, 1, {1, 2}), ContainsSubstring("add up to 3, the dimension has 4"));
}

TEST_CASE("recording: a cast sends its gradient back in the type that it had") {
  const Var x = Var::leaf(full({3}, 1.0 + 1.0 / 512, Dtype::f32));
  const Var y = cast(x, Dtype::bf16);
  CHECK(y.dtype() == Dtype::bf16);
  CHECK(to_doubles(y.value()) == std::vector<double>(3, 1));
  backward({{y, full({3}, 3, Dtype::bf16)}});
  CHECK(x.grad().dtype() == Dtype::f32);
  CHECK(to_doubles(x.grad()) == std::vector<double>(3, 3));
  CHECK(cast(x, Dtype::f32).value().same_view(x.value()));
}

TEST_CASE("recording: a cast's gradient adds up with that of another use") {
  const Var x = Var::leaf(full({3}, 1, Dtype::f32));
  const Var y = scale(cast(x, Dtype::bf16), 2);  // bf16, used twice
  backward(
      {{cast(y, Dtype::f32), full({3}, 1, Dtype::f32)}, {scale(y, 3), full({3}, 1, Dtype::bf16)}});
  CHECK(to_doubles(x.grad()) == std::vector<double>(3, 8));
}

TEST_CASE("recording: a recomputed block runs again for its gradients alone") {
  int runs = 0;
  const auto block = [&](const std::vector<Var>& in) {
    ++runs;
    return std::vector<Var>{multiply(in[0], in[1]), scale(in[0], 3)};
  };
  const Tensor a = tensor_of<double>({1, 2}), b = tensor_of<double>({5, 7});
  const Var x = Var::leaf(a);
  {
    const NoGrad no_grad;
    CHECK_FALSE(recompute(block, {x, b})[0].requires_grad());
    CHECK(runs == 1);
  }
  const auto y = recompute(block, {x, b});
  CHECK(runs == 2);
  backward({{y[0], full({2}, 1, Dtype::f64)}, {y[1], full({2}, 10, Dtype::f64)}});
  CHECK(runs == 3);
  CHECK(to_doubles(x.grad()) == std::vector<double>{35, 37});
  CHECK(grad_enabled());
  // One result alone, and an input that wants none.
  x.drop_grad();
  backward(sum(recompute(block, {x, b})[1]));
  CHECK(to_doubles(x.grad()) == std::vector<double>{3, 3});
  const auto again = recompute(block, {x, b});
  backward(sum(again[0]));
  CHECK_THROWS_WITH(backward(sum(again[0])), ContainsSubstring("spent by an earlier backward()"));
  const auto changed = recompute(block, {x, b});
  a.fill(9);
  CHECK_THROWS_WITH(backward(sum(changed[0])), ContainsSubstring("changed in place"));
}

TEST_CASE("recording: a node remembers who made it, and owns what its backward takes") {
  // Notes for whom it allocates during backward.
  struct Asking final : Node {
    explicit Asking(std::vector<std::string>* owners) : Node("asking"), to(owners) {}
    std::vector<std::string>* to;
    std::vector<Tensor> backward(std::vector<Tensor> dy) override {
      to->push_back(current_owner());
      return dy;
    }
    void release() override {}
  };
  std::vector<std::string> owners;
  const auto asking = [&](const Var& x) {
    const auto node = std::make_shared<Asking>(&owners);
    node->inputs.emplace_back(x);
    return Var::made_by(node, 0, x.value());
  };
  const auto owned = [&](const std::string& owner, const Var& x) {
    const OwnerScope scope(owner);
    return asking(x);
  };
  const Var x = Var::leaf(normal({3}, 1, "x"));
  const std::string nobody = current_owner();
  const auto block = [&](const std::vector<Var>& in) {
    return std::vector<Var>{asking(owned("inner", in[0]))};
  };
  Var y = owned("second", asking(owned("first", x)));
  {
    const OwnerScope scope("outer");
    y = recompute(block, {y})[0];
  }
  owners.clear();
  {
    const OwnerScope scope("the caller");
    backward(sum(y));
    CHECK(current_owner() == "the caller");
  }
  CHECK(owners == std::vector<std::string>{"outer", "inner", "second", nobody, "first"});
}

TEST_CASE("recording: at the peak of a backward pass its memory is that of the parts") {
  const auto part = [](const std::string& owner, const Var& x) {
    const OwnerScope scope(owner);
    return scale(x, 2);
  };
  Var x = Var::leaf(normal({64, 64}, 1, "x"));
  const int64_t size = 64 * 64 * 8;
  Var y = sum(part("second", part("first", x)));  // nothing that they made is left
  allocator(kCpu).reset_peak();
  backward(y);
  int64_t first = 0, second = 0;
  for (const Owned& o : allocator(kCpu).stats().at_peak) {
    if (o.owner == "first") first = o.bytes;
    if (o.owner == "second") second = o.bytes;
  }
  // The gradient that the second made is there until the first has made its own.
  CHECK(first + second >= size);
}

TEST_CASE("recording: a gradient that is not finite is named with its node's owner") {
  const Var x = Var::leaf(full({3}, 1, Dtype::f64));
  const FiniteCheck check;
  Var y;
  {
    const OwnerScope scope("layers.5.mlp");
    y = scale(x, 1e10);
  }
  const OwnerScope caller("the caller");
  CHECK_THROWS_WITH(backward({{y, full({3}, 1e305, Dtype::f64)}}),
                    ContainsSubstring("the gradient of scale in layers.5.mlp is not finite"));
}

TEST_CASE("gradcheck: an error is held to the largest gradient of the input") {
  const Tensor x = tensor_of<double>({1, 2, 3});
  const auto loss = [&] {
    const auto v = to_doubles(x);
    return 100 * v[0] + v[1] + 0.001 * v[2];
  };
  const auto rel = [&](double a, double b, double c, const GradcheckOptions& o = {}) {
    return check_input("x", loss, x, tensor_of<double>({a, b, c}), o);
  };
  CHECK(rel(100, 1, 0.001).passed);
  const InputReport r = rel(100, 1, 0.051);
  CHECK(r.at == std::vector<int64_t>{2});
  CHECK(r.max_abs == Approx(0.05).epsilon(1e-6));
  CHECK(r.max_rel == Approx(0.0005).epsilon(1e-6));
  CHECK(r.analytic == 0.051);
  CHECK(r.numeric == Approx(0.001).epsilon(1e-6));
  CHECK_FALSE(r.passed);
  CHECK(rel(100, 1, 0.051, {.bound = 6e-4}).passed);
  CHECK_FALSE(rel(100, 1, 0.051, {.bound = 4e-4}).passed);
  CHECK(rel(200, 1, 0.001).max_rel == Approx(0.5));  // of the larger of both
  CHECK(to_doubles(x) == std::vector<double>{1, 2, 3});
}

TEST_CASE(
    "gradcheck: what is not finite passes nothing, where the gradient is zero a floor holds") {
  const Tensor x = tensor_of<double>({1, 2});
  const auto none = [] { return 4.0; };
  for (const double odd : {double{NAN}, double{INFINITY}, -double{INFINITY}})
    for (const bool first : {true, false}) {
      const Tensor g = tensor_of<double>({first ? odd : 0, first ? 0 : odd});
      CHECK_FALSE(check_input("x", none, x, g).passed);
      CHECK_FALSE(check_input("x", none, x, g, {.directions = 3}).passed);
    }
  CHECK_FALSE(check_input(
                  "x", [] { return double{NAN}; }, x, tensor_of<double>({0, 0}))
                  .passed);
  CHECK(check_input("x", none, x, tensor_of<double>({0, 0})).passed);
  CHECK(check_input("x", none, x, tensor_of<double>({1e-11, 0})).passed);
  CHECK_FALSE(check_input("x", none, x, tensor_of<double>({1e-9, 0})).passed);
  CHECK_THROWS_WITH(check_input("x", none, x, tensor_of<double>({0})),
                    ContainsSubstring("the gradient of x has shape [1], expected [2]"));
  CHECK_THROWS_WITH(check_input("x", none, full({2}, 1, Dtype::f32), x), ContainsSubstring("f64"));
}

TEST_CASE("gradcheck: a report passes where all its inputs do, and says which failed") {
  const auto right = [](const std::vector<Var>& in) {
    return std::vector<Var>{multiply(in[0], in[1])};
  };
  const std::vector<NamedInput> inputs{{"first", normal({3}, 1, "a")},
                                       {"second", normal({3}, 1, "b")}};
  CHECK(gradcheck(right, inputs).passed());
  // The tape does not see what goes through `detach`.
  const auto wrong = [](const std::vector<Var>& in) {
    return std::vector<Var>{multiply(in[0], in[1].detach())};
  };
  const GradcheckReport r = gradcheck(wrong, inputs);
  CHECK_FALSE(r.passed());
  CHECK(r.inputs[0].passed);
  CHECK_FALSE(r.inputs[1].passed);
  const std::string text = r.text();
  CHECK_THAT(text, ContainsSubstring("first") && ContainsSubstring("second"));
  CHECK(text.find("FAILED") > text.find("second"));
}
