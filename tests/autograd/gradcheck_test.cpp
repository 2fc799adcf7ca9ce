// The check itself, against gradients whose error is known.
#include "autograd/gradcheck.h"

#include "tests/catch.h"

using namespace weft;
using namespace weft::autograd;

namespace {

// Of sum x^2 / 2, whose gradient is x, with an error in one element.
InputReport checked(double error, int directions, uint64_t seed = 1) {
  constexpr int64_t n = 64;
  const Tensor x = zeros({n}, Dtype::f64);
  double* const at = x.data<double>();
  for (int64_t i = 0; i < n; ++i) at[i] = 1 + 0.01 * static_cast<double>(i);
  const Tensor gradient = x.clone();
  gradient.data<double>()[5] += error;
  const auto loss = [&] {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += at[i] * at[i] / 2;
    return sum;
  };
  return check_input("x", loss, x, gradient, {.directions = directions, .seed = seed});
}

}  // namespace

TEST_CASE("gradcheck: one wrong element of many fails, by elements and along directions") {
  CHECK(checked(0, 0).passed);
  CHECK(checked(0, 3).passed);
  CHECK(!checked(1e-4, 0).passed);
  CHECK(checked(1e-4, 0).at == std::vector<int64_t>{5});
  CHECK(checked(1e-4, 0).max_abs == Approx(1e-4).epsilon(1e-3));
  CHECK(!checked(1e-4, 3).passed);
}

TEST_CASE("gradcheck: each direction is another one, and so is each seed") {
  const double one = checked(1e-3, 1).max_abs;
  CHECK(checked(1e-3, 2).max_abs >= one);
  CHECK(checked(1e-3, 40).max_abs > one * 1.001);
  CHECK(checked(1e-3, 1, 2).max_abs != one);
}

TEST_CASE("gradcheck: the step grows with the input, so that large ones keep their digits") {
  const Tensor x = tensor_of<double>({3e8, 0.5});  // the squares have no digits for a step of 1e-3
  const auto loss = [&] {
    return x.data<double>()[0] * x.data<double>()[0] / 2 + x.data<double>()[1];
  };
  const InputReport r = check_input("x", loss, x, tensor_of<double>({3e8, 1}));
  INFO("relative error " << r.max_rel);
  CHECK(r.passed);
  CHECK(x.data<double>()[0] == 3e8);
}
