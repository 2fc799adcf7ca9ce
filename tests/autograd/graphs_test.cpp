// Small graphs against gradients written down. All numbers are small integers, so that every float
// type and every device must give exactly these.
#include <functional>
#include <string>
#include <vector>

#include "autograd/ops.h"
#include "autograd/tape.h"
#include "core/device.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::autograd;

namespace {

using Numbers = std::vector<double>;

// Where a graph's leaves lie.
struct Place {
  Dtype dtype = Dtype::f64;
  Device device = kCpu;

  Tensor tensor(const Numbers& numbers, const Shape& shape) const {
    return tensor_of(numbers).reshape(shape).to(dtype).to(device);
  }
  Tensor tensor(const Numbers& numbers) const {
    return tensor(numbers, {static_cast<int64_t>(numbers.size())});
  }
  Var leaf(const Numbers& numbers) const { return Var::leaf(tensor(numbers)); }
  Var leaf(const Numbers& numbers, const Shape& shape) const {
    return Var::leaf(tensor(numbers, shape));
  }
  // <weights, y>
  Var weighted(const Var& y, const Numbers& weights) const {
    return sum(multiply(y, Var(tensor(weights, y.shape()))));
  }
};

Numbers gradient(const Var& leaf) { return leaf.grad() ? to_doubles(leaf.grad()) : Numbers{}; }

void everywhere(const std::function<void(const Place&)>& check) {
  std::vector<Place> places{{Dtype::f64, kCpu}, {Dtype::f32, kCpu}};
  if (cuda_device_count() > 0) places.push_back({Dtype::f32, kCuda});
  for (const Place& place : places) {
    INFO(place.dtype << " on " << place.device);
    check(place);
  }
}

}  // namespace

TEST_CASE("graphs: a diamond's gradient is the sum over its two sides") {
  everywhere([](const Place& at) {
    // z = 2 x * (x + y)
    const Var x = at.leaf({1, 2, 3}), y = at.leaf({4, 5, -6});
    backward(at.weighted(multiply(scale(x, 2), add(x, y)), {1, 10, 100}));
    CHECK(gradient(x) == Numbers{12, 180, 0});  // (4 x + 2 y) weights
    CHECK(gradient(y) == Numbers{2, 40, 600});  // 2 x weights
  });
}

TEST_CASE("graphs: diamonds behind each other multiply their paths") {
  everywhere([](const Place& at) {
    // Each doubles and adds three times itself: 5 a diamond.
    const Var x = at.leaf({1, -1});
    Var y = x;
    for (int i = 0; i < 4; ++i) y = add(scale(y, 2), scale(y, 3));
    backward(at.weighted(y, {1, 2}));
    CHECK(gradient(x) == Numbers{625, 1250});
  });
}

TEST_CASE("graphs: a value used twice or thrice gets every use's gradient") {
  everywhere([](const Place& at) {
    const Var twice = at.leaf({2, 3});
    backward(at.weighted(add(twice, twice), {1, 10}));
    CHECK(gradient(twice) == Numbers{2, 20});

    // The same of a value in the middle: m = 3 x, z = m * m + m.
    const Var x = at.leaf({1, -2});
    const Var m = scale(x, 3);
    backward(at.weighted(add(multiply(m, m), m), {1, 10}));
    CHECK(gradient(x) == Numbers{21, -330});  // 3 (2 m + 1) weights

    // m * m * m
    const Var u = at.leaf({1, -2});
    const Var n = scale(u, 2);
    backward(at.weighted(multiply(multiply(n, n), n), {1, 10}));
    CHECK(gradient(u) == Numbers{24, 960});  // 3 n^2 * 2 weights

    const Var thrice = at.leaf({5});
    backward(sum(add(add(thrice, thrice), thrice)));
    CHECK(gradient(thrice) == Numbers{3});
  });
}

