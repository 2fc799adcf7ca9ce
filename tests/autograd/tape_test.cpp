// The tape: sums, sharing, freeing, no_grad, recomputation, in-place changes; and every plain
// operation against finite differences.
#include "autograd/tape.h"

#include "autograd/gradcheck.h"
#include "autograd/kernel_op.h"
#include "autograd/ops.h"
#include "core/allocator.h"
#include "kernels/contract/agreement.h"
#include "kernels/contract/operation.h"
#include "kernels/products/matmul.h"
#include "kernels/rows/norms.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::autograd;
using kernels::normal;

namespace {

Var product(const Var& x, const Var& w) { return apply<kernels::Matmul>({x, w, {}}).y; }

void check(const std::function<std::vector<Var>(const std::vector<Var>&)>& f,
           const std::vector<NamedInput>& inputs) {
  const GradcheckReport report = gradcheck(f, inputs);
  INFO(report.text());
  CHECK(report.passed());
}

}  // namespace

TEST_CASE("tape: every plain operation passes the gradient check") {
  const NamedInput a{"a", normal({3, 4, 5}, 1, "a")}, b{"b", normal({3, 4, 5}, 1, "b")};
  using Vars = std::vector<Var>;
  check([](const Vars& x) { return Vars{add(x[0], x[1])}; }, {a, b});
  check([](const Vars& x) { return Vars{multiply(x[0], x[1])}; }, {a, b});
  check([](const Vars& x) { return Vars{scale(x[0], -1.7)}; }, {a});
  check([](const Vars& x) { return Vars{reshape(transpose(x[0], 0, 2), {5, 12})}; }, {a});
  check([](const Vars& x) { return Vars{slice(x[0], 1, 1, 3)}; }, {a});
  check([](const Vars& x) { return Vars{concat({x[0], slice(x[1], 1, 0, 2)}, 1)}; }, {a, b});
  check([](const Vars& x) { return split(x[0], 2, {1, 3, 1}); }, {a});
  check([](const Vars& x) { return Vars{split(x[0], 2, {1, 3, 1})[1]}; }, {a});
  check([](const Vars& x) { return Vars{sum(multiply(x[0], x[0]))}; }, {a});
  const NamedInput w{"w", normal({4}, 1, "w")};
  check([](const Vars& x) { return Vars{multiply_along(x[0], x[1], 1)}; }, {a, w});
  check([](const Vars& x) { return Vars{add_along(x[0], x[1], 1)}; }, {a, w});
}

TEST_CASE("tape: a value used several times gets the sum of its gradients") {
  const Var x = Var::leaf(normal({4, 4}, 1, "x"));
  backward(sum(add(multiply(x, x), scale(x, 3))));
  const std::vector<double> v = to_doubles(x.value()), g = to_doubles(x.grad());
  for (size_t i = 0; i < v.size(); ++i) CHECK(g[i] == Approx(2 * v[i] + 3));
}

TEST_CASE("tape: gradients of leaves add up over calls until they are zeroed") {
  const Var x = Var::leaf(normal({3}, 1, "x"));
  backward(sum(x));
  backward(sum(x));
  CHECK(to_doubles(x.grad()) == std::vector<double>{2, 2, 2});
  x.zero_grad();
  CHECK(to_doubles(x.grad()) == std::vector<double>{0, 0, 0});
}

TEST_CASE("tape: nothing is recorded under NoGrad or past detach") {
  const Var x = Var::leaf(normal({3}, 1, "x"));
  {
    const NoGrad no_grad;
    CHECK_FALSE(scale(x, 2).requires_grad());
  }
  CHECK(scale(x, 2).requires_grad());
  CHECK_FALSE(scale(x.detach(), 2).requires_grad());
}

TEST_CASE("tape: a kept tensor changed in place is an error that names the operation") {
  const Var x = Var::leaf(normal({2, 3}, 1, "x")), w = Var::leaf(normal({4, 3}, 1, "w"));
  const Var loss = sum(product(x, w));
  w.value().fill(1);
  CHECK_THROWS_WITH(backward(loss),
                    ContainsSubstring("matmul") && ContainsSubstring("changed in place"));
}

TEST_CASE("tape: a second backward over the same tape is an error") {
  const Var x = Var::leaf(normal({2, 3}, 1, "x")), w = Var::leaf(normal({4, 3}, 1, "w"));
  const Var loss = sum(product(x, w));
  backward(loss);
  CHECK_THROWS_WITH(backward(loss), ContainsSubstring("spent by an earlier backward()"));
}

TEST_CASE("tape: backward frees what nodes keep as it passes") {
  const Var x = Var::leaf(normal({64, 64}, 1, "x"));
  const int64_t before = allocator(kCpu).stats().current;
  {
    Var y = x;
    for (int i = 0; i < 10; ++i) y = multiply(y, y);
    Var loss = sum(y);
    y = {};
    backward(loss);
    // Left: the gradient of x, and the loss.
    CHECK(allocator(kCpu).stats().current - before <= 64 * 64 * 8 + 256);
  }
}

