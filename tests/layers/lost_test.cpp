// Top-p selection: what a choice of blocks may lose is bounded, and the bound holds.
#include <algorithm>
#include <cmath>

#include "autograd/kernel_op.h"
#include "autograd/watch.h"
#include "kernels/selection/block_means.h"
#include "kernels/selection/select_mass.h"
#include "layers/routes.h"
#include "tests/catch.h"
#include "tests/layers/made.h"
#include "tests/message.h"

using namespace weft;
using namespace weft::layers;

namespace {

struct Chosen {
  Tensor q, k;
  kernels::SelectedMass mass;
};

// Keys of a block lie within `spread` of one another.
Chosen choose(double spread, double lost, Dtype dtype, const Tensor& cu = {}, int64_t S = 41) {
  const int64_t T = cu ? S : 29;
  Chosen c;
  c.q = autograd::scale(Var(sample({1, T, 4, 3}, "q")), 2).value().to(dtype);
  const Tensor k = autograd::scale(Var(sample({1, S, 2, 3}, "k")), spread).value();
  const Tensor center = sample({1, S, 2, 3}, "center");
  for (int64_t s = 0; s < S; ++s) k.slice(1, s, s + 1).add_from(center.slice(1, s / 4, s / 4 + 1));
  c.k = k.to(dtype);
  kernels::SelectBlocks o;
  o.block = 4;
  o.top_k = 1;
  o.scale = 0.7;
  o.cu_seqlens = cu;
  const Tensor means = autograd::apply<kernels::BlockMeans>({Var(c.k)}, {4, cu, {}, {}}).y.value();
  c.mass = kernels::select_mass(c.q, c.k, means, kernels::block_radius(c.k, means, o), o, lost);
  return c;
}

// The true part of the softmax of a query at i of its text that its row of the mask leaves out.
// `first`: the first key of the text.
double truly_lost(const Chosen& c, int64_t h, int64_t t, int64_t first, int64_t i) {
  const Tensor q = c.q.to(Dtype::f64), k = c.k.to(Dtype::f64);
  const auto Q = view<const double>(q), K = view<const double>(k);
  const auto seen = view<const uint8_t>(c.mass.mask);
  double all = 0, left = 0;
  for (int64_t j = 0; j <= i; ++j) {
    double dot = 0;
    for (int64_t n = 0; n < 3; ++n) dot += Q(0, t, h, n) * K(0, first + j, h / 2, n);
    const double weight = std::exp(0.7 * dot);
    all += weight;
    if (!seen(0, h, t, j / 4)) left += weight;
  }
  return left / all;
}

}  // namespace

TEST_CASE(
    "lost: what is left out weighs no more than the bound, and the bound no more than asked") {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32})
    for (const double spread : {0.05, 0.3, 1.0})
      for (const double lost : {0.02, 0.2, 0.6}) {
        const Chosen c = choose(spread, lost, dtype);
        const std::vector<double> bounds = to_doubles(c.mass.bound);
        INFO(dtype << ", spread " << spread << ", lost " << lost);
        for (int64_t h = 0; h < 4; ++h)
          for (int64_t t = 0; t < 29; ++t) {
            const double bound = bounds[static_cast<size_t>(h * 29 + t)];
            REQUIRE(bound <= lost + 1e-6);
            REQUIRE(truly_lost(c, h, t, 0, t + 12) <= bound + 1e-6);
          }
      }
}

TEST_CASE("lost: blocks of like keys are left out, and the bound is close to the truth") {
  const Chosen near = choose(0.01, 0.3, Dtype::f64), far = choose(2, 0.3, Dtype::f64);
  const auto seen = [](const Chosen& c) {
    double sum = 0;
    for (const double x : to_doubles(c.mass.mask.to(Dtype::f64))) sum += x;
    return sum;
  };
  CHECK(seen(near) < 0.6 * seen(far));
  double bound = 0, truth = 0;
  for (int64_t t = 0; t < 29; ++t) {
    bound += view<const double>(near.mass.bound)(0, 0, t);
    truth += truly_lost(near, 0, t, 0, t + 12);
  }
  CHECK(truth > 0);
  CHECK(bound < 2 * truth);
}

TEST_CASE("lost: a document is bounded as by itself") {
  const Chosen c = choose(0.3, 0.2, Dtype::f64, tensor_of<int32_t>({0, 17, 41}));
  for (int64_t t = 0; t < 17; ++t)
    CHECK(truly_lost(c, 1, t, 0, t) <= view<const double>(c.mass.bound)(0, 1, t) + 1e-12);
}

TEST_CASE("lost: moba with it goes on token by token, and comes to attention as it falls") {
  const std::string sizes = "heads = 2\nblock = 4\ntop_k = 1\n";
  const Made m = made({"", "moba", sizes + "lost = 0.3"});
  const Made attention = made({"", "attention", "heads = 2"});
  const int64_t T = 30;
  const Tensor x = sample({1, T, 12}, "x"), whole = run(*m.layer, x).value();
  const autograd::NoGrad no_grad;
  for (const bool placed : {false, true}) {
    State state;
    Context c;
    c.state = &state;
    c.capacity = T;
    m.layer->forward(x.slice(1, 0, 7).contiguous(), c);
    for (int64_t t = 7; t < T; ++t) {
      c.position = t;
      if (placed) c.place = tensor_of<int32_t>({static_cast<int32_t>(t)});
      const Tensor y = m.layer->forward(x.slice(1, t, t + 1).contiguous(), c).value();
      CHECK(distance(y, whole.slice(1, t, t + 1)) < 1e-12);
    }
  }
  const Tensor full = run(*attention.layer, x).value();
  CHECK(distance(whole, full) < 0.9);
  const Made strict = made({"", "moba", sizes + "lost = 1e-9"});
  CHECK(distance(run(*strict.layer, x).value(), full) < 1e-7);
}

