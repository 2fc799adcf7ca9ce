// The Hopper forms of linear, on sizes that the cases of the reference are too small for: against
// the CPU's chunkwise form in f32 on the same numbers.
#include "kernels/linear/problem.cuh"
#include "kernels/linear/reference.h"
#include "kernels/tile/hopper.cuh"
#include "tests/kernels/cuda_memory.cuh"

namespace weft::kernels {
namespace {

using Sizes = Reference<Linear>::Sizes;

double relative_error(const Tensor& got, const Tensor& want) {
  const Tensor a = got.to(kCpu).to(Dtype::f64).contiguous();
  const Tensor b = want.to(Dtype::f64).contiguous();
  double error = 0, norm = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double x = a.data<double>()[i], y = b.data<double>()[i];
    error += (x - y) * (x - y);
    norm += y * y;
  }
  return error == 0 ? 0 : std::sqrt(error / norm);  // NaN is below no bound
}

// Inputs that bf16 holds, on the CPU in f32.
Case<Linear> sample(const Sizes& s, bool gate, bool fixed, bool state) {
  Case<Linear> c = Reference<Linear>::make("sample", s);
  for (Tensor* t : {&c.x.q, &c.x.k, &c.x.v}) *t = t->to(Dtype::bf16).to(Dtype::f32);
  if (gate) c.x.g = Reference<Linear>::log_decays({s.B, s.T, s.H}, 0.1).to(Dtype::f32);
  if (fixed) c.x.log_gamma = Reference<Linear>::log_decays({s.H}, 0.1).to(Dtype::f32);
  if (state) {
    Reference<Linear>::add_states(c, s.B);
    c.x.initial_state = c.x.initial_state.to(Dtype::f32);
  }
  return c;
}

void check_sizes(const Sizes& s, bool gate, bool fixed, bool state) {
  INFO("B " << s.B << " T " << s.T << " Hk " << s.Hk << " H " << s.H << " K " << s.K << " V " << s.V
            << " gate " << gate << " fixed " << fixed << " state " << state);
  const Case<Linear> c = sample(s, gate, fixed, state);
  const auto want = forward<Linear>(c.x, c.o);
  Inputs<Linear> x = c.x;
  for (Tensor* t : {&x.q, &x.k, &x.v}) *t = t->to(Dtype::bf16).to(kCuda);
  for (Tensor* t : {&x.g, &x.log_gamma, &x.initial_state})
    if (*t) *t = t->to(kCuda);
  Outputs<Linear> y;
  y.o = empty({s.B, s.T, s.H, s.V}, Dtype::bf16, kCuda);
  y.final_state = empty({s.B, s.H, s.K, s.V}, Dtype::f32, kCuda);
  REQUIRE(linear::hopper_forward(x, c.o, y));
  tests::require_success("linear");
  CHECK(relative_error(y.o, want.o) < 6e-3);
  CHECK(relative_error(y.final_state, want.final_state) < 6e-3);

  const Tensor first = y.o.to(kCpu).clone();
  REQUIRE(linear::hopper_forward(x, c.o, y));
  CHECK(relative_error(y.o, first) == 0);  // the same bits
}

// Enough heads, or few chunks: the scans must take the call.
void check_gradients(const Sizes& s, bool gate, bool fixed, bool resets) {
  INFO("B " << s.B << " T " << s.T << " Hk " << s.Hk << " H " << s.H << " K " << s.K << " V " << s.V
            << " gate " << gate << " fixed " << fixed << " resets " << resets);
  Case<Linear> c = sample(s, gate, fixed, false);
  c.o.return_state = false;
  if (resets) {
    c.x.g = c.x.g.to(Dtype::f64);
    put_resets(c.x.g);
    c.x.g = c.x.g.to(Dtype::f32);
  }
  const Tensor dout = normal({s.B, s.T, s.H, s.V}, 1, "dout").to(Dtype::bf16).to(Dtype::f32);
  Inputs<Linear, bool> wanted{};
  wanted.q = wanted.k = wanted.v = true;
  wanted.g = gate;
  Linear::Saved saved;
  forward<Linear>(c.x, c.o, &saved);
  const auto want = backward<Linear>(c.x, c.o, saved, {.o = dout}, wanted);

  Inputs<Linear> x = c.x, dx;
  for (Tensor* t : {&x.q, &x.k, &x.v}) *t = t->to(Dtype::bf16).to(kCuda);
  for (Tensor* t : {&x.g, &x.log_gamma})
    if (*t) *t = t->to(kCuda);
  const Outputs<Linear> dy{.o = dout.to(Dtype::bf16).to(kCuda)};
  // Unset memory is NaN, so that a number that nobody wrote is found.
  const auto fresh = [](const Tensor& like) {
    return full(like.shape(), std::numeric_limits<double>::quiet_NaN(), like.dtype(), kCuda);
  };
  dx.q = fresh(x.q);
  dx.k = fresh(x.k);
  dx.v = fresh(x.v);
  if (gate) dx.g = fresh(x.g);
  const linear::ScanScratch scratch(x, c.o, dy, dx);
  REQUIRE(scratch.covers);
  const Tensor states = full({s.B, s.T / linear::kTokens + 1, s.H, 128, 128},
                             std::numeric_limits<double>::quiet_NaN(), Dtype::bf16, kCuda);
  const Tensor room = empty({std::max<int64_t>(scratch.of_heads, 1)}, Dtype::bf16, kCuda);
  REQUIRE(linear::hopper_backward(x, c.o, dy.o, dx, scratch, states, room));
  tests::require_success("linear backward");
  CHECK(relative_error(dx.q, want.q) < 6e-3);
  CHECK(relative_error(dx.k, want.k) < 6e-3);
  CHECK(relative_error(dx.v, want.v) < 6e-3);
  if (gate) CHECK(relative_error(dx.g, want.g) < 6e-3);

  const Inputs<Linear> first{.q = dx.q.to(kCpu).clone(),
                             .k = dx.k.to(kCpu).clone(),
                             .v = dx.v.to(kCpu).clone(),
                             .g = gate ? dx.g.to(kCpu).clone() : Tensor()};
  const Tensor dg = dx.g;
  dx.g = Tensor();  // other kernels, the same bits
  REQUIRE(
      linear::hopper_backward(x, c.o, dy.o, dx, linear::ScanScratch(x, c.o, dy, dx), states, room));
  CHECK(relative_error(dx.q, first.q) == 0);
  CHECK(relative_error(dx.k, first.k) == 0);
  CHECK(relative_error(dx.v, first.v) == 0);
  if (!gate) return;
  dx.g = dg;
  REQUIRE(linear::hopper_backward(x, c.o, dy.o, dx, scratch, states, room));
  CHECK(relative_error(dx.g, first.g) == 0);
}

}  // namespace

