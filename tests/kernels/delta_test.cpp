// The delta rule: its three forms, its identities, and the inputs that have broken such code
// before.
#include "kernels/delta/delta.h"

#include "kernels/delta/reference.h"
#include "tests/kernels/stateful.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::stateful;

namespace {

using Sizes = Reference<Delta>::Sizes;

Case<Delta> sample(Sizes s, bool gate = true, bool state = true,
                   const std::vector<int32_t>& cu = {}) {
  return Reference<Delta>::sample("sample", s, gate, state, cu);
}

Case<Delta> packed() { return sample({1, 29, 2, 1, 4, 3}, true, true, {0, 1, 9, 10, 22, 29}); }

// The transposed state times a key: what the memory returns for it.
std::vector<double> recall(const Tensor& state, const Tensor& key) {
  const View<const double> S = view<const double>(state), k = view<const double>(key);
  std::vector<double> out(static_cast<size_t>(S.size(1)), 0.0);
  for (int64_t d = 0; d < S.size(0); ++d)
    for (int64_t c = 0; c < S.size(1); ++c) out[static_cast<size_t>(c)] += S(d, c) * k(d);
  return out;
}

}  // namespace

TEST_CASE("delta: naive, recurrent and chunkwise agree") { check_forms<Delta>(); }

TEST_CASE("delta: gradients are those of finite differences") {
  for (const Case<Delta>& c : {sample({2, 1, 2, 2, 4, 3}), sample({1, 17, 2, 1, 3, 2}),
                               sample({1, 19, 1, 1, 3, 4}, false), packed()})
    check_differences<Delta>(c);
}

TEST_CASE("delta: gates of zero are no gates") {
  Case<Delta> c = sample({2, 70, 2, 1, 5, 4});
  const Outputs<Delta> dy = gradients_for<Delta>(c.x, c.o);
  c.x.g.zero();
  const Result<Delta> gated = run<Delta>(c.x, c.o, dy);
  c.x.g = {};
  Result<Delta> plain = run<Delta>(c.x, c.o, dy);
  plain.dx.g = gated.dx.g;
  check_close<Delta>(gated, plain, 1e-13);
}

TEST_CASE("delta: with beta 0 the state decays and is read, no more") {
  Case<Delta> c = sample({1, 40, 1, 1, 4, 3});
  c.x.beta.zero();
  const Outputs<Delta> y = forward<Delta>(c.x, c.o);
  double log_decay = 0;
  for (int64_t t = 0; t < 40; ++t) {
    log_decay += c.x.g.data<double>()[t];
    const auto read = recall(c.x.initial_state.select(0, 0).select(0, 0),
                             c.x.q.select(0, 0).select(0, t).select(0, 0));
    for (int64_t v = 0; v < 3; ++v)
      CHECK(y.o.data<double>()[t * 3 + v] ==
            Approx(0.5 * std::exp(log_decay) * read[static_cast<size_t>(v)]));
  }
}

TEST_CASE("delta: with beta 1 a unit key returns what was written last") {
  for (const int64_t T : {1, 5, 64, 77}) {
    Case<Delta> c = sample({1, T, 2, 1, 6, 4});
    c.x.beta.fill(1);
    const Outputs<Delta> y = forward<Delta>(c.x, c.o);
    for (int64_t h = 0; h < 2; ++h) {
      const auto got = recall(y.final_state.select(0, 0).select(0, h),
                              c.x.k.select(0, 0).select(0, T - 1).select(0, 0));
      const auto want = to_doubles(c.x.v.select(0, 0).select(0, T - 1).select(0, h));
      for (size_t i = 0; i < want.size(); ++i) CHECK(got[i] == Approx(want[i]).margin(1e-12));
    }
  }
}

TEST_CASE("delta: with beta 2 a unit key reflects the state") {
  Case<Delta> c = sample({1, 1, 1, 1, 4, 3}, false);
  c.x.beta.fill(2);
  c.x.v.zero();
  const Tensor before = c.x.initial_state;
  Inputs<Delta> again = c.x;
  again.initial_state = forward<Delta>(c.x, c.o).final_state;
  CHECK(difference(again.initial_state, before) > 0.1);
  CHECK(difference(forward<Delta>(again, c.o).final_state, before) < 1e-14);
}

TEST_CASE("delta: orthonormal keys do not disturb each other") {
  const int64_t K = 48;
  Case<Delta> c = sample({1, K, 1, 1, K, 3}, false, false);
  c.x.k.zero();
  c.x.beta.fill(1);
  for (int64_t t = 0; t < K; ++t) c.x.k.data<double>()[t * K + (7 * t) % K] = 1;  // a permutation
  const Tensor S = forward<Delta>(c.x, c.o).final_state;
  for (int64_t t = 0; t < K; ++t)
    for (int64_t v = 0; v < 3; ++v)
      CHECK(S.data<double>()[(7 * t) % K * 3 + v] == c.x.v.data<double>()[t * 3 + v]);
}

TEST_CASE("delta: near-equal keys with beta 2 keep fp32's digits") {
  Case<Delta> c = sample({1, 256, 1, 1, 64, 32}, false, false);
  double* const k = c.x.k.data<double>();
  for (int64_t t = 0; t < 256; ++t) {
    double sum = 0;
    for (int64_t d = 0; d < 64; ++d) {
      k[t * 64 + d] = 0.3 * k[t * 64 + d] + (d == 0 ? 1 : 0);  // cosine about 0.95
      sum += k[t * 64 + d] * k[t * 64 + d];
    }
    for (int64_t d = 0; d < 64; ++d) k[t * 64 + d] /= std::sqrt(sum);
  }
  for (const double beta : {1.0, 2.0}) {
    c.x.beta.fill(beta);
    const Case<Delta> narrow = in_f32<Delta>(c);
    const Outputs<Delta> dy = gradients_for<Delta>(c.x, c.o);
    const Outputs<Delta> narrow_dy = {dy.o.to(Dtype::f32), dy.final_state.to(Dtype::f32)};
    check_close<Delta>(run<Delta>(narrow.x, c.o, narrow_dy), run<Delta>(c.x, c.o, dy), 3e-4);
  }
}

