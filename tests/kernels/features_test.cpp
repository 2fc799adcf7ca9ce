// What the feature maps promise beyond their definitions: what their products mean, what the shifts
// of exponents leave alone, and where random rows come from.
#include <cmath>

#include "kernels/contract/operation.h"
#include "kernels/features/cosine_features.h"
#include "kernels/features/forget_gate.h"
#include "kernels/features/projection.h"
#include "kernels/features/random_features.h"
#include "kernels/linear/linear.h"
#include "tests/catch.h"
#include "tests/gap.h"

using namespace weft;
using namespace weft::kernels;

namespace {

constexpr int64_t kWidth = 6;

double gap(const Tensor& a, const Tensor& b) { return tests::gap(a, b).relative(); }

Tensor features(const Tensor& x, const Tensor& projection, const std::string& kind,
                const Tensor& shift = {}) {
  return forward<RandomFeatures>({x, shift}, {.kind = kind, .projection = projection}).y;
}

// Squared error of the kernel between two vectors, relative to it, over `draws` projections.
double kernel_error(const std::string& kind, bool orthogonal, int64_t features_of_draw, double size,
                    double* mean = nullptr) {
  const Tensor q = normal({1, 1, 1, kWidth}, 1, "q", size),
               k = normal({1, 1, 1, kWidth}, 1, "k", size);
  double along = 0;
  for (int64_t d = 0; d < kWidth; ++d) along += q.data<double>()[d] * k.data<double>()[d];
  const double exact = std::exp(along / std::sqrt(static_cast<double>(kWidth)));
  constexpr int kDraws = 400;
  double squares = 0, sum = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    const Tensor w = random_projection({.features = features_of_draw,
                                        .width = kWidth,
                                        .orthogonal = orthogonal,
                                        .seed = 3,
                                        .draw = draw});
    const Tensor a = features(q, w, kind), b = features(k, w, kind);
    double dot = 0;
    for (int64_t i = 0; i < a.numel(); ++i) dot += a.data<double>()[i] * b.data<double>()[i];
    sum += dot / exact;
    squares += (dot / exact - 1) * (dot / exact - 1);
  }
  if (mean) *mean = sum / kDraws;
  return squares / kDraws;
}

// Linear attention of positive features: with the running shift of keys and that of each query,
// or with none.
Tensor attended(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& w, bool shifted,
                const Tensor& cu = {}) {
  Linear::Inputs<Tensor> in;
  RunningShift running;
  Tensor of_queries;
  if (shifted) {
    const double scale = std::pow(static_cast<double>(q.size(3)), -0.25);
    of_queries = largest_exponents(q, w, scale);
    running = running_shift(largest_exponents(k, w, scale), {}, cu, v.size(2) / k.size(2));
    in.g = running.g;
  }
  in.q = features(q, w, "positive", of_queries);
  in.k = features(k, w, "positive", running.shift);
  in.v = v;
  Linear::Options o;
  o.normalize = true;
  o.scale = 1;
  o.eps = 1e-300;
  o.cu_seqlens = cu;
  return forward<Linear>(in, o).o;
}

}  // namespace

TEST_CASE("random_features: the mean of products is the exponential of the product") {
  for (const char* kind : {"positive", "trigonometric"})
    for (const bool orthogonal : {false, true}) {
      double mean = 0;
      const double error = kernel_error(kind, orthogonal, 32, 0.7, &mean);
      INFO(kind << ", orthogonal " << orthogonal << ": mean " << mean << ", error " << error);
      CHECK(std::abs(mean - 1) < 4 * std::sqrt(error / 400));  // four deviations of the mean
      CHECK(error < 0.5);
    }
}

TEST_CASE("random_features: four times the features have a fourth of the squared error") {
  for (const char* kind : {"positive", "trigonometric"}) {
    const double few = kernel_error(kind, false, 16, 0.8),
                 many = kernel_error(kind, false, 64, 0.8);
    INFO(kind << ": " << few << " and " << many);
    CHECK(few / many == Approx(4).epsilon(0.4));
  }
}

TEST_CASE("random_features: rows at right angles estimate better than rows by chance") {
  for (const char* kind : {"positive", "trigonometric"})
    CHECK(kernel_error(kind, true, 2 * kWidth, 0.8) < kernel_error(kind, false, 2 * kWidth, 0.8));
}

