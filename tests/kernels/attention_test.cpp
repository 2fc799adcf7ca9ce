// Dense and sliding-window attention: gradients by finite differences, and what holds of attention
// and of nothing else. That the forms agree, on any threads and strides, is in forms_test.cpp.
#include "kernels/attention/attention.h"

#include "kernels/attention/reference.h"
#include "tests/kernels/softmax_checks.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::softmax_checks;

namespace {

using Sizes = Reference<Attention>::Sizes;
using Settled = Attention::Options;

Inputs<Attention> sample(const Sizes& sizes, Dtype dtype = Dtype::f64) {
  return as<Attention>(dtype, Reference<Attention>::sample("", sizes).x);
}

Settled windowed(int64_t window, bool causal = true) {
  Settled o;
  o.window = window, o.causal = causal;
  return o;
}

Settled packed(const std::vector<int32_t>& borders) {
  Settled o;
  o.cu_seqlens = tensor_of<int32_t>(borders);
  return o;
}

// The values say where they are: v_j is the j-th unit vector, so that o holds P.
Tensor unit_values(int64_t S) {
  const Tensor v = zeros({1, S, 1, S}, Dtype::f64);
  for (int64_t j = 0; j < S; ++j) view<double>(v)(0, j, 0, j) = 1;
  return v;
}

}  // namespace

TEST_CASE("attention: gradients are those of finite differences") {
  for (const NamedCase& c : operation("attention").cases()) {
    if (c.name == "large scores") continue;  // too steep for differences
    INFO(c.name);
    check_finite_differences("attention", c);
  }
}

TEST_CASE("attention: equal scores give the mean of the values seen, and lse counts them") {
  auto x = sample({.T = 70, .H = 2, .Hk = 1});
  x.q.zero();
  const auto y = forward<Attention>(x, {});
  const auto o = view<double>(y.o), v = view<double>(x.v), lse = view<double>(y.lse);
  double sum = 0;
  for (int64_t t = 0; t < 70; ++t) {
    sum += v(0, t, 0, 0);
    CHECK(o(0, t, 1, 0) == Approx(sum / static_cast<double>(t + 1)).margin(1e-14));
    CHECK(lse(0, 1, t) == Approx(std::log(static_cast<double>(t + 1))).margin(1e-14));
  }
}

TEST_CASE("attention: a query sees exactly the W last keys, its own included") {
  const int64_t T = 150;
  for (const int64_t W : {1, 2, 63, 64, 65, 149, 150, 400}) {
    for (const bool causal : {true, false}) {
      INFO("W = " << W << (causal ? ", causal" : ", both ways"));
      auto x = sample({.T = T});
      x.v = unit_values(T);
      const auto p = view<double>(forward<Attention>(x, windowed(W, causal)).o);
      bool right = true;
      for (int64_t i = 0; i < T; ++i)
        for (int64_t j = 0; j < T; ++j) {
          const bool seen = (j <= i || !causal) && std::abs(i - j) < W;
          right = right && (p(0, i, 0, j) > 0) == seen;
        }
      CHECK(right);
    }
  }
}

TEST_CASE("attention: a window as long as the keys is none, to the bit") {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
    const auto x = sample({.T = 131, .H = 2}, dtype);
    check_same_bits<Attention>(run<Attention>(x, windowed(131)), run<Attention>(x, {}));
  }
}

TEST_CASE("attention: a key's gradient comes from the W queries from its own on") {
  const int64_t T = 140;
  for (const int64_t W : {1, 2, 63, 64, 65}) {
    for (const int64_t query : {0, 63, 64, 100, 139}) {
      INFO("W = " << W << ", query " << query);
      const auto x = sample({.T = T});
      auto dy = gradients_for<Attention>(x);
      const Tensor only = zeros_like(dy.o);
      only.select(1, query).copy_from(dy.o.select(1, query));
      dy.o = only;
      dy.lse.zero();
      const auto r = run<Attention>(x, windowed(W), dy);
      bool right = true;
      for (int64_t j = 0; j < T; ++j)
        right = right && all_zero(r.dx.v.select(1, j)) == !(j <= query && query < j + W);
      CHECK(right);
    }
  }
}

