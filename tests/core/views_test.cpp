// What is written through a view reaches the view's numbers and no others.
#include <cmath>
#include <set>
#include <sstream>

#include "core/tensor.h"
#include "tests/catch.h"
#include "tests/core/counted.h"

using namespace weft;
using weft::tests::counted;

namespace {

using Numbers = std::vector<double>;

// Views of a counted [4, 6] of every kind of stride.
std::vector<Tensor> views_of(const Tensor& t) {
  return {t.slice(0, 1, 3),
          t.slice(1, 2, 5),
          t.transpose(0, 1),
          t.transpose(0, 1).slice(0, 1, 4),
          t.select(0, 2),
          t.select(1, 3),
          t.as_strided({2, 3}, {12, 2}, 1),  // every second number of every second row
          t.as_strided({3}, {8}, 0),
          t.unsqueeze(1).slice(2, 5, 6),
          t.slice(0, 2, 2)};
}

// The numbers of a [4, 6] at which a view stands.
std::set<int64_t> places(const Tensor& view) {
  std::set<int64_t> all;
  for (const double x : to_doubles(view)) all.insert(static_cast<int64_t>(x));
  return all;
}

}  // namespace

TEST_CASE("views: filling one changes its numbers alone, in every type") {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::i64, Dtype::i32, Dtype::u8})
    for (const bool zero : {false, true})
      for (size_t which = 0; which < views_of(counted({4, 6})).size(); ++which) {
        INFO(dtype << ", view " << which);
        const Tensor t = counted({4, 6}, dtype);
        const Tensor view = views_of(t)[which];
        const std::set<int64_t> here = places(view);
        const uint64_t version = t.version();
        if (zero)
          view.zero();
        else
          view.fill(77);
        CHECK(t.version() > version);
        const Numbers all = to_doubles(t);
        for (int64_t i = 0; i < 24; ++i)
          CHECK(all[static_cast<size_t>(i)] ==
                (here.count(i) ? (zero ? 0.0 : 77.0) : static_cast<double>(i)));
      }
}

TEST_CASE("views: adding and copying to one changes its numbers alone") {
  for (size_t which = 0; which < views_of(counted({4, 6})).size(); ++which)
    for (const bool add : {false, true})
      for (const bool transposed : {false, true}) {
        INFO("view " << which << (add ? ", added" : ", copied"));
        const Tensor t = counted({4, 6});
        const Tensor view = views_of(t)[which];
        const Numbers here = to_doubles(view);
        Tensor source = counted(view.shape());
        if (transposed && view.dims() == 2)
          source = counted({view.size(1), view.size(0)}).transpose(0, 1);
        const Numbers from = to_doubles(source);
        if (add)
          view.add_from(source);
        else
          view.copy_from(source);
        Numbers expected = to_doubles(counted({4, 6}));
        for (size_t i = 0; i < here.size(); ++i)
          expected[static_cast<size_t>(here[i])] = from[i] + (add ? here[i] : 0);
        CHECK(to_doubles(t) == expected);
      }
}

TEST_CASE("views: bf16 adds into f32 without a rounding of the sum, other mixtures are refused") {
  const Tensor sum = full({3}, 1, Dtype::f32);
  sum.add_from(full({3}, 1.0 / 512, Dtype::bf16));
  CHECK(to_doubles(sum) == Numbers(3, 1 + 1.0 / 512));
  CHECK_THROWS_WITH(sum.add_from(full({3}, 1, Dtype::f64)), ContainsSubstring("add: f64 to f32"));
  CHECK_THROWS_WITH(full({3}, 1, Dtype::bf16).add_from(sum), ContainsSubstring("add: f32 to bf16"));
  CHECK_THROWS_WITH(full({3}, 1, Dtype::i32).add_from(full({3}, 1, Dtype::i32)),
                    ContainsSubstring("add: i32"));
  CHECK_THROWS_WITH(sum.add_from(full({4}, 1, Dtype::f32)), ContainsSubstring("[4] to [3]"));
  CHECK_THROWS_WITH(sum.copy_from(full({4}, 1, Dtype::f32)), ContainsSubstring("[4] into [3]"));
}