TEST_CASE("linear: the scans of gradients for Hopper agree with the CPU's backward pass",
          "[cuda]") {
  if (!tests::has_gpu() || !tile::on_hopper(kCuda)) SKIP("no GPU of sm_90");
  for (const bool gate : {false, true}) {
    check_gradients({.B = 2, .T = 200, .Hk = 2, .H = 4, .K = 64, .V = 64}, gate, false, false);
    check_gradients({.B = 1, .T = 777, .Hk = 20, .H = 20, .K = 128, .V = 128}, gate, false, gate);
    check_gradients({.B = 2, .T = 300, .Hk = 3, .H = 24, .K = 128, .V = 64}, gate, false, gate);
    check_gradients({.B = 1, .T = 65, .Hk = 1, .H = 2, .K = 96, .V = 104}, gate, true, false);
    check_gradients({.B = 1, .T = 64, .Hk = 2, .H = 2, .K = 128, .V = 8}, gate, true, false);
    check_gradients({.B = 1, .T = 2, .Hk = 1, .H = 1, .K = 8, .V = 8}, gate, true, false);
    check_gradients({.B = 3, .T = 1, .Hk = 1, .H = 1, .K = 8, .V = 8}, gate, true, false);
  }
}

TEST_CASE("linear: the form for Hopper agrees with the CPU's", "[cuda]") {
  if (!tests::has_gpu() || !tile::on_hopper(kCuda)) SKIP("no GPU of sm_90");
  for (const bool gate : {false, true}) {
    check_sizes({.B = 2, .T = 200, .Hk = 2, .H = 4, .K = 64, .V = 64}, gate, false, true);
    check_sizes({.B = 1, .T = 777, .Hk = 3, .H = 3, .K = 128, .V = 128}, gate, false, false);
    check_sizes({.B = 1, .T = 65, .Hk = 1, .H = 2, .K = 96, .V = 104}, gate, true, true);
    check_sizes({.B = 1, .T = 2, .Hk = 1, .H = 1, .K = 8, .V = 8}, gate, true, false);
  }
}

}  // namespace weft::kernels