TEST_CASE("attention: what a token holds changes nothing before it, to the bit") {
  for (const int64_t window : {0, 20}) {
    for (const int64_t t : {1, 63, 64, 65, 129}) {
      const auto x = sample({.T = 130, .H = 2}, Dtype::f32);
      const auto before = forward<Attention>(x, windowed(window));
      for (const Tensor& changed : {x.q, x.k, x.v}) changed.select(1, t).fill(3);
      const auto after = forward<Attention>(x, windowed(window));
      CHECK(same_bits(before.o.slice(1, 0, t), after.o.slice(1, 0, t)));
      CHECK(same_bits(before.lse.slice(2, 0, t), after.lse.slice(2, 0, t)));
      CHECK_FALSE(same_bits(before.o.slice(1, t, t + 1), after.o.slice(1, t, t + 1)));
    }
  }
}

TEST_CASE("attention: keys that no query sees are never read, and have gradients of 0") {
  for (const int64_t T : {1, 5, 64, 70}) {
    const int64_t S = 200, W = 8, seen = S - T - W + 1;
    auto x = sample({.T = T, .S = S, .H = 4, .Hk = 2}, Dtype::f32);
    x.k.slice(1, 0, seen).fill(NAN);
    x.v.slice(1, 0, seen).fill(NAN);
    const auto r = run<Attention>(x, windowed(W));
    for (const Tensor& t : {r.y.o, r.y.lse, r.dx.q, r.dx.k, r.dx.v}) CHECK(all_finite(t));
    CHECK(all_zero(r.dx.k.slice(1, 0, seen)));
    CHECK(all_zero(r.dx.v.slice(1, 0, seen)));
    CHECK_FALSE(all_zero(r.dx.v.slice(1, seen, seen + 1)));
  }
}

TEST_CASE("attention: NaN in what is seen comes out") {
  auto x = sample({.T = 9}, Dtype::f32);
  x.q.select(1, 4).fill(NAN);
  const auto y = forward<Attention>(x, {});
  CHECK(std::isnan(view<float>(y.o)(0, 4, 0, 0)));
  CHECK(all_finite(y.o.slice(1, 0, 4)));
  CHECK(all_finite(y.o.slice(1, 5, 9)));
}

TEST_CASE("attention: a query that sees nothing gives 0, lse -infinity and no gradient") {
  const int64_t dead = 67;
  const auto x = sample({.T = 90, .S = 90 - dead, .H = 2});
  const auto r = run<Attention>(x, {});
  CHECK(all_zero(r.y.o.slice(1, 0, dead)));
  for (const double l : to_doubles(r.y.lse.slice(2, 0, dead))) CHECK(l == -INFINITY);
  CHECK(all_finite(r.y.lse.slice(2, dead, 90)));
  CHECK(all_zero(r.dx.q.slice(1, 0, dead)));
  for (const Tensor& t : {r.dx.q, r.dx.k, r.dx.v}) CHECK(all_finite(t));

  // The others are as if it had not been there.
  auto alive = x;
  alive.q = x.q.slice(1, dead, 90);
  auto dy = gradients_for<Attention>(x);
  dy = {dy.o.slice(1, dead, 90), dy.lse.slice(2, dead, 90)};
  const auto s = run<Attention>(alive, {}, dy);
  CHECK(difference(r.dx.k, s.dx.k) < 1e-14);
  CHECK(difference(r.dx.v, s.dx.v) < 1e-14);
}

