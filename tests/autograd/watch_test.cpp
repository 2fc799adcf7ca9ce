// Who watches sees every operation with its tensors, and may run it again; nobody else notices.
#include "autograd/watch.h"

#include "autograd/kernel_op.h"
#include "kernels/products/matmul.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::autograd;

namespace {

Var product_of(const Tensor& x, const Tensor& w) {
  return apply<kernels::Matmul>({Var(x), Var::leaf(w), {}}).y;
}

}  // namespace

TEST_CASE("watch: an operation is seen with its tensors by name and with its owner") {
  const Tensor x = full({2, 3}, 2, Dtype::f64), w = full({4, 3}, 0.5, Dtype::f64);
  std::vector<Watched> seen;
  {
    const Watch watch([&](const Watched& w) { seen.push_back(w); });
    const OwnerScope owner("layers.7.mixer");
    product_of(x, w);
  }
  product_of(x, w);  // after its end: not seen
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].name == "matmul");
  CHECK(seen[0].owner == "layers.7.mixer");
  REQUIRE(seen[0].inputs.size() == 2);
  CHECK(seen[0].inputs.at("x").same_view(x));
  CHECK(to_doubles(seen[0].outputs.at("y"))[0] == 3);
  kernels::Tensors other = seen[0].inputs;
  other["x"] = full({2, 3}, 4, Dtype::f64);
  CHECK(to_doubles(seen[0].again(other).at("y"))[7] == 6);
}

TEST_CASE("watch: the innermost watch alone sees, and the one around it sees again after its end") {
  const Tensor x = full({1, 2}, 1, Dtype::f64), w = full({1, 2}, 1, Dtype::f64);
  int outer = 0, inner = 0;
  const Watch watch([&](const Watched&) { ++outer; });
  {
    const Watch within([&](const Watched&) { ++inner; });
    product_of(x, w);
  }
  product_of(x, w);
  CHECK(outer == 1);
  CHECK(inner == 1);
}