TEST_CASE("views: a slice keeps within its dimension, ends included") {
  const Tensor t = counted({4, 6});
  CHECK(t.slice(0, 4, 4).numel() == 0);
  CHECK(t.slice(1, 0, 6).same_view(t));
  CHECK_THROWS_WITH(t.slice(0, 0, 5), ContainsSubstring("slice: 0..5"));
  CHECK_THROWS_WITH(t.slice(0, -1, 2), ContainsSubstring("slice: -1..2"));
  CHECK_THROWS_WITH(t.slice(1, 3, 2), ContainsSubstring("slice: 3..2"));
  CHECK_THROWS_AS(t.slice(2, 0, 1), Error);
  CHECK_THROWS_AS(t.select(0, 4), Error);
  CHECK_THROWS_AS(t.transpose(0, 2), Error);
  CHECK_THROWS_WITH(t.expand(0, 2), ContainsSubstring("is not 1"));
  CHECK_THROWS_WITH(t.item(), ContainsSubstring("is not one number"));
  CHECK(t.select(0, 3).select(0, 5).item() == 23);
}

TEST_CASE("views: dimensions count from the end as well") {
  const Tensor t = counted({2, 3, 4});
  CHECK(t.size(-1) == 4);
  CHECK(t.stride(-3) == 12);
  CHECK(t.transpose(-1, 0).same_view(t.transpose(2, 0)));
  CHECK(t.slice(-1, 1, 2).same_view(t.slice(2, 1, 2)));
  CHECK(t.select(-2, 1).same_view(t.select(1, 1)));
  CHECK(t.unsqueeze(-1).shape() == Shape{2, 3, 4, 1});
  CHECK(t.unsqueeze(0).shape() == Shape{1, 2, 3, 4});
}

TEST_CASE("views: contiguous are those whose numbers lie in order without a gap") {
  const Tensor t = counted({4, 6});
  CHECK(t.is_contiguous());
  CHECK(t.slice(0, 1, 3).is_contiguous());
  CHECK(t.unsqueeze(1).is_contiguous());
  CHECK_FALSE(t.slice(1, 0, 5).is_contiguous());
  CHECK_FALSE(t.transpose(0, 1).is_contiguous());
  CHECK_FALSE(t.select(1, 0).is_contiguous());
  CHECK_FALSE(t.unsqueeze(0).expand(0, 2).is_contiguous());
  CHECK(t.contiguous().same_view(t));
  CHECK(t.transpose(0, 1).contiguous().is_contiguous());
  CHECK(to_doubles(t.unsqueeze(0).expand(0, 2).contiguous()).size() == 48);
}

TEST_CASE("views: a cast to the same type is the tensor itself, to another a copy") {
  const Tensor t = counted({4, 6}, Dtype::f32);
  CHECK(t.to(Dtype::f32).same_view(t));
  CHECK_FALSE(t.to(Dtype::f64).shares_memory(t));
  CHECK(t.to(kCpu).same_view(t));
  CHECK(t.reshape({4, 6}).same_view(t));
  CHECK_FALSE(t.transpose(0, 1).reshape({24}).shares_memory(t));
  const Tensor copy = t.clone();
  CHECK_FALSE(copy.same_view(t));
  CHECK(full({2}, 3, Dtype::i32).data<int32_t>()[1] == 3);
  CHECK(zeros({2}, Dtype::f32).data<float>()[1] == 0);
}

TEST_CASE("views: shapes are printed, compared and held to six dimensions") {
  std::ostringstream out;
  out << Shape{2, 65, 3} << Shape{};
  CHECK(out.str() == "[2, 65, 3][]");
  CHECK(Shape{2, 3} == Shape({2, 3}));
  CHECK_FALSE(Shape{2, 3} == Shape{2, 3, 1});
  CHECK_FALSE(Shape{2, 3} == Shape{3, 2});
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{3, 0, 5}.numel() == 0);
  CHECK(Shape({1, 2, 3, 4, 5, 6}).dims() == 6);
  CHECK_THROWS_WITH(Shape({1, 2, 3, 4, 5, 6, 7}), ContainsSubstring("at most 6 dimensions"));
}

TEST_CASE("views: bf16 halfway goes to the even one, of either sign and at the ends") {
  const auto rounded = [](float x) { return float(bf16(x)); };
  CHECK(rounded(1.0f + 1.0f / 256) == 1.0f);               // tie, down to even
  CHECK(rounded(1.0f + 3.0f / 256) == 1.0f + 4.0f / 256);  // tie, up to even
  CHECK(rounded(-1.0f - 1.0f / 256) == -1.0f);
  CHECK(rounded(-1.0f - 3.0f / 256) == -1.0f - 4.0f / 256);
  CHECK(rounded(1.0f + 0.9f / 256) == 1.0f);
  CHECK(rounded(2.0f - 1.0f / 512) == 2.0f);  // into the next power of two
  CHECK(std::signbit(rounded(-0.0f)));
  CHECK(rounded(1e-40f) > 0);  // below the normal numbers
}