TEST_CASE("lost: whoever watches is told the largest and the mean bound of each mixer") {
  const Made m = made({"", "moba", "heads = 2\nblock = 4\ntop_k = 1\nlost = 0.3"});
  const autograd::NoGrad no_grad;
  const auto found = watch_routes([&] { run(*m.layer, sample({1, 30, 12}, "x")); });
  REQUIRE(found.size() == 1);
  REQUIRE(found[0].lost);
  CHECK(found[0].tokens == 30);
  CHECK(found[0].lost->most <= 0.3);
  CHECK(found[0].lost->mean <= found[0].lost->most);
  CHECK(found[0].keys > 1);
  CHECK(found[0].keys <= 15.5);
}

TEST_CASE(
    "lost: blocks come by what they may give at most, until the bound is what was asked for") {
  const int64_t T = 33, H = 4, K = 3, block = 4;
  for (const double lost : {0.1, 0.4, 0.999}) {
    kernels::SelectBlocks o;
    o.block = block;
    o.top_k = 3;
    o.scale = 0.7;
    const Tensor q = sample({2, T, H, K}, "q"), k = sample({2, T, 2, K}, "k");
    const Tensor means =
        autograd::apply<kernels::BlockMeans>({Var(k)}, {block, {}, {}, {}}).y.value();
    const Tensor radius = kernels::block_radius(k, means, o);
    const kernels::SelectedMass got = kernels::select_mass(q, k, means, radius, o, lost);
    const auto Q = view<const double>(q), key = view<const double>(k);
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t h = 0; h < H; ++h)
        for (int64_t t = 0; t < T; ++t) {
          INFO("lost " << lost << ", row " << b << ", head " << h << ", token " << t);
          const auto dot = [&](const auto& f) {
            double sum = 0;
            for (int64_t i = 0; i < K; ++i) sum += Q(b, t, h, i) * f(i);
            return 0.7 * sum;
          };
          double length = 0;
          for (int64_t i = 0; i < K; ++i) length += Q(b, t, h, i) * Q(b, t, h, i);
          struct Block {
            double most, least;  // of what it may give
            int64_t index;
          };
          std::vector<Block> blocks;
          for (int64_t c = 0; c < t / block; ++c) {
            const auto mean = [&](int64_t i) {
              double sum = 0;
              for (int64_t s = 0; s < block; ++s) sum += key(b, c * block + s, h / 2, i) / block;
              return sum;
            };
            double far = 0;  // from the mean to the farthest key
            for (int64_t s = 0; s < block; ++s) {
              double apart = 0;
              for (int64_t i = 0; i < K; ++i)
                apart += std::pow(key(b, c * block + s, h / 2, i) - mean(i), 2);
              far = std::max(far, std::sqrt(apart));
            }
            const double low = dot(mean);
            blocks.push_back(
                {block * std::exp(low + 0.7 * std::sqrt(length) * far), block * std::exp(low), c});
          }
          std::sort(blocks.begin(), blocks.end(),
                    [](const Block& x, const Block& y) { return x.most > y.most; });
          double kept = std::exp(dot([&](int64_t i) { return key(b, t, h / 2, i); })), left = 0;
          for (const Block& x : blocks) left += x.most;
          std::vector<bool> seen(blocks.size() + 1, false);
          seen.back() = true;
          for (size_t n = 0; n < blocks.size(); ++n) {
            if (n >= 2 && left <= lost * (left + kept)) break;  // top_k counts the own block
            seen[static_cast<size_t>(blocks[n].index)] = true;
            kept += blocks[n].least;
            left -= blocks[n].most;
          }
          for (size_t c = 0; c < seen.size(); ++c)
            REQUIRE((view<const uint8_t>(got.mask)(b, h, t, static_cast<int64_t>(c)) == 1) ==
                    seen[c]);
          const double bound = view<const double>(got.bound)(b, h, t);
          const bool all = std::count(seen.begin(), seen.end(), false) == 0;
          REQUIRE(std::abs(bound - (all ? 0 : left / (left + kept))) < 1e-9);
        }
  }
}

TEST_CASE("lost: what is told is the largest bound, and the mean over heads and tokens") {
  const Made m = made({"", "moba", "heads = 2\nblock = 4\ntop_k = 1\nlost = 0.3\nscale = 0.9"});
  const autograd::NoGrad no_grad;
  std::vector<double> bounds;
  const auto found = watch_routes([&] {
    const autograd::Watch watch([&](const autograd::Watched& w) {
      if (w.name != "select_mass") return;
      bounds = to_doubles(w.outputs.at("bound"));
    });
    run(*m.layer, sample({2, 30, 12}, "x"));
  });
  REQUIRE(bounds.size() == 2 * 2 * 30);
  const auto told = watch_routes([&] { run(*m.layer, sample({2, 30, 12}, "x")); });
  REQUIRE(told.size() == 1);
  double sum = 0;
  for (const double x : bounds) sum += x;
  CHECK(told[0].lost->most == *std::max_element(bounds.begin(), bounds.end()));
  CHECK(told[0].lost->mean == Approx(sum / 120));
  CHECK(told[0].tokens == 60);
}

TEST_CASE("lost: a soft cap beside it is refused") {
  CHECK_THAT(tests::message([&] {
               made({"r", "moba", "heads = 2\nlost = 0.1\nsoftcap = 3.0"}, Dtype::f32, kMeta);
             }),
             ContainsSubstring("leave softcap or lost out"));
}
