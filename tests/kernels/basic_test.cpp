// What is particular to the operations of kernels/basic, beside the agreement of their forms
// (tests/kernels/forms_test.cpp). Experts are in routing_test.cpp.
#include "tests/kernels/basic_helpers.h"

#include "kernels/lookup/embedding.h"
#include "kernels/products/cross_entropy.h"
#include "kernels/products/matmul.h"
#include "kernels/rows/activation.h"
#include "kernels/rows/functions.h"
#include "kernels/rows/norms.h"
#include "kernels/rows/pointwise.h"
#include "kernels/sequence/rotary.h"
#include "kernels/sequence/short_conv.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::basic;
using Catch::Matchers::Contains;

namespace {

// The document at tokens begin .. end - 1 of a packed [1, T, ...] tensor.
Tensor tokens(const Tensor& t, int64_t begin, int64_t end) { return t.slice(1, begin, end); }

}  // namespace

TEST_CASE("matmul: a repeated row, a single column and a single row are matrices like any other") {
  const Tensor w = normal({5, 6}, 1, "w");
  const Tensor repeated = normal({1, 6}, 1, "x").expand(0, 4);
  const Tensor column = normal({4, 3}, 1, "x").slice(1, 1, 2);
  const Tensor row = normal({4, 12}, 1, "x").slice(0, 2, 3).slice(1, 3, 9);
  const auto check = [](const Tensor& x, const Tensor& weight) {
    const auto got = run<Matmul>({x, weight, {}}, {});
    const auto plain = run<Matmul>({x.clone(), weight.clone(), {}}, {});
    CHECK(difference(got.y.y, plain.y.y) < 1e-14);
    CHECK(difference(got.dx.x, plain.dx.x) < 1e-14);
    CHECK(difference(got.dx.w, plain.dx.w) < 1e-14);
  };
  check(repeated, w);
  check(repeated, normal({1, 6}, 1, "w").expand(0, 5));
  check(column, normal({5, 3}, 1, "w").slice(1, 2, 3));
  check(row, w);
  const Tensor dy = normal({1, 5}, 1, "dy").expand(0, 4), x = normal({4, 6}, 1, "x");
  const auto got = run<Matmul>({x, w, {}}, {}, {dy});
  const auto plain = run<Matmul>({x, w, {}}, {}, {dy.clone()});
  CHECK(difference(got.dx.x, plain.dx.x) < 1e-14);
  CHECK(difference(got.dx.w, plain.dx.w) < 1e-14);
}

TEST_CASE("embedding: the gradient of a row is the sum over the places that took it") {
  const Tensor weight = normal({5, 70}, 1, "weight"), ids = ints({3, 0, 3, 3, 1});
  const Tensor dy = normal({5, 70}, 2, "dy");
  const Tensor d = run<Embedding>({weight}, {ids}, {dy}).dx.weight;
  const Tensor expected = zeros({5, 70}, Dtype::f64);
  for (int64_t r = 0; r < 5; ++r)
    expected.select(0, ids.data<int32_t>()[r]).add_from(dy.select(0, r));
  CHECK(same_bits(d, expected));
}

TEST_CASE("embedding: an id outside the vocabulary is named with its place") {
  const Tensor weight = normal({5, 3}, 1, "weight");
  CHECK_THROWS_WITH(forward<Embedding>({weight}, {ints({0, 4, 5})}),
                    Contains("ids[2] = 5") && Contains("0 .. 4") && Contains("vocabulary"));
  CHECK_THROWS_WITH(forward<Embedding>({weight}, {ints({-1})}), Contains("ids[0] = -1"));
}