TEST_CASE("attention: scores of a thousand overflow nothing") {
  auto x = sample({.T = 80, .H = 2}, Dtype::f32);
  for (float* p = x.q.data<float>(); p < x.q.data<float>() + x.q.numel(); ++p) *p *= 1000;
  const auto r = run<Attention>(x, {});
  for (const Tensor& t : {r.y.o, r.y.lse, r.dx.q, r.dx.k, r.dx.v}) CHECK(all_finite(t));
}

TEST_CASE("attention: one document's numbers do not reach the others, to the bit") {
  const std::vector<int32_t> borders = {0, 1, 40, 41, 105, 170};
  for (const bool causal : {true, false}) {
    for (size_t n = 0; n + 1 < borders.size(); ++n) {
      INFO("document " << n);
      Settled o = packed(borders);
      o.causal = causal;
      const auto x = sample({.T = 170, .H = 4, .Hk = 2}, Dtype::f32);
      const auto dy = gradients_for<Attention>(x);
      const auto before = run<Attention>(x, o, dy);
      const int64_t begin = borders[n], end = borders[n + 1];
      for (const Tensor& t : {x.q, x.k, x.v, dy.o}) t.slice(1, begin, end).fill(7);
      const auto after = run<Attention>(x, o, dy);
      const auto unchanged = [&](const Tensor& a, const Tensor& b, int dim) {
        const int64_t size = a.size(dim);
        return same_bits(a.slice(dim, 0, begin), b.slice(dim, 0, begin)) &&
               same_bits(a.slice(dim, end, size), b.slice(dim, end, size));
      };
      CHECK(unchanged(before.y.o, after.y.o, 1));
      CHECK(unchanged(before.y.lse, after.y.lse, 2));
      CHECK(unchanged(before.dx.q, after.dx.q, 1));
      CHECK(unchanged(before.dx.k, after.dx.k, 1));
      CHECK(unchanged(before.dx.v, after.dx.v, 1));
    }
  }
}

TEST_CASE("attention: a packed document is as it is alone") {
  const std::vector<int32_t> borders = {0, 1, 40, 41, 105, 170};
  for (const int64_t window : {0, 30}) {
    Settled o = packed(borders);
    o.window = window;
    const auto x = sample({.T = 170, .H = 2});
    const auto dy = gradients_for<Attention>(x);
    const auto all = run<Attention>(x, o, dy);
    for (size_t n = 0; n + 1 < borders.size(); ++n) {
      const auto part = [&](const Tensor& t, int dim = 1) {
        return t.slice(dim, borders[n], borders[n + 1]);
      };
      const auto one = run<Attention>({part(x.q), part(x.k), part(x.v), {}}, windowed(window),
                                      {part(dy.o), part(dy.lse, 2)});
      CHECK(difference(part(all.y.o), one.y.o) < 1e-14);
      CHECK(difference(part(all.y.lse, 2), one.y.lse) < 1e-14);
      // One token alone has no gradient of q and k but what rounding leaves.
      CHECK((part(x.q).size(1) == 1 || difference(part(all.dx.q), one.dx.q) < 1e-13));
      CHECK((part(x.q).size(1) == 1 || difference(part(all.dx.k), one.dx.k) < 1e-13));
      CHECK(difference(part(all.dx.v), one.dx.v) < 1e-13);
    }
  }
}

TEST_CASE("attention: decode steps on a part of a cache give the rows of the whole, with no copy") {
  const int64_t S = 150, H = 4, Hk = 2, K = 16;
  for (const int64_t window : {0, 40}) {
    const auto x = sample({.T = S, .H = H, .Hk = Hk, .K = K, .V = K}, Dtype::f32);
    const auto whole = forward<Attention>(x, windowed(window));
    const Tensor keys = full({1, 300, Hk, 2 * K}, NAN, Dtype::f32);  // keys and values side by side
    const Tensor k = keys.slice(3, 0, K), v = keys.slice(3, K, 2 * K);
    k.slice(1, 0, S).copy_from(x.k);
    v.slice(1, 0, S).copy_from(x.v);
    for (const int64_t t : {0, 1, 63, 64, 100, 149}) {
      Inputs<Attention> step{
          x.q.slice(1, t, t + 1), k.slice(1, 0, t + 1), v.slice(1, 0, t + 1), {}};
      Outputs<Attention> y;
      const int64_t peak = peak_of([&] { y = forward<Attention>(step, windowed(window)); });
      INFO("token " << t);
      CHECK(difference(y.o, whole.o.slice(1, t, t + 1)) < 1e-5);
      CHECK(difference(y.lse, whole.lse.slice(2, t, t + 1)) < 1e-5);
      CHECK(peak < thread_count() * 40000);  // tiles; and no multiple of t
    }
  }
}

