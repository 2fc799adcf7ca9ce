// The selective scan: its three forms, and the inputs that have broken such code before.
#include "kernels/selective_scan/selective_scan.h"

#include "kernels/selective_scan/reference.h"
#include "tests/kernels/stateful.h"

using namespace weft;
using namespace weft::kernels;
using namespace weft::kernels::stateful;

namespace {

using Scan = SelectiveScan;
using Ref = Reference<Scan>;

Case<Scan> sample(Ref::Sizes s, int parts = Ref::kAll, const std::vector<int32_t>& cu = {}) {
  return Ref::sample("sample", s, parts, cu);
}

Case<Scan> packed() { return sample({1, 29, 5, 3}, Ref::kAll, {0, 1, 9, 10, 22, 29}); }

}  // namespace

TEST_CASE("selective_scan: naive, recurrent and chunkwise agree") { check_forms<Scan>(); }

TEST_CASE("selective_scan: gradients are those of finite differences") {
  for (const Case<Scan>& c :
       {sample({2, 1, 3, 2}), sample({1, 11, 3, 2}), sample({2, 9, 2, 3}, Ref::kBare),
        sample({1, 67, 2, 2}, Ref::kZ | Ref::kState), packed()})
    check_differences<Scan>(c);
}

TEST_CASE("selective_scan: gradients hold for extreme steps and decays") {
  for (const Case<Scan>& c : Ref::cases())
    if (c.name == "dt_bias of 10 and -10" || c.name == "slow and fast states")
      check_differences<Scan>(c);
}

TEST_CASE("selective_scan: a step of nothing keeps the state, a long one forgets it") {
  Case<Scan> c = sample({1, 12, 20, 3}, Ref::kState);
  c.x.dt.fill(-800);
  CHECK(same(forward<Scan>(c.x, c.o).final_state, c.x.initial_state));
  c.x.dt.fill(900);
  const Tensor far = forward<Scan>(c.x, c.o).final_state;
  const View<double> h = view<double>(far), x = view<double>(c.x.x), B = view<double>(c.x.B);
  for (int64_t e = 0; e < 20; ++e)
    for (int64_t k = 0; k < 3; ++k) CHECK(h(0, e, k) == Approx(900 * x(0, 11, e) * B(0, 11, k)));
}

TEST_CASE("selective_scan: the channels do not know of each other") {
  const Case<Scan> c = sample({1, 30, 37, 4});
  const Tensor all = forward<Scan>(c.x, c.o).o;
  Inputs<Scan> one = c.x;
  for (Tensor* t : {&one.x, &one.dt, &one.z}) *t = t->slice(2, 35, 36);
  for (Tensor* t : {&one.A_log, &one.D, &one.dt_bias}) *t = t->slice(0, 35, 36);
  one.initial_state = one.initial_state.slice(1, 35, 36);
  CHECK(same(forward<Scan>(one, c.o).o, all.slice(2, 35, 36)));
}

TEST_CASE("selective_scan: fp32 follows fp64 through a thousand tokens") {
  const Case<Scan> c = sample({1, 1000, 18, 16});
  const Case<Scan> narrow = in_f32<Scan>(c);
  const Outputs<Scan> dy = gradients_for<Scan>(c.x, c.o);
  const Outputs<Scan> narrow_dy = {dy.o.to(Dtype::f32), dy.final_state.to(Dtype::f32)};
  check_close<Scan>(run<Scan>(narrow.x, c.o, narrow_dy), run<Scan>(c.x, c.o, dy), 1e-5);
}

TEST_CASE("selective_scan: a sequence may be cut anywhere and the state carried") {
  const Case<Scan> c = sample({1, 150, 5, 3});
  for (const std::vector<int64_t>& cuts :
       {std::vector<int64_t>{0, 1, 150}, {0, 64, 150}, {0, 63, 64, 65, 149, 150}})
    check_split<Scan>(c, cuts, 1e-11);
  check_split<Scan>(sample({1, 8, 3, 4}), {0, 1, 2, 3, 4, 5, 6, 7, 8}, 1e-11);
}

TEST_CASE("selective_scan: packed documents are the documents one by one") {
  check_packed<Scan>(packed(), 1e-11);
  check_packed<Scan>(sample({1, 200, 19, 3}, Ref::kAll, {0, 63, 64, 66, 193, 200}), 1e-11);
}

TEST_CASE("selective_scan: packed documents do not know of each other") {
  for (int64_t d = 0; d < 5; ++d) check_leak<Scan>(packed(), d);
  check_leak<Scan>(in_f32<Scan>(sample({1, 100, 19, 3}, Ref::kAll, {0, 31, 70, 100})), 1);
}

TEST_CASE("selective_scan: the past does not know of the future") {
  for (const int64_t p : {1, 13, 64, 69}) {
    check_prefix<Scan>(sample({2, 70, 5, 3}), p);
    check_prefix<Scan>(in_f32<Scan>(sample({2, 70, 19, 3})), p);
  }
}

TEST_CASE("selective_scan: inputs may have any strides") {
  check_strided<Scan>(sample({2, 37, 19, 3}));
  check_strided<Scan>(sample({2, 1, 5, 3}));
  check_strided<Scan>(packed());
}

TEST_CASE("selective_scan: the same bits on one thread, on two, and on used memory") {
  check_repeatable<Scan>(in_f32<Scan>(sample({2, 130, 200, 5})));
  check_repeatable<Scan>(in_f32<Scan>(sample({2, 1, 200, 5})));
  check_repeatable<Scan>(in_f32<Scan>(packed()));
}

TEST_CASE("selective_scan: the meta device follows the memory to the byte") {
  for (const Case<Scan>& c : {sample({2, 130, 200, 5}), sample({3, 1, 19, 3}),
                              sample({1, 70, 5, 3}, Ref::kBare), packed()}) {
    check_meta<Scan>(c);
    check_meta<Scan>(in_f32<Scan>(c));
  }
}

TEST_CASE("selective_scan: wrong inputs are named") {
  const auto message = [](const Case<Scan>& c) {
    try {
      forward<Scan>(c.x, c.o);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const Case<Scan> good = sample({2, 6, 4, 3});
  Case<Scan> c = good;
  c.x.B = normal({2, 6, 4}, 1, "B");
  CHECK(message(c) == "selective_scan: B has shape [2, 6, 4], expected [2, 6, 3]");
  c = good;
  c.x.A_log = normal({3, 3}, 1, "A_log");
  CHECK(message(c) == "selective_scan: A_log has shape [3, 3], expected [4, K] for x [2, 6, 4]");
  c = good;
  c.x.initial_state = normal({1, 4, 3}, 1, "state");
  CHECK(message(c) == "selective_scan: initial_state has shape [1, 4, 3], expected [2, 4, 3]");
}
