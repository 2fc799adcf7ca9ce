#include "kernels/generation/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/random.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

Tensor logits_of(int64_t n, const std::string& name, double deviation) {
  const Tensor t = empty({n}, Dtype::f32);
  const Random random(3, stream_of(name));
  for (int64_t i = 0; i < n; ++i)
    t.data<float>()[i] = static_cast<float>(deviation * random.normal(static_cast<uint64_t>(i)));
  return t;
}

std::vector<int32_t> drawn_on_cpu(const Tensor& logits, const Sampling& s, int64_t n) {
  std::vector<int32_t> list;
  for (int64_t i = 0; i < n; ++i) list.push_back(draw_token(logits, s, static_cast<uint64_t>(i)));
  return list;
}

std::vector<int32_t> drawn_on_gpu(const Tensor& logits, const Sampling& s, int64_t n) {
  std::vector<double> chances;
  for (int64_t i = 0; i < n; ++i) chances.push_back(s.chance(static_cast<uint64_t>(i)));
  const Tensor there = logits.to(kCuda), chance = tensor_of(chances).to(kCuda);
  const Tensor place = tensor_of<int32_t>({7}).to(kCuda), token = zeros({1}, Dtype::i32, kCuda);
  std::vector<int32_t> list;
  if constexpr (has_cuda)
    for (int64_t i = 0; i < n; ++i) {
      cuda_draw_token(there, s, chance, place, /*first=*/7, token);
      list.push_back(static_cast<int32_t>(token.item()));
    }
  CHECK(place.item() == static_cast<double>(7 + n));
  return list;
}

}  // namespace

TEST_CASE("draw: without temperature the likeliest token, of equals the first") {
  const Tensor t = tensor_of<float>({1, 3, 2, 3});
  CHECK(draw_token(t, {.temperature = 0}, 0) == 1);
}

TEST_CASE("draw: top_k and top_p leave out what is not among the likeliest") {
  const Tensor t = tensor_of<float>({0, 2, 1, 2});
  for (const int32_t token : drawn_on_cpu(t, {.temperature = 5, .top_k = 2}, 50))
    CHECK((token == 1 || token == 3));
  for (const int32_t token : drawn_on_cpu(t, {.temperature = 1, .top_p = 0.3}, 50))
    CHECK(token == 1);
}

TEST_CASE("draw: tokens come as often as they are likely") {
  const Tensor t = tensor_of<float>({std::log(1.f), std::log(2.f), std::log(5.f)});
  const auto list = drawn_on_cpu(t, {.temperature = 1}, 4000);
  const auto times = [&](int32_t token) { return std::count(list.begin(), list.end(), token); };
  CHECK(std::abs(times(0) - 500) < 70);
  CHECK(std::abs(times(1) - 1000) < 100);
}

TEST_CASE("draw: a GPU draws the token that the CPU draws", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const std::vector<Sampling> settings = {
      {.temperature = 0},
      {.temperature = 0.8},
      {.temperature = 1.3, .top_k = 1},
      {.temperature = 1, .top_k = 40},
      {.temperature = 1, .top_p = 0.7},
      {.temperature = 0.5, .top_k = 100, .top_p = 0.95, .seed = 9}};
  for (const int64_t n : {1, 11, 1000, 1025, 50304})
    for (const double deviation : {0.0, 1e-3, 2.0, 30.0})
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16})  // bf16: many equals
        for (const Sampling& s : settings) {
          INFO(n << " logits of deviation " << deviation << ", " << dtype << ", temperature "
                 << s.temperature << ", top_k " << s.top_k << ", top_p " << s.top_p);
          const Tensor logits = logits_of(n, "logits", deviation).to(dtype);
          const int64_t draws = n > 10000 ? 6 : 20;
          CHECK(drawn_on_gpu(logits, s, draws) == drawn_on_cpu(logits, s, draws));
        }
}

TEST_CASE("draw: logits behind the last token are never drawn, however likely") {
  const Tensor t = tensor_of<float>({0, 2, 1, 2, 90, 80});
  CHECK(draw_token(t, {.temperature = 0, .tokens = 4}, 0) == 1);
  const Tensor first = t.slice(0, 0, 4);
  for (const Sampling& s : {Sampling{.temperature = 5, .tokens = 4},
                            Sampling{.temperature = 5, .top_k = 5, .tokens = 4},
                            Sampling{.temperature = 5, .top_p = 0.9, .tokens = 4}}) {
    Sampling all = s;
    all.tokens = 0;
    CHECK(drawn_on_cpu(t, s, 50) == drawn_on_cpu(first, all, 50));
  }
  CHECK(draw_token(t, {.temperature = 0, .tokens = 60}, 0) == 4);  // no more than there are
}