TEST_CASE("attention: a window meets the same tiles of keys in any part of a text, to the bit") {
  const auto x = sample({.T = 210, .H = 2, .K = 16, .V = 16}, Dtype::f32);
  for (const int64_t window : {50, 100}) {
    const auto whole = forward<Attention>(x, windowed(window));
    // From the first query of a strip on, so that strips too are those of the whole text.
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{80, 144}, {96, 160}, {112, 210}}) {
      const auto part = forward<Attention>(
          {x.q.slice(1, begin, end), x.k.slice(1, 0, end), x.v.slice(1, 0, end), {}},
          windowed(window));
      INFO("window " << window << ", tokens " << begin << " to " << end);
      CHECK(same_bits(part.o, whole.o.slice(1, begin, end)));
      CHECK(same_bits(part.lse, whole.lse.slice(2, begin, end)));
    }
  }
}

TEST_CASE("attention: a window beyond all keys is none, up to the largest number, to the bit") {
  for (const bool causal : {true, false})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
      const auto x = as<Attention>(dtype, sample({.T = 70, .S = 130, .H = 2}));
      Settled o;
      o.causal = causal;
      const auto all = run<Attention>(x, o);
      for (const int64_t window :
           {int64_t{200}, int64_t{1} << 31, int64_t{1} << 62,
            std::numeric_limits<int64_t>::max() - 1, std::numeric_limits<int64_t>::max()}) {
        INFO("window " << window << ", " << dtype << (causal ? ", causal" : ""));
        o.window = window;
        check_same_bits<Attention>(run<Attention>(x, o), all);
      }
    }
}

TEST_CASE("attention: halves of the keys are merged by their lse") {
  Settled both;
  both.causal = false;
  const auto x = sample({.T = 70, .S = 130, .H = 2});
  const auto all = forward<Attention>(x, both);
  const auto half = [&](int64_t begin, int64_t end) {
    return forward<Attention>({x.q, x.k.slice(1, begin, end), x.v.slice(1, begin, end), {}}, both);
  };
  const auto a = half(0, 50), b = half(50, 130);
  tests::Gap gap;
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t t = 0; t < 70; ++t) {
      const double la = view<double>(a.lse)(0, h, t), lb = view<double>(b.lse)(0, h, t);
      const double lse = std::max(la, lb) + std::log1p(std::exp(-std::abs(la - lb)));
      const double o = std::exp(la - lse) * view<double>(a.o)(0, t, h, 1) +
                       std::exp(lb - lse) * view<double>(b.o)(0, t, h, 1);
      gap.see(view<double>(all.lse)(0, h, t), lse);
      gap.see(view<double>(all.o)(0, t, h, 1), o);
    }
  CHECK(gap.widest < 1e-14);
}