TEST_CASE("delta: strong gates everywhere leave each token to itself") {
  for (const double g : {-80.0, -1000.0}) {
    Case<Delta> c = in_f32<Delta>(sample({1, 67, 2, 2, 5, 3}));
    c.x.g.fill(g);
    const Outputs<Delta> dy = gradients_for<Delta>(c.x, c.o);
    const Result<Delta> r = run<Delta>(c.x, c.o, dy);
    for_inputs<Delta>(
        [](const std::string& name, bool, const Tensor& t) {
          INFO("gradient of " << name);
          CHECK(autograd::all_finite(t));
        },
        const_cast<Inputs<Delta>&>(r.dx));
    const View<float> q = view<float>(c.x.q), k = view<float>(c.x.k), v = view<float>(c.x.v),
                      beta = view<float>(c.x.beta), o = view<float>(r.y.o);
    for (int64_t t = 1; t < 67; ++t)
      for (int64_t h = 0; h < 2; ++h) {
        double match = 0;
        for (int64_t d = 0; d < 5; ++d) match += q(0, t, h, d) * k(0, t, h, d);
        for (int64_t j = 0; j < 3; ++j)
          CHECK(o(0, t, h, j) ==
                Approx(match / std::sqrt(5.0) * beta(0, t, h) * v(0, t, h, j)).margin(1e-6));
      }
  }
}

TEST_CASE("delta: a sequence may be cut anywhere and the state carried") {
  const Case<Delta> c = sample({1, 150, 2, 1, 5, 4});
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, 1, 150}, {0, 64, 150}, {0, 31, 32, 33, 149, 150}})
    check_split<Delta>(c, cuts, 1e-11);
  check_split<Delta>(sample({1, 12, 4, 2, 3, 4}), {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
                     1e-11);
}

TEST_CASE("delta: packed documents are the documents one by one") {
  check_packed<Delta>(packed(), 1e-11);
  check_packed<Delta>(sample({1, 200, 2, 2, 36, 5}, true, true, {0, 63, 64, 66, 193, 200}), 1e-11);
  check_packed<Delta>(sample({1, 100, 2, 1, 4, 3}, false, true, {0, 31, 32, 64, 97, 100}), 1e-11);
}

TEST_CASE("delta: packed documents do not know of each other") {
  for (int64_t d = 0; d < 5; ++d) check_leak<Delta>(packed(), d);
  check_leak<Delta>(in_f32<Delta>(sample({1, 100, 2, 1, 4, 3}, true, true, {0, 31, 70, 100})), 1);
}

TEST_CASE("delta: the past does not know of the future") {
  for (const int64_t p : {1, 13, 32, 45, 69}) {
    check_prefix<Delta>(sample({2, 70, 2, 1, 5, 4}), p);
    check_prefix<Delta>(in_f32<Delta>(sample({2, 70, 2, 1, 5, 4})), p);
  }
}

TEST_CASE("delta: inputs may have any strides") {
  check_strided<Delta>(sample({2, 37, 2, 1, 5, 4}));
  check_strided<Delta>(sample({2, 1, 2, 2, 5, 4}));
  check_strided<Delta>(packed());
}

TEST_CASE("delta: the same bits on one thread, on two, and on used memory") {
  check_repeatable<Delta>(in_f32<Delta>(sample({2, 130, 4, 2, 24, 20})));
  check_repeatable<Delta>(in_f32<Delta>(sample({2, 1, 4, 2, 24, 20})));
  check_repeatable<Delta>(in_f32<Delta>(packed()));
}

TEST_CASE("delta: the meta device follows the memory to the byte") {
  for (const Case<Delta>& c : {sample({2, 130, 4, 2, 24, 20}), sample({3, 1, 2, 2, 5, 4}),
                               sample({1, 70, 2, 2, 40, 7}, false, false), packed()}) {
    check_meta<Delta>(c);
    check_meta<Delta>(in_f32<Delta>(c));
  }
}

TEST_CASE("delta: wrong inputs are named") {
  const auto message = [](const Case<Delta>& c) {
    try {
      forward<Delta>(c.x, c.o);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const Case<Delta> good = sample({2, 6, 4, 2, 5, 3});
  Case<Delta> c = good;
  c.x.q = normal({2, 6, 2, 4}, 1, "q");
  CHECK(message(c) == "delta: q has shape [2, 6, 2, 4], expected [2, 6, 2, 5] as k");
  c = good;
  c.x.beta = normal({2, 6}, 1, "beta");
  CHECK(message(c) == "delta: beta has shape [2, 6], expected [2, 6, 4]");
  c = good;
  c.x.q = c.x.k = normal({2, 6, 3, 5}, 1, "k");
  CHECK(message(c) == "delta: k has 3 heads, v has 4; expected a divisor of that");
  c = good;
  c.x.initial_state = normal({1, 4, 5, 3}, 1, "state");
  CHECK(message(c) == "delta: initial_state has shape [1, 4, 5, 3], expected [2, 4, 5, 3]");
  c = good;
  c.o.cu_seqlens = tensor_of(std::vector<int32_t>{0, 6});
  CHECK(message(c).find("B = 2") != std::string::npos);
}
