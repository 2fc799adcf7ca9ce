// What is particular to the router and to the moves of rows around experts.
#include "kernels/experts/routing.h"

#include "kernels/products/matmul.h"
#include "tests/kernels/basic_helpers.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::basic;
using Catch::Matchers::Contains;

TEST_CASE("router: of equal logits the lower expert is chosen, whatever the form") {
  const Tensor logits = tensor_of<double>({1, 1, 1, 1, 0, 2, 2, 2}).reshape({2, 4});
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const Tensor index = zeros({2, 2}, Dtype::i32);
    const auto y = forward<Router>({logits.to(dtype)}, {2, true, false, index});
    CHECK(to_ints(index) == std::vector<int64_t>{0, 1, 1, 2});
    for (const double w : to_doubles(y.weight)) CHECK(w == 0.5);
  }
  const Tensor index = zeros({2, 2}, Dtype::i32);
  operation("router").forward(Form::naive, {{"logits", logits}, {"index", index}},
                              {{"top_k", "2"}});
  CHECK(to_ints(index) == std::vector<int64_t>{0, 1, 1, 2});
}

TEST_CASE("router: experts come best first, and forcing them gives the same weights back") {
  const Tensor logits = normal({20, 7}, 1, "logits"), index = zeros({20, 3}, Dtype::i32);
  const auto chosen = run<Router>({logits}, {3, true, false, index});
  for (int64_t r = 0; r < 20; ++r)
    for (int64_t j = 0; j < 2; ++j)
      CHECK(chosen.y.weight.data<double>()[r * 3 + j] >=
            chosen.y.weight.data<double>()[r * 3 + j + 1]);
  const auto forced = run<Router>({logits}, {3, true, true, index});
  CHECK(same_bits(chosen.y.weight, forced.y.weight));
  CHECK(same_bits(chosen.y.balance, forced.y.balance));
  CHECK(same_bits(chosen.dx.logits, forced.dx.logits));
}

TEST_CASE("router: without renormalising the weights are the probabilities themselves") {
  const Tensor logits = normal({9, 5}, 1, "logits");
  const auto all = forward<Router>({logits}, {5, false, false, {}});
  for (int64_t r = 0; r < 9; ++r) {
    double sum = 0;
    for (int64_t j = 0; j < 5; ++j) sum += all.weight.data<double>()[r * 5 + j];
    CHECK(sum == Approx(1).epsilon(1e-14));
  }
  const auto two = forward<Router>({logits}, {2, false, false, {}});
  CHECK(two.weight.data<double>()[0] == all.weight.data<double>()[0]);
  CHECK(two.weight.data<double>()[1] == all.weight.data<double>()[1]);
}

TEST_CASE("router: even routing has balance one, routing to one expert nearly E") {
  const int64_t E = 4, R = 8;
  const Tensor even = zeros({R, E}, Dtype::f64), one = zeros({R, E}, Dtype::f64);
  for (int64_t r = 0; r < R; ++r) {
    even.data<double>()[r * E + r % E] = 3;
    one.data<double>()[r * E] = 20;
  }
  CHECK(forward<Router>({even}, {1, true, false, {}}).balance.item() == Approx(1).epsilon(1e-14));
  CHECK(forward<Router>({one}, {1, true, false, {}}).balance.item() == Approx(4).epsilon(1e-6));
}

TEST_CASE("router: where the chosen are far below the rest, renormalised weights stay exact") {
  const Tensor logits = tensor_of<float>({0, -200, -201}).reshape({1, 3});
  const Tensor index = ints({1, 2}).reshape({1, 2});
  const auto r = run<Router>({logits}, {2, true, true, index});
  CHECK(r.y.weight.data<float>()[0] == Approx(1 / (1 + std::exp(-1.0))).epsilon(1e-6));
  for (const double v : to_doubles(r.dx.logits)) CHECK(std::isfinite(v));
}

TEST_CASE("router: forced choices may come in any order, however far their logits are apart") {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
    const Tensor logits = tensor_of<double>({-1000, 0, -3, 1}).reshape({1, 4}).to(dtype);
    const auto rising = run<Router>({logits}, {3, true, true, ints({0, 2, 1}).reshape({1, 3})});
    const auto falling = run<Router>({logits}, {3, true, true, ints({1, 2, 0}).reshape({1, 3})});
    const std::vector<double> up = to_doubles(rising.y.weight), down = to_doubles(falling.y.weight);
    CHECK(up[0] == 0);
    CHECK(up[1] == Approx(1 / (1 + std::exp(3.0))).epsilon(1e-6));
    CHECK(up[2] == Approx(1 / (1 + std::exp(-3.0))).epsilon(1e-6));
    CHECK(down == std::vector<double>{up[2], up[1], up[0]});
    for (const double v : to_doubles(rising.dx.logits)) CHECK(std::isfinite(v));
  }
}

