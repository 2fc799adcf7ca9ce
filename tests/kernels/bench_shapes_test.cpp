// What a benchmark runs, and what it counts: the shapes that operations give themselves.
#include <algorithm>
#include <set>

#include "kernels/attention/attention.h"
#include "kernels/contract/operation.h"
#include "kernels/delta/delta.h"
#include "kernels/gated_linear/gated_linear.h"
#include "kernels/kda/kda.h"
#include "kernels/linear/linear.h"
#include "tests/catch.h"

namespace weft::kernels {
namespace {

bool given(const GpuShape& s, const Field& f) {
  return !f.optional || std::count(s.with.begin(), s.with.end(), std::string(f.name)) > 0;
}

TEST_CASE("gpu shapes: every input that is there has its sizes, and every name is an input's") {
  for (const Operation* op : operations()) {
    std::set<std::string> known;
    for (const Field& f : op->inputs()) known.insert(f.name);
    for (const GpuShape& s : op->gpu_shapes()) {
      INFO(s.name);
      for (const Field& f : op->inputs()) {
        if (!given(s, f)) continue;
        for (const std::string& letter : letters_of(f.shape)) {
          INFO(f.name << ": " << letter);
          CHECK(s.sizes.count(letter) == 1);
        }
      }
      for (const std::string& name : s.with) CHECK(known.count(name) == 1);
      for (const std::string& name : s.constants) CHECK(known.count(name) == 1);
      for (const auto& [name, index] : s.index) CHECK(index.device() == kCpu);
    }
  }
}

TEST_CASE("gpu shapes: a row's name is its own, and every mechanism has a row with FLOPs") {
  std::set<std::string> names;
  for (const Operation* op : operations()) {
    const std::vector<Form> forms = op->forms();
    const bool mechanism = std::count(forms.begin(), forms.end(), Form::recurrent) > 0;
    if (mechanism) CHECK(!op->gpu_shapes().empty());
    for (const GpuShape& s : op->gpu_shapes()) {
      INFO(s.name);
      CHECK(names.insert(s.name).second);
      if (!mechanism) continue;
      CHECK(s.flops.forward > 0);
      CHECK(s.flops.backward > s.flops.forward);
    }
  }
}

TEST_CASE("gpu shapes: the benchmark on either device counts with the same formula") {
  // Per token, head and square of the width: 64 against 128 columns, so the chunk's part differs.
  const auto each = [](const GpuShape& s) {
    return s.flops.forward /
           static_cast<double>(s.sizes.at("B") * s.sizes.at("T") * s.sizes.at("H"));
  };
  const Operation& linear = operation("linear");
  CHECK(each(linear.gpu_shapes()[0]) == Approx(Linear::flops(128, 128).forward));
  CHECK(linear.bench(100).flops.forward == Approx(100 * 4 * Linear::flops(64, 64).forward));
}

// A chunk of C tokens, product by product; the sum is compared with the formula, but for the terms
// of one token that "a triangle is half" leaves out.
struct Counted {
  double C, sum = 0;
  void full(double rows, double inner, double columns) { sum += 2 * rows * inner * columns; }
  void triangle(double columns) { sum += C * C * columns; }  // C x C, half of it, times columns
  double each() const { return sum / C; }
};

TEST_CASE("flops: linear attention has two products with the state and two triangles") {
  Counted n{64};
  n.full(64, 3, 5);  // q S
  n.full(3, 64, 5);  // k' v
  n.triangle(3);     // q k'
  n.triangle(5);     // (q k') v
  CHECK(Linear::flops(3, 5).forward == Approx(n.each()));
}

TEST_CASE("flops: the delta rule adds the product of keys with the state and the substitution") {
  Counted n{64};
  n.full(64, 3, 5);  // k S
  n.full(64, 3, 5);  // q S
  n.full(3, 64, 5);  // k' u
  n.triangle(3);     // k k'
  n.triangle(3);     // q k'
  n.triangle(5);     // forward substitution of u
  n.triangle(5);     // (q k') u
  CHECK(Delta::flops(3, 5).forward == Approx(n.each()));
}

TEST_CASE("flops: softmax attention has two products forward and five backward") {
  CHECK(softmax_flops(7, 3, 5).forward == Approx(2 * 7 * (3 + 5)));
  // x = q k' again, dp = do v', dv = p' do, dq = dx k, dk = dx' q.
  CHECK(softmax_flops(7, 3, 5).backward == Approx(2 * 7 * (3 + 5 + 5 + 3 + 3)));
}

}  // namespace
}  // namespace weft::kernels
