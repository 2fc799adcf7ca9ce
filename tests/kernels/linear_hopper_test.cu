// The Hopper form of linear's forward pass, on sizes that the cases of the reference are too small
// for: against the CPU's chunkwise form in f32 on the same numbers.
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
  return std::sqrt(error / norm);  // NaN is below no bound
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

}  // namespace

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