TEST_CASE("norms: a norm over groups is the norm of each group as a row") {
  const int64_t R = 6, D = 12;
  const Tensor x = normal({R, D}, 1, "x"), weight = normal({D}, 1, "weight");
  const Tensor z = normal({R, D}, 1, "z"), dy = normal({R, D}, 1, "dy");
  for (const int64_t groups : {1, 2, 4}) {
    const int64_t W = D / groups;
    const auto split = [&](const Tensor& t) { return t.reshape({R * groups, W}); };
    // The groups' own rows, each with its part of the weight, which is multiplied in by hand.
    const auto times_weight = [&](const Tensor& t) {
      const Tensor y = t.reshape({R, D}).clone();
      for (int64_t i = 0; i < R * D; ++i) y.data<double>()[i] *= weight.data<double>()[i % D];
      return y;
    };
    const Tensor rms = forward<RmsNorm>({split(x), {}, {}}, {}).y;
    CHECK(difference(forward<RmsNorm>({x, weight, {}}, {1e-6, groups}).y, times_weight(rms)) <
          1e-14);
    const Tensor layer = forward<LayerNorm>({split(x), {}, {}, {}}, {}).y;
    CHECK(difference(forward<LayerNorm>({x, weight, {}, {}}, {1e-5, groups}).y,
                     times_weight(layer)) < 1e-14);
    for (const bool first : {false, true}) {
      const Tensor gated = forward<GatedNorm>({split(x), split(z), {}}, {1e-6, 1, first, "silu"}).y;
      CHECK(difference(forward<GatedNorm>({x, z, weight}, {1e-6, groups, first, "silu"}).y,
                       times_weight(gated)) < 1e-14);
    }
  }
}

TEST_CASE("norms: with a residual they are those of the sum, to the bit") {
  const Tensor x = f32({9, 40}, "x"), residual = f32({9, 40}, "residual"), w = f32({40}, "w");
  const Tensor dy = f32({9, 40}, "dy"), dsum = f32({9, 40}, "dsum"), sum = added(x, residual);
  const auto check = [&](const auto& with, const auto& without) {
    CHECK(to_doubles(with.y.sum) == to_doubles(sum));
    CHECK(to_doubles(with.y.y) == to_doubles(without.y.y));
    CHECK(to_doubles(with.dx.weight) == to_doubles(without.dx.weight));
    CHECK(to_doubles(with.dx.x) == to_doubles(added(without.dx.x, dsum)));
    CHECK(to_doubles(with.dx.residual) == to_doubles(with.dx.x));
  };
  check(run<RmsNorm>({x, w, residual}, {}, {dy, dsum}), run<RmsNorm>({sum, w, {}}, {}, {dy, {}}));
  check(run<LayerNorm>({x, w, {}, residual}, {}, {dy, dsum}),
        run<LayerNorm>({sum, w, {}, {}}, {}, {dy, {}}));
  CHECK_THROWS_WITH(forward<RmsNorm>({x, w, dy.slice(0, 0, 8)}, {}),
                    Contains("residual has shape [8, 40]") && Contains("expected [9, 40] as x"));
}

TEST_CASE("gated_norm: the gate before the norm and after it are different things") {
  const Tensor x = normal({3, 8}, 1, "x"), z = normal({3, 8}, 1, "z");
  const Tensor gate = forward<Activation>({z}, {"silu"}).y;
  const Tensor product = x.clone(), after = forward<RmsNorm>({x, {}, {}}, {}).y;
  for (int64_t i = 0; i < x.numel(); ++i) {
    product.data<double>()[i] *= gate.data<double>()[i];
    after.data<double>()[i] *= gate.data<double>()[i];
  }
  const Tensor before = forward<RmsNorm>({product, {}, {}}, {}).y;
  CHECK(difference(forward<GatedNorm>({x, z, {}}, {.gate_first = true}).y, before) < 1e-14);
  CHECK(difference(forward<GatedNorm>({x, z, {}}, {.gate_first = false}).y, after) < 1e-14);
  CHECK(difference(before, after) > 0.1);
}

TEST_CASE("norms: a row of zeros gives zeros and a finite gradient") {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
    const Tensor zero = zeros({2, 6}, dtype), z = normal({2, 6}, 1, "z").to(dtype);
    const Tensor one = full({2, 6}, 1, dtype);
    const double eps = 1e-6;
    const double steepest = 1 / std::sqrt(eps);
    const auto check = [&](const Tensor& y, const Tensor& dx) {
      for (const double v : to_doubles(y)) CHECK(v == 0);
      for (const double v : to_doubles(dx)) CHECK(std::abs(v) < 1.1 * steepest);
    };
    const auto rms = run<RmsNorm>({zero, {}, {}}, {eps, 1}, {one, {}});
    check(rms.y.y, rms.dx.x);
    const auto l2 = run<L2Norm>({zero}, {eps}, {one});
    check(l2.y.y, l2.dx.x);
    const auto layer = run<LayerNorm>({zero, {}, {}, {}}, {eps, 1}, {one, {}});
    check(layer.y.y, layer.dx.x);
    for (const bool first : {false, true}) {
      const auto gated = run<GatedNorm>({zero, z, {}}, {eps, 1, first, "sigmoid"}, {one});
      check(gated.y.y, gated.dx.x);
    }
  }
}

