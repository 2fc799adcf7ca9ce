// The measure that all verdicts on numbers rest on: what is not finite agrees with nothing.
#include "kernels/contract/agreement.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "tests/catch.h"
#include "tests/gap.h"

using namespace weft;
using namespace weft::kernels;

namespace {

const std::vector<double> kOdd = {NAN, INFINITY, -INFINITY};

Tensor numbers(std::vector<double> values) { return tensor_of(values); }

}  // namespace

TEST_CASE("agreement: only a finite error within a finite bound passes") {
  CHECK(within(0, 0));
  CHECK(within(1e-6, 1e-5));
  CHECK_FALSE(within(1e-4, 1e-5));
  for (const double odd : kOdd) {
    CHECK_FALSE(within(odd, 1));
    CHECK_FALSE(within(0, odd));
    CHECK_FALSE(within(odd, odd));
    CHECK_FALSE(Agreement{"o", {.error = odd}, 1}.passed());
    CHECK_FALSE(Agreement{"o", {}, odd}.passed());
  }
}

TEST_CASE("agreement: what is not finite is infinitely far from everything, itself included") {
  for (const double odd : kOdd)
    for (size_t at = 0; at < 3; ++at) {  // first, in the middle and last
      std::vector<double> values = {1, 2, 3};
      values[at] = odd;
      const Tensor x = numbers(values), y = numbers({1, 2, 3});
      INFO(odd << " at " << at);
      for (const Difference& d : {difference(x, y, 1), difference(y, x, 1), difference(x, x, 1)}) {
        CHECK(d.error == INFINITY);
        CHECK(d.at == std::vector<int64_t>{static_cast<int64_t>(at)});
      }
      CHECK(tests::gap(x, y).widest == INFINITY);
      CHECK(tests::gap(y, x).relative() == INFINITY);
      CHECK(tests::gap(x, x).widest == INFINITY);
    }
}

TEST_CASE("agreement: the logarithm of an empty sum is -infinity, and nothing else may be") {
  const Tensor x = numbers({1, -INFINITY}), y = numbers({1, INFINITY});
  CHECK(difference(x, x, 1, "lse").error == 0);
  CHECK(difference(x, x, 1, "o").error == INFINITY);
  CHECK(difference(x, x, 1, "dlse").error == INFINITY);
  CHECK(difference(y, y, 1, "lse").error == INFINITY);
  CHECK(difference(x, numbers({1, 2}), 1, "lse").error == INFINITY);
  CHECK(tests::gap(x, x, true).widest == 0);
  CHECK(tests::gap(y, y, true).widest == INFINITY);
}

TEST_CASE("agreement: one percent of a small output is as wrong as of a large one") {
  for (const double size : {1.0, 1e-4, 1e-20})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const NamedCase c{"small", {{"x", normal({4, 5}, 1, "x", size)}}, {{"kind", "relu"}}};
      const Operation& op = operation("activation");
      const Expected e = expected_of(op, c, dtype);
      Tensors y = op.forward(Form::chunkwise, e.inputs, e.settings);
      const Tensors dx = op.backward(Form::chunkwise, e.inputs, e.settings, e.output_gradients);
      INFO(size << " in " << name_of(dtype));
      for (const Agreement& a : agreement(e, y, dx)) CHECK(a.passed());
      const Tensor wrong = y.at("y").to(Dtype::f64);
      for (int64_t i = 0; i < wrong.numel(); ++i) wrong.data<double>()[i] *= 1.01;
      y["y"] = wrong;
      for (const Agreement& a : agreement(e, y, dx)) CHECK(a.passed() == (a.tensor != "y"));
    }
}

TEST_CASE("gradcheck: a gradient that is not finite fails, wherever it stands") {
  const Tensor x = normal({4}, 1, "x");
  const auto loss = [&] {
    double sum = 0;
    for (const double v : to_doubles(x)) sum += v * v;
    return sum;
  };
  for (const double odd : kOdd)
    for (int64_t at = 0; at < 4; ++at)
      for (const int directions : {0, 2}) {
        const Tensor gradient = empty({4}, Dtype::f64);
        for (int64_t i = 0; i < 4; ++i) gradient.data<double>()[i] = 2 * x.data<double>()[i];
        autograd::GradcheckOptions options;
        options.directions = directions;
        CHECK(autograd::check_input("x", loss, x, gradient, options).passed);
        gradient.data<double>()[at] = odd;
        INFO(odd << " at " << at << ", " << directions << " directions");
        const auto report = autograd::check_input("x", loss, x, gradient, options);
        CHECK_FALSE(report.passed);
        CHECK(report.max_rel == INFINITY);
      }
  const auto nan = [] { return double{NAN}; };
  CHECK_FALSE(autograd::check_input("x", nan, x, zeros({4}, Dtype::f64)).passed);
}