TEST_CASE("draw: a logit that is not finite is not drawn, and where none is finite it is said") {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  const Tensor t = tensor_of<float>({nan, inf, 3, -inf, 2});
  CHECK(draw_token(t, {.temperature = 0}, 0) == 2);
  for (const int32_t token : drawn_on_cpu(t, {.temperature = 2}, 50))
    CHECK((token == 2 || token == 4));
  CHECK_THROWS_WITH(draw_token(tensor_of<float>({nan, inf, -inf}), {}, 0),
                    ContainsSubstring("finite"));
}

TEST_CASE("draw: a GPU draws among the tokens alone, as the CPU does", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  const std::vector<Sampling> settings = {{.temperature = 0, .tokens = 257},
                                          {.temperature = 1.5, .tokens = 257},
                                          {.temperature = 1, .top_k = 400, .tokens = 257},
                                          {.temperature = 2, .top_p = 0.9, .tokens = 257}};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const Sampling& s : settings) {
      const Tensor logits = logits_of(320, "padded", 2.0).to(dtype);
      CHECK(drawn_on_gpu(logits, s, 20) == drawn_on_cpu(logits, s, 20));
      for (const int32_t token : drawn_on_cpu(logits, s, 20)) CHECK(token < 257);
    }
}

TEST_CASE("draw: chance lies on the width that top_k and top_p kept") {
  // Weights 5, 2 and 1. top_p = 0.8 keeps the first two, of which the first has 5/7.
  const Tensor t = tensor_of<float>({std::log(1.f), std::log(2.f), std::log(5.f)});
  for (const Sampling& s : {Sampling{.temperature = 1, .top_p = 0.8, .seed = 4},
                            Sampling{.temperature = 1, .top_k = 2, .seed = 4}}) {
    int64_t second = 0;
    for (uint64_t i = 0; i < 500; ++i) {
      const double place = 7 * s.chance(i);
      if (std::abs(place - 5) < 1e-4) continue;  // where rounding may decide
      INFO("draw " << i << " at " << place << " of 7");
      CHECK(draw_token(t, s, i) == (place < 5 ? 2 : 1));
      second += place >= 5;
    }
    CHECK(second > 100);
  }
}

TEST_CASE("draw: top_p keeps the fewest tokens that hold it, one at least") {
  const Tensor t = tensor_of<float>({1, 1, 1, 1});  // a quarter each
  const auto kept = [&](Sampling s) {
    s.temperature = 1;
    std::set<int32_t> seen;
    for (const int32_t token : drawn_on_cpu(t, s, 200)) seen.insert(token);
    return seen;
  };
  using Set = std::set<int32_t>;
  CHECK(kept({.top_p = 1e-9}) == Set{0});
  CHECK(kept({.top_p = 0.25}) == Set{0});
  CHECK(kept({.top_p = 0.26}) == Set{0, 1});
  CHECK(kept({.top_p = 0.5}) == Set{0, 1});
  CHECK(kept({.top_p = 0.51}) == Set{0, 1, 2});
  CHECK(kept({.top_p = 1}) == Set{0, 1, 2, 3});
  CHECK(kept({.top_k = 1}) == Set{0});
  CHECK(kept({.top_k = 3}) == Set{0, 1, 2});
  CHECK(kept({.top_k = 4}) == Set{0, 1, 2, 3});
  CHECK(kept({.top_k = 5}) == Set{0, 1, 2, 3});
  CHECK(kept({.top_k = 0}) == Set{0, 1, 2, 3});
  CHECK(kept({.top_k = 2, .top_p = 0.5}) == Set{0});  // a half of what top_k left
}

TEST_CASE("draw: temperature divides the logits") {
  const Tensor t = tensor_of<float>({std::log(4.f), 0});
  const auto first = [&](double temperature) {
    const Sampling s{.temperature = temperature, .seed = 6};
    int64_t n = 0;
    for (const int32_t token : drawn_on_cpu(t, s, 4000)) n += token == 0;
    return static_cast<double>(n) / 4000;
  };
  CHECK(first(1) == Approx(4.0 / 5).margin(0.025));
  CHECK(first(2) == Approx(2.0 / 3).margin(0.025));
  CHECK(first(0.5) == Approx(16.0 / 17).margin(0.02));
  CHECK(first(100) == Approx(0.5).margin(0.03));
}

TEST_CASE("draw: another seed and another draw have another chance, the same ones the same") {
  const Sampling a{.seed = 1}, b{.seed = 2};
  CHECK(a.chance(3) == Sampling{.seed = 1}.chance(3));
  std::set<double> all;
  for (uint64_t i = 0; i < 50; ++i) {
    all.insert(a.chance(i));
    all.insert(b.chance(i));
    CHECK((a.chance(i) >= 0 && a.chance(i) < 1));
  }
  CHECK(all.size() == 100);
}