TEST_CASE("l2_norm: no row is longer than one, and tiny rows shrink") {
  const Tensor x = normal({3, 5}, 1, "x");
  for (int64_t i = 5; i < 10; ++i) x.data<double>()[i] *= 1e-6;
  const std::vector<double> y = to_doubles(forward<L2Norm>({x}, {}).y);
  const auto length = [&](size_t r) {
    double sum = 0;
    for (size_t i = 5 * r; i < 5 * r + 5; ++i) sum += y[i] * y[i];
    return std::sqrt(sum);
  };
  CHECK(length(0) == Approx(1).margin(1e-5));
  CHECK(length(0) < 1);
  CHECK(length(1) < 0.01);
}

TEST_CASE("norms: groups that do not divide the columns are refused") {
  const Tensor x = normal({2, 6}, 1, "x");
  CHECK_THROWS_WITH(forward<RmsNorm>({x, {}, {}}, {1e-6, 4}),
                    Contains("groups = 4") && Contains("divisor of D = 6"));
  CHECK_THROWS_WITH(forward<GatedNorm>({x, x, {}}, {.gate = "relu"}),
                    Contains("\"relu\"") && Contains("silu, sigmoid"));
}

TEST_CASE("rotary: products of queries and keys depend on their distance alone") {
  const int64_t K = 16;
  const Tensor q = normal({1, 1, 1, K}, 1, "q"), k = normal({1, 1, 1, K}, 1, "k");
  for (const bool interleaved : {false, true})
    for (const int64_t width : {0, 6}) {
      const auto product = [&](int64_t m, int64_t n) {
        const Rotary::Options at_m{.width = width, .interleaved = interleaved, .offset = m};
        const Rotary::Options at_n{.width = width, .interleaved = interleaved, .offset = n};
        const auto a = to_doubles(forward<Rotary>({q}, at_m).y);
        const auto b = to_doubles(forward<Rotary>({k}, at_n).y);
        double sum = 0;
        for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
        return sum;
      };
      CHECK(product(3, 10) == Approx(product(103, 110)).epsilon(1e-12));
      CHECK(product(3, 10) != Approx(product(3, 11)).epsilon(1e-3));
    }
}

TEST_CASE("rotary: a sequence may be cut, its later part starting from its offset") {
  const Tensor x = normal({2, 40, 3, 8}, 1, "x");
  const Tensor whole = forward<Rotary>({x}, {}).y;
  const Tensor late = forward<Rotary>({tokens(x, 21, 40)}, {.offset = 21}).y;
  CHECK(difference(late, tokens(whole, 21, 40)) < 1e-14);
}

TEST_CASE("rotary: positions start again in each packed document, and turning keeps lengths") {
  const Tensor x = normal({1, 11, 2, 6}, 1, "x");
  const std::vector<int32_t> cu = {0, 1, 3, 6, 11};
  const Tensor y = forward<Rotary>({x}, {.cu_seqlens = ints(cu)}).y;
  for (size_t n = 0; n + 1 < cu.size(); ++n)
    CHECK(difference(tokens(y, cu[n], cu[n + 1]),
                     forward<Rotary>({tokens(x, cu[n], cu[n + 1])}, {}).y) < 1e-14);
  double before = 0, after = 0;
  for (const double v : to_doubles(x)) before += v * v;
  for (const double v : to_doubles(y)) after += v * v;
  CHECK(after == Approx(before).epsilon(1e-13));
}