TEST_CASE(
    "random_features: shifts of queries and running shifts of keys leave attention as it is") {
  const Tensor w = random_projection({.heads = 2, .features = 9, .width = 5, .seed = 1});
  const Tensor q = normal({1, 75, 2, 5}, 1, "q", 2), k = normal({1, 75, 2, 5}, 1, "k", 2);
  const Tensor v = normal({1, 75, 4, 3}, 1, "v");
  for (const Tensor& cu : {Tensor(), tensor_of<int32_t>({0, 1, 40, 67, 75})})
    CHECK(gap(attended(q, k, v, w, true, cu), attended(q, k, v, w, false, cu)) < 1e-12);
}

TEST_CASE("random_features: large vectors overflow or vanish without shifts, and not with them") {
  const Tensor w = random_projection({.features = 8, .width = 5, .seed = 1}).to(Dtype::f32);
  const Tensor q = normal({1, 30, 1, 5}, 1, "q", 20).to(Dtype::f32);
  const Tensor k = normal({1, 30, 1, 5}, 1, "k", 20).to(Dtype::f32);
  const Tensor y = features(q, w, "positive", largest_exponents(q, w, std::pow(5.0, -0.25)));
  for (int64_t t = 0; t < 30; ++t) {
    double most = 0;
    for (int64_t i = 0; i < 8; ++i) most = std::max(most, double(y.data<float>()[t * 8 + i]));
    CHECK(most == Approx(1 / std::sqrt(8.0)).epsilon(1e-3));  // the largest exponent is 0
  }
  const Tensor plain = features(k, w, "positive");
  int64_t vanished = 0;
  for (int64_t i = 0; i < plain.numel(); ++i) vanished += plain.data<float>()[i] == 0;
  CHECK(vanished > plain.numel() / 2);
}

TEST_CASE("random_features: the running shift sees no later key, and never falls") {
  const Tensor e = normal({2, 50, 3}, 1, "e", 4), other = e.clone();
  other.slice(1, 31, 50).fill(99);
  const RunningShift a = running_shift(e, {}, {}, 2), b = running_shift(other, {}, {}, 2);
  CHECK(to_doubles(a.shift.slice(1, 0, 31)) == to_doubles(b.shift.slice(1, 0, 31)));
  CHECK(to_doubles(a.g.slice(1, 0, 31)) == to_doubles(b.g.slice(1, 0, 31)));
  for (const double g : to_doubles(a.g)) CHECK(g <= 0);
  for (int64_t h = 0; h < 3; ++h) {  // both value heads of a key head
    CHECK(to_doubles(a.g.select(2, 2 * h)) == to_doubles(a.g.select(2, 2 * h + 1)));
    CHECK(to_doubles(a.g.select(2, 2 * h).slice(1, 0, 1)) == std::vector<double>{0, 0});
  }
}

TEST_CASE(
    "random_features: the running shift goes on from where it was cut, and anew by document") {
  const Tensor e = normal({1, 50, 3}, 1, "e", 4);
  const RunningShift whole = running_shift(e, {}, {}, 1);
  for (const int64_t cut : {1, 17, 49}) {
    const RunningShift a = running_shift(e.slice(1, 0, cut), {}, {}, 1);
    const RunningShift b = running_shift(e.slice(1, cut, 50), a.last, {}, 1);
    CHECK(to_doubles(b.shift) == to_doubles(whole.shift.slice(1, cut, 50)));
    CHECK(to_doubles(b.g) == to_doubles(whole.g.slice(1, cut, 50)));
    CHECK(to_doubles(b.last) == to_doubles(whole.last));
    const RunningShift packed =
        running_shift(e, {}, tensor_of<int32_t>({0, static_cast<int32_t>(cut), 50}), 1);
    const RunningShift alone = running_shift(e.slice(1, cut, 50), {}, {}, 1);
    CHECK(to_doubles(packed.shift.slice(1, cut, 50)) == to_doubles(alone.shift));
    CHECK(to_doubles(packed.g.slice(1, cut, 50)) == to_doubles(alone.g));
    CHECK(to_doubles(packed.last.slice(0, 1, 2)) == to_doubles(alone.last));
  }
}

