// Shapes, views, copies and casts.
#include "core/tensor.h"

#include <cmath>

#include "tests/catch.h"
#include "tests/core/counted.h"

using namespace weft;
using weft::tests::counted;

TEST_CASE("tensor: a view shares memory, a clone does not") {
  const Tensor t = counted({3, 4});
  const Tensor v = t.slice(1, 1, 3), c = v.clone();
  t.fill(7);
  CHECK(to_doubles(v) == std::vector<double>(6, 7));
  CHECK(to_doubles(c) == std::vector<double>{1, 2, 5, 6, 9, 10});
  CHECK(v.shares_memory(t));
  CHECK_FALSE(c.shares_memory(t));
}

TEST_CASE("tensor: transposed, selected and expanded views read the right elements") {
  const Tensor t = counted({2, 3, 4});
  CHECK(to_doubles(t.transpose(0, 2).select(0, 1).contiguous()) ==
        std::vector<double>{1, 13, 5, 17, 9, 21});
  CHECK(to_doubles(t.select(1, 2)) == std::vector<double>{8, 9, 10, 11, 20, 21, 22, 23});
  CHECK(to_doubles(t.select(0, 0).select(0, 0).unsqueeze(0).expand(0, 2)) ==
        std::vector<double>{0, 1, 2, 3, 0, 1, 2, 3});
}

TEST_CASE("tensor: reshape keeps the order and finds the open size") {
  const Tensor t = counted({4, 6});
  CHECK(t.reshape({2, -1}).shape() == Shape{2, 12});
  CHECK(t.reshape({2, -1}).shares_memory(t));
  CHECK(to_doubles(t.transpose(0, 1).reshape({24}))[1] == 6);
  CHECK_THROWS_WITH(t.reshape({5, 5}), ContainsSubstring("24 elements"));
}

TEST_CASE("tensor: copies cast between every pair of types and any strides") {
  const Tensor t = counted({5, 7});
  for (const Dtype d : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::i64, Dtype::i32, Dtype::u8})
    CHECK(to_doubles(t.transpose(0, 1).to(d)) == to_doubles(t.transpose(0, 1)));
}

TEST_CASE("tensor: bf16 rounds to the nearest, ties to even, and keeps NaN") {
  CHECK(float(bf16(1.0f + 1.0f / 256)) == 1.0f);
  CHECK(float(bf16(1.0f + 3.0f / 256)) == 1.0f + 1.0f / 64);
  CHECK(float(bf16(1.0f + 1.1f / 256)) == 1.0f + 1.0f / 128);
  CHECK(std::isnan(float(bf16(NAN))));
  CHECK(std::isinf(float(bf16(3.4e38f))));
}

TEST_CASE("tensor: an empty tensor is defined, an absent one is not") {
  CHECK(empty({0, 3}, Dtype::f32).defined());
  CHECK(empty({0, 3}, Dtype::f32).data<float>() != nullptr);
  CHECK_FALSE(Tensor().defined());
}

TEST_CASE("tensor: a meta tensor follows shapes and holds nothing") {
  const Tensor t = empty({1 << 20, 1 << 20}, Dtype::f64, kMeta);
  CHECK(t.transpose(0, 1).slice(0, 5, 10).clone().shape() == Shape{5, 1 << 20});
  CHECK(t.data<double>() == nullptr);
  CHECK_THROWS_WITH(empty({1}, Dtype::f32, kMeta).item(), ContainsSubstring("meta"));
}

TEST_CASE("tensor: reading with the wrong type is an error") {
  CHECK_THROWS_WITH(empty({1}, Dtype::f32).data<double>(), ContainsSubstring("f32"));
}