TEST_CASE("rotary: the table's angles are right far from its start") {
  const Tensor x = normal({1, 3000, 1, 4}, 1, "x");
  const Tensor whole = forward<Rotary>({x}, {.base = 100}).y;
  for (const int64_t t : {63, 64, 65, 1999, 2999})
    CHECK(difference(tokens(whole, t, t + 1),
                     forward<Rotary>({tokens(x, t, t + 1)}, {.base = 100, .offset = t}).y) < 1e-12);
}

TEST_CASE("rotary: a width that is odd or too large is refused") {
  const Tensor x = normal({1, 2, 1, 6}, 1, "x");
  CHECK_THROWS_WITH(forward<Rotary>({x}, {.width = 5}), Contains("width = 5"));
  CHECK_THROWS_WITH(forward<Rotary>({x}, {.width = 8}), Contains("K = 6"));
}

TEST_CASE("short_conv: a sequence may be cut anywhere and its state carried") {
  const int64_t T = 12, D = 3, W = 4;
  const Tensor x = normal({2, T, D}, 1, "x"), w = normal({D, W}, 1, "w");
  const Tensor bias = normal({D}, 1, "bias"), state = normal({2, D, W - 1}, 1, "state");
  const auto whole = forward<ShortConv>({x, w, bias, state}, {});
  for (const int64_t cut : {1, 2, 3, 5, 11}) {
    const auto first = forward<ShortConv>({tokens(x, 0, cut), w, bias, state}, {});
    const auto second = forward<ShortConv>({tokens(x, cut, T), w, bias, first.final_state}, {});
    CHECK(difference(first.y, tokens(whole.y, 0, cut)) < 1e-14);
    CHECK(difference(second.y, tokens(whole.y, cut, T)) < 1e-14);
    CHECK(same_bits(second.final_state, whole.final_state));
  }
}

TEST_CASE("short_conv: packed documents are each as if alone, gradients as well") {
  const int64_t D = 3, W = 4;
  const std::vector<int32_t> cu = {0, 1, 3, 6, 11};
  const int64_t N = 4, T = 11;
  const Tensor x = normal({1, T, D}, 1, "x"), w = normal({D, W}, 1, "w");
  const Tensor bias = normal({D}, 1, "bias"), state = normal({N, D, W - 1}, 1, "state");
  const Outputs<ShortConv> dy{normal({1, T, D}, 2, "dy"), normal({N, D, W - 1}, 2, "dfinal")};
  const auto packed = run<ShortConv>({x, w, bias, state}, {true, ints(cu)}, dy);
  const Tensor dw = zeros({D, W}, Dtype::f64);
  for (int64_t n = 0; n < N; ++n) {
    const int64_t a = cu[static_cast<size_t>(n)], b = cu[static_cast<size_t>(n) + 1];
    const auto alone = run<ShortConv>({tokens(x, a, b), w, bias, state.slice(0, n, n + 1)}, {},
                                      {tokens(dy.y, a, b), dy.final_state.slice(0, n, n + 1)});
    CHECK(difference(tokens(packed.y.y, a, b), alone.y.y) < 1e-14);
    CHECK(difference(packed.y.final_state.slice(0, n, n + 1), alone.y.final_state) < 1e-14);
    CHECK(difference(tokens(packed.dx.x, a, b), alone.dx.x) < 1e-14);
    CHECK(difference(packed.dx.initial_state.slice(0, n, n + 1), alone.dx.initial_state) < 1e-14);
    dw.add_from(alone.dx.w);
  }
  CHECK(difference(packed.dx.w, dw) < 1e-14);
}

TEST_CASE("short_conv: the gradient of the final state reaches through a short document") {
  const int64_t D = 2, W = 4;
  const Tensor dfinal = normal({1, D, W - 1}, 1, "dfinal");
  const Tensor state = normal({1, D, W - 1}, 1, "state"), w = normal({D, W}, 1, "w");
  const Tensor x = normal({1, 1, D}, 1, "x");
  const auto r = run<ShortConv>({x, w, {}, state}, {}, {zeros({1, 1, D}, Dtype::f64), dfinal});
  // One token: the state moves by one place, so its newest two columns are the final oldest two.
  for (int64_t d = 0; d < D; ++d) {
    const double* from = dfinal.data<double>() + d * 3;
    const double* to = r.dx.initial_state.data<double>() + d * 3;
    CHECK(to[0] == 0);
    CHECK(to[1] == from[0]);
    CHECK(to[2] == from[1]);
    CHECK(r.dx.x.data<double>()[d] == from[2]);
  }
}