TEST_CASE("random_features: a projection that does not fit is refused") {
  const Tensor x = normal({1, 3, 2, 4}, 1, "x");
  const auto refuses = [&](const Tensor& w, const std::string& kind, const char* text) {
    CHECK_THROWS_WITH(features(x, w, kind), ContainsSubstring(text));
  };
  refuses({}, "positive", "projection [H, M, K] is missing");
  refuses(normal({1, 5, 4}, 1, "w"), "positive", "expected floats [2, M, 4]");
  refuses(normal({2, 5, 3}, 1, "w"), "positive", "expected floats [2, M, 4]");
  refuses(normal({2, 5, 4}, 1, "w"), "cosine", "expected positive or trigonometric");
}

TEST_CASE("projection: rows stand at right angles in blocks, with the lengths of normal rows") {
  constexpr int64_t K = 8, M = 19;
  const Tensor w = random_projection({.heads = 2, .features = M, .width = K, .seed = 5});
  double lengths = 0;
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < M; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        double dot = 0;
        for (int64_t d = 0; d < K; ++d)
          dot += w.data<double>()[(h * M + i) * K + d] * w.data<double>()[(h * M + j) * K + d];
        if (i == j) lengths += dot;
        const bool angle = i != j && i / K == j / K;
        if (angle) CHECK(std::abs(dot) < 1e-12);
        if (i != j && !angle) CHECK(std::abs(dot) > 1e-9);
      }
  CHECK(lengths / (2 * M) == Approx(K).epsilon(0.25));  // the mean of chi squared
}

TEST_CASE("projection: a draw is a function of seed, layer, head and draw, and of each of them") {
  const Projection p{.heads = 2, .features = 5, .width = 3, .seed = 7, .layer = 2, .draw = 4};
  const std::vector<double> numbers = to_doubles(random_projection(p));
  CHECK(to_doubles(random_projection(p)) == numbers);
  const auto differs = [&](auto change) {
    Projection q = p;
    change(q);
    CHECK(to_doubles(random_projection(q)) != numbers);
  };
  differs([](Projection& q) { q.seed = 8; });
  differs([](Projection& q) { q.layer = 3; });
  differs([](Projection& q) { q.draw = 5; });
  differs([](Projection& q) { q.orthogonal = false; });
  const size_t half = numbers.size() / 2;
  CHECK(std::vector(numbers.begin(), numbers.begin() + 15) !=
        std::vector(numbers.begin() + static_cast<int64_t>(half), numbers.end()));
  Projection more = p;  // another head changes none of those before
  more.heads = 3;
  const std::vector<double> longer = to_doubles(random_projection(more));
  CHECK(std::vector(longer.begin(), longer.begin() + 30) == numbers);
}

TEST_CASE("cosine_features: products are those of relu, weighed by the cosine of the distance") {
  const Tensor x = normal({1, 9, 2, 4}, 1, "x"), frequency = tensor_of<double>({0.1, 0.17});
  for (const int64_t offset : {0, 1, 1000}) {
    const Tensor y = forward<CosineFeatures>({x, frequency}, {.offset = offset}).y;
    for (int64_t i = 0; i < 9; ++i)
      for (int64_t j = 0; j < 9; ++j)
        for (int64_t h = 0; h < 2; ++h) {
          double got = 0, plain = 0;
          for (int64_t d = 0; d < 8; ++d)
            got += view<double>(y)(0, i, h, d) * view<double>(y)(0, j, h, d);
          for (int64_t d = 0; d < 4; ++d)
            plain += std::max(0.0, view<double>(x)(0, i, h, d)) *
                     std::max(0.0, view<double>(x)(0, j, h, d));
          const double angle = static_cast<double>(i - j) * frequency.data<double>()[h];
          CHECK(std::abs(got - plain * std::cos(angle)) < 1e-12);
        }
  }
}