TEST_CASE("tape: a long chain neither overflows the stack nor leaks") {
  const int64_t before = allocator(kCpu).stats().current;
  {
    Var y = Var::leaf(normal({2}, 1, "x"));
    for (int i = 0; i < 200000; ++i) y = reshape(y, {2});
    y = scale(y, 2);
  }
  CHECK(allocator(kCpu).stats().current == before);
}

TEST_CASE("tape: a recomputed block gives the same bits and keeps less") {
  const Tensor x0 = normal({8, 8}, 1, "x"), w0 = normal({8, 8}, 1, "w");
  const auto run = [&](bool again) {
    const Var x = Var::leaf(x0.clone()), w = Var::leaf(w0.clone());
    const auto block = [&](const std::vector<Var>& in) {
      return std::vector<Var>{product(multiply(product(in[0], w), in[0]), w)};
    };
    const std::vector<Var> y = again ? recompute(block, {x}) : block({x});
    backward(sum(multiply(y[0], y[0])));
    return std::pair{to_doubles(x.grad()), to_doubles(w.grad())};
  };
  CHECK(run(true) == run(false));
}

TEST_CASE("tape: the first value that is not finite is named with its owner") {
  const Var x = Var::leaf(full({3}, 1e300, Dtype::f64));
  const FiniteCheck check;
  const OwnerScope owner("layers.3.mixer");
  CHECK_THROWS_WITH(multiply(scale(x, 2), x), ContainsSubstring("multiply in layers.3.mixer"));
}

TEST_CASE("gradcheck: a wrong gradient is found, named and placed") {
  const Tensor x = normal({2, 3}, 1, "x");
  const auto loss = [&] {
    double s = 0;
    for (const double v : to_doubles(x)) s += v * v * v;
    return s;
  };
  Tensor g = empty_like(x);
  for (int i = 0; i < 6; ++i) g.data<double>()[i] = 3 * x.data<double>()[i] * x.data<double>()[i];
  CHECK(check_input("x", loss, x, g).passed);
  CHECK(check_input("x", loss, x, g, {.directions = 4}).passed);
  g.data<double>()[4] += 1e-4;
  const InputReport r = check_input("x", loss, x, g);
  CHECK_FALSE(r.passed);
  CHECK(r.at == std::vector<int64_t>{1, 1});
  CHECK_FALSE(check_input("x", loss, x, g, {.directions = 4}).passed);
}

TEST_CASE(
    "tape: a norm with a residual keeps the sum alone, and has the gradients of add and norm") {
  const auto gradients = [](bool together) {
    const auto leaf = [&](const char* name) { return Var::leaf(normal({6, 8}, 1, name)); };
    const Var x = leaf("x"), f = leaf("f"), w = Var::leaf(normal({8}, 1, "w"));
    const int64_t before = allocator(kCpu).stats().current;
    Var y, s;
    {
      const Var a = scale(x, 2), b = scale(f, 3);
      if (together) {
        const auto made = apply<kernels::LayerNorm>({a, w, {}, b});
        y = made.y;
        s = made.sum;
      } else {
        s = add(a, b);
        y = apply<kernels::LayerNorm>({s, w, {}, {}}).y;
      }
    }
    const int64_t kept = allocator(kCpu).stats().current - before;
    backward(sum(multiply(add(s, scale(y, 2)), y)));
    return std::pair{std::vector{x.grad(), f.grad(), w.grad()}, kept};
  };
  const auto [got, kept] = gradients(true);
  const auto [expected, kept_apart] = gradients(false);
  CHECK(kept == kept_apart);
  for (size_t i = 0; i < got.size(); ++i) CHECK(to_doubles(got[i]) == to_doubles(expected[i]));
}

TEST_CASE("tape: on a GPU gradients added in place are the CPU's", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  // What a block does: a value through a norm into products, and past them; views on the way.
  const auto gradients = [](Device device) {
    const auto leaf = [&](const Shape& shape, const char* name) {
      return Var::leaf(normal(shape, 1, name).to(Dtype::f32).to(device));
    };
    const Var x = leaf({2, 40, 64}, "x"), scale = leaf({64}, "scale");
    const Var w = leaf({64, 64}, "w"), u = leaf({64, 64}, "u");
    const Var y = reshape(multiply(x, x), {80, 64});
    const Var n = reshape(apply<kernels::LayerNorm>({y, scale, {}, {}}).y, {2, 40, 64});
    const Var a = product(reshape(n, {80, 64}), w), b = product(reshape(n, {-1, 64}), u);
    const Var m = apply<kernels::RmsNorm>({y, scale, {}}).y;
    const auto s = apply<kernels::RmsNorm>({add(y, a), scale, product(m, u)});
    backward(sum(multiply(add(s.sum, s.y), add(b, m))));
    std::vector<Tensor> list;
    for (const Var& v : {x, scale, w, u}) list.push_back(v.grad().to(kCpu));
    return list;
  };
  const std::vector<Tensor> expected = gradients(kCpu), got = gradients(kCuda);
  for (size_t i = 0; i < got.size(); ++i)
    CHECK(kernels::difference(got[i], expected[i], 1e-2).error < 1e-5);
}