TEST_CASE("activations: single precision follows double within a few roundings") {
  const int64_t n = 4001;
  const Tensor x = empty({1, n}, Dtype::f32), wide = empty({1, n}, Dtype::f64);
  for (int64_t i = 0; i < n; ++i)
    wide.data<double>()[i] = x.data<float>()[i] = static_cast<float>(i - 2000) * 0.01f;
  for (const std::string& kind : Activations::names()) {
    INFO(kind);
    const auto a = run<Activation>({x}, {kind}, {full({1, n}, 1, Dtype::f32)});
    const auto b = run<Activation>({wide}, {kind}, {full({1, n}, 1, Dtype::f64)});
    const auto check = [&](const Tensor& got, const Tensor& expected) {
      const std::vector<double> u = to_doubles(got), v = to_doubles(expected);
      tests::Gap gap;
      for (size_t i = 0; i < u.size(); ++i) {
        const double unit = std::max(1.0, std::abs(v[i]));
        gap.see(u[i] / unit, v[i] / unit);
      }
      CHECK(gap.widest < 1e-6);
    };
    check(a.y.y, b.y.y);
    check(a.dx.x, b.dx.x);
  }
}

TEST_CASE("activations: far out they stay finite wherever their limit is") {
  const Tensor x = tensor_of<float>({-1e30f, -600, -100, 100, 600, 1e30f}).reshape({1, 6});
  for (const char* kind :
       {"silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh", "softplus", "logsigmoid", "elu1"}) {
    INFO(kind);
    const auto r = run<Activation>({x}, {kind}, {full({1, 6}, 1, Dtype::f32)});
    for (const double v : to_doubles(r.y.y)) CHECK(std::isfinite(v));
    for (const double v : to_doubles(r.dx.x)) CHECK(std::isfinite(v));
  }
}

TEST_CASE("activation: an unknown kind is answered with the nearest and the list") {
  const Tensor x = normal({1, 2}, 1, "x");
  CHECK_THROWS_WITH(forward<Activation>({x}, {"silo"}),
                    Contains("\"silo\"") && Contains("did you mean \"silu\"") && Contains("elu1"));
}

TEST_CASE("cross_entropy: the tiles of logits do not show in the result") {
  const int64_t R = 1100, D = 3, V = 600;  // three chunks of rows, two tiles each
  REQUIRE(CrossEntropy::chunk_rows(R, V) < R / 2);
  const Tensor x = normal({R, D}, 1, "x"), w = normal({V, D}, 1, "w");
  std::vector<int32_t> targets(static_cast<size_t>(R));
  for (int64_t r = 0; r < R; ++r)
    targets[static_cast<size_t>(r)] = static_cast<int32_t>(r * 13 % V);
  const Tensor one = full({1}, 1, Dtype::f64);
  const auto whole = run<CrossEntropy>({x, w, {}}, {ints(targets)}, {one, one});
  double loss = 0, z = 0;
  const Tensor dx = zeros({R, D}, Dtype::f64), dw = zeros({V, D}, Dtype::f64);
  const Tensor share = full({1}, 0.2, Dtype::f64);
  for (int64_t at = 0; at < R; at += 220) {  // each part fits a chunk
    const std::vector<int32_t> part(targets.begin() + at, targets.begin() + at + 220);
    const auto r =
        run<CrossEntropy>({x.slice(0, at, at + 220), w, {}}, {ints(part)}, {share, share});
    loss += r.y.loss.item() / 5;
    z += r.y.z.item() / 5;
    dx.slice(0, at, at + 220).copy_from(r.dx.x);
    dw.add_from(r.dx.w);
  }
  CHECK(whole.y.loss.item() == Approx(loss).epsilon(1e-13));
  CHECK(whole.y.z.item() == Approx(z).epsilon(1e-13));
  CHECK(difference(whole.dx.x, dx) < 1e-14);
  CHECK(difference(whole.dx.w, dw) < 1e-14);
}