TEST_CASE("graphs: a gradient added to one branch leaves the other branch's alone") {
  everywhere([](const Place& at) {
    // add hands one tensor to both of its inputs; a then gets more, b must not see it.
    const Var x = at.leaf({1, 1}), y = at.leaf({1, 1});
    const Var a = scale(x, 2), b = scale(y, 3);
    const Var late = scale(a, 10);
    backward(at.weighted(add(add(a, b), late), {1, 2}));
    CHECK(gradient(x) == Numbers{22, 44});
    CHECK(gradient(y) == Numbers{3, 6});
  });
  everywhere([](const Place& at) {
    // The other way round: the second input is the one that gets more.
    const Var x = at.leaf({1, 1}), y = at.leaf({1, 1});
    const Var a = scale(x, 2), b = scale(y, 3);
    const Var late = scale(b, 10);
    backward(at.weighted(add(late, add(a, b)), {1, 2}));
    CHECK(gradient(x) == Numbers{2, 4});
    CHECK(gradient(y) == Numbers{33, 66});
  });
  everywhere([](const Place& at) {
    // Three hold one tensor: two leaves, and a value that another use reaches before it.
    const Var x = at.leaf({1, 1}), y = at.leaf({1, 1}), z = at.leaf({1, 1});
    const Var a = scale(x, 2);
    const Var s = add(add(a, y), z);
    backward(at.weighted(add(s, multiply(a, a)), {1, 2}));
    CHECK(gradient(x) == Numbers{10, 20});  // (1 + 2 a) 2 weights
    CHECK(gradient(y) == Numbers{1, 2});
    CHECK(gradient(z) == Numbers{1, 2});
  });
}

TEST_CASE("graphs: parts of one gradient go to branches that do not see each other's") {
  everywhere([](const Place& at) {
    // concat hands out slices of its gradient; a and the leaf y lie in one memory.
    const Var x = at.leaf({1, 1}), y = at.leaf({1, 1, 1});
    const Var a = scale(x, 2);
    const Var late = scale(a, 100);
    backward(add(at.weighted(concat({a, y, a}, 0), {1, 2, 3, 4, 5, 6, 7}), sum(late)));
    CHECK(gradient(x) == Numbers{214, 218});  // 2 (1 + 6 + 100), 2 (2 + 7 + 100)
    CHECK(gradient(y) == Numbers{3, 4, 5});
  });
  everywhere([](const Place& at) {
    // Two leaves in one memory, and both summed into once more afterwards.
    const Var x = at.leaf({1, 1}), y = at.leaf({1, 1});
    for (int i = 0; i < 2; ++i) backward(at.weighted(concat({x, y}, 0), {1, 2, 3, 4}));
    CHECK(gradient(x) == Numbers{2, 4});
    CHECK(gradient(y) == Numbers{6, 8});
  });
}

TEST_CASE("graphs: a leaf's gradient shares no memory with another's, nor with one handed in") {
  everywhere([](const Place& at) {
    const Var x = at.leaf({1, 1}), y = at.leaf({1, 1});
    backward(at.weighted(add(x, y), {1, 2}));
    CHECK_FALSE(x.grad().shares_memory(y.grad()));
    backward(sum(x));
    CHECK(gradient(x) == Numbers{2, 3});
    CHECK(gradient(y) == Numbers{1, 2});

    // A gradient that the caller keeps stays as it was, however often it is used.
    const Var u = at.leaf({1, 1});
    const std::vector<std::pair<Var, Tensor>> results{{u, at.tensor({1, 2})}};
    for (int i = 0; i < 3; ++i) backward(results);
    CHECK(gradient(u) == Numbers{3, 6});
    CHECK(to_doubles(results[0].second) == Numbers{1, 2});

    const Var v = at.leaf({1, 1});
    const Tensor kept = at.tensor({1, 2});
    const Var w = scale(v, 2);
    backward({{w, kept}, {w, kept}, {v, kept}});
    backward({{v, kept}});
    CHECK(gradient(v) == Numbers{6, 12});
    CHECK(to_doubles(kept) == Numbers{1, 2});

    // A view of a constant's memory as a gradient: a leaf owns what it sums into.
    const Var t = at.leaf({1, 1}, {1, 2});
    const Tensor wide = at.tensor({1, 2, 3, 4}, {2, 2});
    backward({{t, wide.slice(0, 0, 1)}});
    backward(sum(t));
    CHECK(gradient(t) == Numbers{2, 3});
    CHECK(to_doubles(wide) == Numbers{1, 2, 3, 4});
  });
}