TEST_CASE("attention: a group of heads is its key head repeated, and its gradients added up") {
  const auto x = sample({.T = 75, .H = 6, .Hk = 2});
  const auto repeated = [](const Tensor& t) {
    return t.unsqueeze(3).expand(3, 3).reshape({1, 75, 6, t.size(3)});
  };
  const auto r = run<Attention>(x, {});
  const auto s = run<Attention>({x.q, repeated(x.k), repeated(x.v), {}}, {});
  CHECK(same_bits(r.y.o, s.y.o));
  Tensor sum = zeros_like(r.dx.k);
  for (int64_t g = 0; g < 3; ++g)
    for (int64_t h = 0; h < 2; ++h) sum.select(2, h).add_from(s.dx.k.select(2, 3 * h + g));
  CHECK(difference(r.dx.k, sum) < 1e-14);
  CHECK(difference(r.dx.q, s.dx.q) < 1e-14);
}

TEST_CASE("attention: threads change no bit, with few heads and with many") {
  for (const int64_t heads : {1, 2, 6})
    for (const int64_t window : {0, 70}) {
      const auto x = sample({.T = 300, .H = heads, .Hk = 1, .K = 8, .V = 9}, Dtype::f32);
      const auto go = [&] { return run<Attention>(x, windowed(window)); };
      const auto one = with_threads(1, go);
      check_same_bits<Attention>(with_threads(2, go), one);
      check_same_bits<Attention>(with_threads(2, go), one);
    }
}

TEST_CASE("attention: only the gradients that are wanted are made, and those are the same") {
  const auto x = sample({.T = 70, .H = 2});
  const auto dy = gradients_for<Attention>(x);
  const auto all = run<Attention>(x, {}, dy);
  Attention::Saved saved;
  forward<Attention>(x, {}, &saved);
  for (int only = 0; only < 3; ++only) {
    const auto dx = backward<Attention>(
        x, {}, saved, dy, {.q = only == 0, .k = only == 1, .v = only == 2, .sink = false});
    const Tensor got[] = {dx.q, dx.k, dx.v}, expected[] = {all.dx.q, all.dx.k, all.dx.v};
    for (int i = 0; i < 3; ++i) {
      CHECK(got[i].defined() == (i == only));
      if (i == only) CHECK(same_bits(got[i], expected[i]));
    }
  }
}

TEST_CASE("attention: memory is linear in the length, forward and backward") {
  const auto bytes = [](int64_t T, int64_t window) {
    const auto x = sample({.T = T, .H = 2, .Hk = 1, .K = 8, .V = 8}, Dtype::f32);
    const auto dy = gradients_for<Attention>(x);
    return peak_of([&] { run<Attention>(x, windowed(window), dy); });
  };
  for (const int64_t window : {0, 64}) {
    const int64_t one = bytes(1024, window), two = bytes(2048, window);
    CHECK(two < 2 * one);  // less than twice: the tiles of the threads do not grow
    CHECK(two < 2048 * 2000);
  }
}

TEST_CASE("attention: bad shapes are named") {
  const auto message = [](const Inputs<Attention>& x, const Settled& o) -> std::string {
    try {
      forward<Attention>(x, o);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  const auto x = sample({.T = 6, .H = 4, .Hk = 2});
  auto bad = x;
  bad.k = normal({1, 6, 3, 4}, 1, "k");
  bad.v = normal({1, 6, 3, 3}, 1, "v");
  CHECK_THAT(message(bad, {}), ContainsSubstring("attention: q has 4 heads and k 3"));
  bad = x;
  bad.v = normal({1, 7, 2, 3}, 1, "v");
  CHECK_THAT(message(bad, {}),
             ContainsSubstring("v has shape [1, 7, 2, 3], expected [1, 6, 2, V]"));
  bad = x;
  bad.sink = normal({3}, 1, "sink");
  CHECK_THAT(message(bad, {}), ContainsSubstring("sink has shape [3], expected [4]"));
  CHECK_THAT(message(x, windowed(-1)), ContainsSubstring("window is -1"));
  CHECK_THAT(message(x, packed({0, 4})), ContainsSubstring("cu_seqlens runs from 0 to 4"));
  CHECK_THAT(message(sample({.T = 4, .S = 6}), packed({0, 4})), ContainsSubstring("need S = T"));
}