TEST_CASE("cross_entropy: a row without a label is as if it were not there") {
  const Tensor x = normal({5, 4}, 1, "x"), w = normal({6, 4}, 1, "w");
  const Tensor kept = empty({3, 4}, Dtype::f64), dloss = full({1}, 1, Dtype::f64);
  const int64_t rows[] = {0, 2, 3};
  for (int64_t i = 0; i < 3; ++i) kept.select(0, i).copy_from(x.select(0, rows[i]));
  const auto some = run<CrossEntropy>({x, w, {}}, {ints({1, -100, 5, 0, -100})}, {dloss, {}});
  const auto all = run<CrossEntropy>({kept, w, {}}, {ints({1, 5, 0})}, {dloss, {}});
  CHECK(same_bits(some.y.loss, all.y.loss));
  CHECK(same_bits(some.y.z, all.y.z));
  CHECK(same_bits(some.dx.w, all.dx.w));
  for (int64_t i = 0; i < 3; ++i)
    CHECK(same_bits(some.dx.x.select(0, rows[i]).clone(), all.dx.x.select(0, i).clone()));
  for (const double v : to_doubles(some.dx.x.select(0, 1))) CHECK(v == 0);
}

TEST_CASE("cross_entropy: without any label the loss and all gradients are zero") {
  const Tensor x = normal({3, 4}, 1, "x"), w = normal({5, 4}, 1, "w"), b = normal({5}, 1, "b");
  const auto r = run<CrossEntropy>({x, w, b}, {ints({-100, -100, -100})});
  for (const Tensor& t : {r.y.loss, r.y.z, r.dx.x, r.dx.w, r.dx.bias})
    for (const double v : to_doubles(t)) CHECK(v == 0);
}

TEST_CASE("cross_entropy: equal logits cost log V, and z is its square") {
  const Tensor x = zeros({4, 3}, Dtype::f32), w = zeros({7, 3}, Dtype::f32);
  const auto y = forward<CrossEntropy>({x, w, {}}, {ints({0, 1, 2, 6})});
  CHECK(y.loss.item() == Approx(std::log(7)).epsilon(1e-6));
  CHECK(y.z.item() == Approx(std::log(7) * std::log(7)).epsilon(1e-6));
}

TEST_CASE("cross_entropy: a target outside the vocabulary is named with its row") {
  const Tensor x = normal({3, 4}, 1, "x"), w = normal({5, 4}, 1, "w");
  CHECK_THROWS_WITH(forward<CrossEntropy>({x, w, {}}, {ints({0, 5, 1})}),
                    Contains("targets[1] = 5") && Contains("0 .. 4") && Contains("-100"));
  CHECK_THROWS_WITH(forward<CrossEntropy>({x, w, {}}, {ints({0, 1, -1})}),
                    Contains("targets[2] = -1"));
}

TEST_CASE("basic operations: the number of threads does not show in the result") {
  const Tensor x = f32({300, 130}, "x"), z = f32({300, 130}, "z"), v = f32({130}, "v");
  std::vector<int32_t> ids(300);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * i % 41);
  check_threads<RmsNorm>({x, v, z}, {});
  check_threads<LayerNorm>({x, v, v, z}, {});
  check_threads<GatedNorm>({x, z, v}, {.groups = 2, .gate_first = true});
  check_threads<L2Norm>({x}, {});
  check_threads<Activation>({x}, {});
  check_threads<GatedActivation>({x, z}, {});
  check_threads<Embedding>({f32({41, 130}, "weight")}, {ints(ids)});
  check_threads<CrossEntropy>({x, f32({2100, 130}, "w"), {}}, {ints(ids)});
  check_threads<Matmul>({x, f32({200, 130}, "w"), f32({200}, "b")}, {});
  check_threads<Rotary>({f32({2, 300, 4, 32}, "x")}, {});
  const Tensor cu = ints({0, 2, 130, 131, 600});
  check_threads<ShortConv>(
      {f32({1, 600, 33}, "x"), f32({33, 4}, "w"), f32({33}, "bias"), f32({4, 33, 3}, "state")},
      {true, cu});
}