TEST_CASE("cosine_features: what is not a number stays none, in every form") {
  const Operation& op = operation("cosine_features");
  const NamedCase c = op.cases()[0];
  for (const Form form : op.forms()) {
    Tensors in = c.inputs;
    in.at("x") = full(in.at("x").shape(), NAN, Dtype::f64);
    INFO(name_of(form));
    for (const double value : to_doubles(op.forward(form, in, c.settings).at("y")))
      CHECK(std::isnan(value));
  }
}

TEST_CASE("cosine_features: a position that is read as the work runs counts on top of the offset") {
  for (const Device device : {kCpu, kCuda}) {
    if (device.is_cuda() && cuda_device_count() == 0) continue;
    const Tensor x = normal({1, 3, 2, 4}, 1, "x").to(Dtype::f32).to(device);
    const Tensor frequency = tensor_of<float>({0.1f, 0.17f}).to(device);
    const Tensor at = tensor_of<int32_t>({11}).to(device);
    const Tensor a = forward<CosineFeatures>({x, frequency}, {.offset = 2, .position = at}).y;
    const Tensor b = forward<CosineFeatures>({x, frequency}, {.offset = 13}).y;
    CHECK(to_doubles(a.to(kCpu)) == to_doubles(b.to(kCpu)));
  }
}

TEST_CASE("random_features: a GPU finds the shifts that the CPU finds", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const Tensor w = random_projection({.heads = 2, .features = 70, .width = 40}).to(Dtype::f32);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor x = normal({1, 301, 2, 40}, 1, "x", 2).to(dtype);
    const Tensor e = largest_exponents(x, w, 0.4);
    const Tensor there = largest_exponents(x.to(kCuda), w.to(kCuda), 0.4);
    CHECK(gap(there.to(kCpu), e) < 1e-5);
    const Tensor start = full({3, 2}, -3, Dtype::f32);
    for (const Tensor& initial : {Tensor(), start}) {
      const Tensor cu = tensor_of<int32_t>({0, 1, 100, 301});
      const RunningShift a = running_shift(e, initial, cu, 2);
      const RunningShift b =
          running_shift(e.to(kCuda), initial ? initial.to(kCuda) : initial, cu, 2);
      CHECK(to_doubles(a.shift) == to_doubles(b.shift.to(kCpu)));
      CHECK(to_doubles(a.g) == to_doubles(b.g.to(kCpu)));
      CHECK(to_doubles(a.last) == to_doubles(b.last.to(kCpu)));
    }
  }
}

TEST_CASE("forget_gate: what is kept and what is written add up to one, far out as well") {
  const Tensor x = tensor_of<float>({-200, -80, -20, -1, 0, 1, 20, 80, 200}).reshape({3, 3});
  for (const double bound : {0.0, 1e-7, 0.5, 0.999}) {
    const auto y = forward<ForgetGate>({x}, {bound});
    for (int64_t i = 0; i < 9; ++i) {
      const double u = x.data<float>()[i], k = y.k.data<float>()[i], g = y.g.data<float>()[i];
      INFO(bound << " at " << u);
      CHECK(k + std::exp(g) == Approx(1).epsilon(1e-6));
      CHECK(k == Approx((1 - bound) / (1 + std::exp(u))).epsilon(1e-4).margin(1e-37));
      if (bound == 0) CHECK(g == Approx(u < 0 ? u : -std::exp(-u)).epsilon(0.7).margin(1e-37));
      CHECK(g >= std::log(bound) - 1e-6);
    }
  }
  CHECK_THROWS_WITH(forward<ForgetGate>({x}, {1.0}), ContainsSubstring("expected 0 to below 1"));
}

TEST_CASE("forget_gate: a gate near one forgets what it writes, to the last digits") {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64})
    for (const double bound : {1e-7, 0.5, 0.999}) {
      const double exact = dtype == Dtype::f32 ? 1e-6 : 1e-14;
      const auto y =
          forward<ForgetGate>({tensor_of<double>({9, 20, 60}).reshape({1, 3}).to(dtype)}, {bound});
      const std::vector<double> k = to_doubles(y.k), g = to_doubles(y.g);
      for (size_t i = 0; i < k.size(); ++i) {
        INFO(dtype << ", bound " << bound << ", writes " << k[i]);
        CHECK(k[i] > 0);
        CHECK(g[i] == Approx(std::log1p(-k[i])).epsilon(exact));
      }
    }
}