TEST_CASE("graphs: a leaf that is itself an output gets the gradient of that output") {
  everywhere([](const Place& at) {
    const Var loss = at.leaf({7});
    backward(loss);
    CHECK(gradient(loss) == Numbers{1});

    // An output, and used on the way to another.
    const Var x = at.leaf({2, 3});
    backward({{x, at.tensor({100, 200})}, {multiply(x, x), at.tensor({1, 10})}});
    CHECK(gradient(x) == Numbers{104, 260});

    // A block that hands its leaf through, recomputed.
    const Var y = at.leaf({2, 3});
    const std::vector<Var> out = recompute(
        [](const std::vector<Var>& in) {
          return std::vector<Var>{in[0], multiply(in[0], in[0])};
        },
        {y});
    backward(add(at.weighted(out[0], {100, 200}), at.weighted(out[1], {1, 10})));
    CHECK(gradient(y) == Numbers{104, 260});
  });
}

TEST_CASE("graphs: a value and what was made of it may both be outputs") {
  everywhere([](const Place& at) {
    const Var x = at.leaf({1, 2});
    const Var y = scale(x, 2), z = multiply(y, y);
    backward({{z, at.tensor({1, 1})}, {y, at.tensor({10, 20})}});
    CHECK(gradient(x) == Numbers{28, 56});  // 2 (2 y + 10), 2 (2 y + 20)
  });
}

TEST_CASE("graphs: what is detached counts as a number") {
  everywhere([](const Place& at) {
    const Var x = at.leaf({2, 3});
    const Var m = scale(x, 2);
    backward(at.weighted(multiply(m.detach(), x), {1, 10}));
    CHECK(gradient(x) == Numbers{4, 60});  // 2 x, not 4 x

    // One use detached, one not.
    const Var y = at.leaf({2, 3});
    backward(at.weighted(add(multiply(y, y.detach()), y.detach()), {1, 10}));
    CHECK(gradient(y) == Numbers{2, 30});

    const Var untouched = at.leaf({1});
    backward(sum(add(scale(at.leaf({1}), 2), untouched.detach())));
    CHECK_FALSE(untouched.grad().defined());
  });
}

TEST_CASE("graphs: views send gradients back to the places they show") {
  everywhere([](const Place& at) {
    const Var x = at.leaf({1, 2, 3, 4, 5, 6}, {2, 3});
    backward(at.weighted(transpose(x, 0, 1), {1, 2, 3, 4, 5, 6}));
    CHECK(gradient(x) == Numbers{1, 3, 5, 2, 4, 6});
    CHECK(x.grad().is_contiguous());

    // Two slices that overlap, and the whole.
    const Var y = at.leaf({1, 1, 1, 1});
    backward(add(add(at.weighted(slice(y, 0, 0, 3), {1, 2, 3}),
                     at.weighted(slice(y, 0, 1, 4), {10, 20, 30})),
                 at.weighted(y, {100, 200, 300, 400})));
    CHECK(gradient(y) == Numbers{101, 212, 323, 430});

    // Of three parts one is used twice, one not at all.
    const Var z = at.leaf({1, 2, 3, 4, 5, 6}, {2, 3});
    const std::vector<Var> parts = split(z, 1, {1, 1, 1});
    backward(at.weighted(multiply(parts[0], parts[0]), {1, 10}));
    CHECK(gradient(z) == Numbers{2, 0, 0, 80, 0, 0});

    // A view of a view, beside what it shows.
    const Var u = at.leaf({1, 2, 3, 4, 5, 6}, {2, 3});
    const Var flat = reshape(u, {6});
    const Var corner = slice(reshape(flat, {3, 2}), 1, 1, 2);  // 2, 4, 6
    backward(add(at.weighted(corner, {1, 10, 100}), at.weighted(flat, {1, 1, 1, 1, 1, 1})));
    CHECK(gradient(u) == Numbers{1, 2, 1, 11, 1, 101});

    // Reshaped twice: one gradient, in two shapes, summed.
    const Var v = at.leaf({1, 2, 3, 4});
    backward(add(at.weighted(reshape(v, {2, 2}), {1, 2, 3, 4}),
                 at.weighted(reshape(v, {4, 1}), {10, 20, 30, 40})));
    CHECK(gradient(v) == Numbers{11, 22, 33, 44});
  });
}