TEST_CASE("router: mistakes are named") {
  const Tensor logits = normal({2, 3}, 1, "logits");
  CHECK_THROWS_WITH(forward<Router>({logits}, {4, true, false, {}}), Contains("top_k = 4"));
  CHECK_THROWS_WITH(forward<Router>({logits}, {1, true, true, {}}), Contains("index is missing"));
  CHECK_THROWS_WITH(forward<Router>({logits}, {1, true, true, ints({0, 3}).reshape({2, 1})}),
                    Contains("index[1] = 3"));
}

TEST_CASE("grouped_matmul: each expert's rows are a matrix product of their own") {
  const std::vector<int64_t> offsets = {0, 150, 150, 153, 400};
  const Tensor x = normal({400, 9}, 1, "x"), w = normal({4, 140, 9}, 1, "w");
  const Tensor dy = normal({400, 140}, 1, "dy");
  const auto r = run<GroupedMatmul>({x, w}, {tensor_of(offsets)}, {dy});
  for (int64_t e = 0; e < 4; ++e) {
    const int64_t a = offsets[static_cast<size_t>(e)], b = offsets[static_cast<size_t>(e) + 1];
    const auto alone = run<Matmul>({x.slice(0, a, b), w.select(0, e), {}}, {}, {dy.slice(0, a, b)});
    CHECK(difference(r.y.y.slice(0, a, b), alone.y.y) < 1e-14);
    CHECK(difference(r.dx.x.slice(0, a, b), alone.dx.x) < 1e-14);
    CHECK(difference(r.dx.w.select(0, e), alone.dx.w) < 1e-13);
  }
}

TEST_CASE("grouped_matmul: offsets that fall or miss the end are refused") {
  const Tensor x = normal({4, 2}, 1, "x"), w = normal({2, 3, 2}, 1, "w");
  CHECK_THROWS_WITH(forward<GroupedMatmul>({x, w}, {tensor_of<int64_t>({0, 2, 3})}),
                    Contains("R = 4"));
  CHECK_THROWS_WITH(forward<GroupedMatmul>({x, w}, {tensor_of<int64_t>({0, 5, 4})}),
                    Contains("offsets[1] = 5"));
  // Between the first and the second, which run from 0 to R as they should.
  CHECK_THROWS_WITH(forward<GroupedMatmul>({x, w}, {tensor_of<int64_t>({0, -1, 4})}),
                    Contains("offsets[0] = 0, offsets[1] = -1"));
}

TEST_CASE("moves of rows: combining what was permuted gives every row back, times its weights") {
  const Tensor x = normal({4, 6}, 1, "x");
  const std::vector<int32_t> take = {2, 0, 3, 1, 1, 3, 0, 2};  // each row twice
  const std::vector<int32_t> back = {1, 6, 3, 4, 0, 7, 2, 5};  // where row r went, twice
  const Tensor moved = forward<PermuteRows>({x, {}}, {ints(take)}).y;
  const Tensor weight = full({4, 2}, 0.5, Dtype::f64);
  CHECK(same_bits(forward<CombineRows>({moved, weight}, {ints(back)}).y, x));
}

TEST_CASE("moves of rows: an index outside the rows is named with its place") {
  const Tensor x = normal({3, 2}, 1, "x");
  CHECK_THROWS_WITH(forward<PermuteRows>({x, {}}, {ints({0, 3})}), Contains("index[1] = 3"));
  CHECK_THROWS_WITH(forward<CombineRows>({x, full({1, 2}, 1, Dtype::f64)}, {ints({-1, 0})}),
                    Contains("index[0] = -1"));
}

TEST_CASE("routing: the number of threads does not show in the result") {
  std::vector<int32_t> index(600);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * i % 290);
  check_threads<Router>({f32({900, 40}, "logits")}, {4, true, false, {}});
  check_threads<GroupedMatmul>({f32({700, 50}, "x"), f32({3, 150, 50}, "w")},
                               {tensor_of<int64_t>({0, 300, 310, 700})});
  check_threads<PermuteRows>({f32({290, 66}, "x"), f32({600}, "w")}, {ints(index)});
  check_threads<CombineRows>({f32({290, 66}, "x"), f32({200, 3}, "w")}, {ints(index)});
}