TEST_CASE("graphs: a transposed or repeated gradient is summed like any other") {
  everywhere([](const Place& at) {
    const Var x = at.leaf({1, 2, 3, 4}, {2, 2});
    const Var y = scale(x, 1);
    // The first that comes in is a view of other strides, the second is not.
    backward(add(at.weighted(transpose(y, 0, 1), {1, 2, 3, 4}), at.weighted(y, {10, 20, 30, 40})));
    CHECK(gradient(x) == Numbers{11, 23, 32, 44});
    backward(at.weighted(transpose(x, 0, 1), {1, 2, 3, 4}));
    CHECK(gradient(x) == Numbers{12, 26, 34, 48});
    backward(sum(x));
    CHECK(gradient(x) == Numbers{13, 27, 35, 49});
  });
}

TEST_CASE("graphs: vectors along a dimension get the sum over the others") {
  everywhere([](const Place& at) {
    const Var x = at.leaf({1, 2, 3, 4, 5, 6}, {2, 3}), w = at.leaf({1, 10, 100}),
              b = at.leaf({0, 0, 0});
    backward(at.weighted(add_along(multiply_along(x, w, 1), b, 1), {1, 2, 3, 4, 5, 6}));
    CHECK(gradient(x) == Numbers{1, 20, 300, 4, 50, 600});
    CHECK(gradient(w) == Numbers{17, 29, 45});
    CHECK(gradient(b) == Numbers{5, 7, 9});
  });
}

TEST_CASE("graphs: gradients of two passes add up, into the same memory") {
  everywhere([](const Place& at) {
    const Var x = at.leaf({1, 2}), y = at.leaf({3, 4});
    for (int pass = 1; pass <= 2; ++pass) {
      backward(at.weighted(multiply(x, y), {1, 10}));
      CHECK(gradient(x) == (pass == 1 ? Numbers{3, 40} : Numbers{6, 80}));
      CHECK(gradient(y) == (pass == 1 ? Numbers{1, 20} : Numbers{2, 40}));
    }
    x.zero_grad();
    backward(at.weighted(multiply(x, y), {1, 10}));
    CHECK(gradient(x) == Numbers{3, 40});
    CHECK(gradient(y) == Numbers{3, 60});
    x.drop_grad();
    CHECK_FALSE(x.grad().defined());
    backward(sum(x));
    CHECK(gradient(x) == Numbers{1, 1});

    // Into a place that the caller gave, on top of what stands there.
    const Tensor place = at.tensor({100, 200});
    y.set_grad(place);
    backward(at.weighted(y, {1, 10}));
    CHECK(to_doubles(place) == Numbers{101, 210});
  });
}

TEST_CASE("graphs: a recomputed block sums like the block itself") {
  everywhere([](const Place& at) {
    // w is captured and used inside twice and outside once; x goes in twice.
    const Var x = at.leaf({1, 2}), w = at.leaf({3, 4});
    const auto block = [&](const std::vector<Var>& in) {
      return std::vector<Var>{multiply(multiply(in[0], w), w), add(in[1], w)};
    };
    const std::vector<Var> y = recompute(block, {x, x});
    backward(add(add(at.weighted(y[0], {1, 10}), at.weighted(y[1], {100, 200})), sum(w)));
    CHECK(gradient(x) == Numbers{109, 360});                    // w^2 weights + the second's
    CHECK(gradient(w) == Numbers{6 + 100 + 1, 160 + 200 + 1});  // 2 x w weights + ...
    // An output that nobody uses brings nothing.
    const Var u = at.leaf({1, 2});
    backward(at.weighted(recompute(block, {u, u})[1], {1, 2}));
    CHECK(gradient(u) == Numbers{1, 2});
  });
}
