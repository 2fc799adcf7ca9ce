// The evaluation that bounds a GPU's bf16: products with operands rounded to bf16, all else exact.
#include "kernels/contract/rounding.h"

#include <algorithm>

#include "kernels/contract/agreement.h"
#include "kernels/delta/reference.h"
#include "kernels/delta_rule/form.h"
#include "kernels/kda/reference.h"
#include "kernels/tile/cpu_gemm.h"
#include "kernels/tile/tile.h"
#include "kernels/tile/tile_gemm.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

constexpr int64_t kSize = 32;

Tensor matrix(const char* name) { return normal({kSize, kSize}, 5, name); }
Tensor in_bf16(const Tensor& t) { return t.to(Dtype::bf16).to(Dtype::f64); }

bool same(const Tensor& a, const Tensor& b) { return to_doubles(a) == to_doubles(b); }

// Every product there is, of a and b: a b, a' b, and a b' where there is one.
std::vector<Tensor> products(const Tensor& a, const Tensor& b) {
  std::vector<Tensor> all;
  const double *const x = a.data<double>(), *const y = b.data<double>();
  const auto add = [&](const auto& product) {
    all.push_back(zeros({kSize, kSize}, Dtype::f64));
    product(all.back().data<double>());
  };
  constexpr int64_t n = kSize;
  for (const bool turned : {false, true}) {
    add([&](double* c) { gemm<double>(n, n, n, 1, {x, n, turned}, {y, n, !turned}, 0, {c, n}); });
    add([&](double* c) { parallel_gemm<double>(n, n, n, 1, {x, n, turned}, {y, n}, 0, {c, n}); });
    add([&](double* c) {
      tile_gemm<double>(n, n, n, {x, turned ? 1 : n, turned ? n : 1}, y, n, c, n, false);
    });
  }
  const Tile<const double> s{x, n}, t{y, n};
  add([&](double* c) { detail::product<double, false>(n, n, n, s, t, 0, {c, n}, Band::full); });
  add([&](double* c) { detail::product<double, true>(n, n, n, s, t, 0, {c, n}, Band::full); });
  return all;
}

// The GPU's form of a rule that overwrites, nothing rounded, against the CPU's.
template <class M>
void compare_forms() {
  for (const Case<M>& c : Reference<M>::cases()) {
    typename M::Saved saved;
    Outputs<M> y = forward<M>(c.x, c.o, &saved), form_y = M::outputs(c.x, c.o), dy;
    int number = 0;
    for_fields(
        [&](Tensor& d, const Tensor& t) {
          if (t) d = normal(t.shape(), 9, "output " + std::to_string(number++));
        },
        dy, y);
    Inputs<M, bool> all;
    for_fields([](bool& want) { want = true; }, all);
    Inputs<M> dx = backward<M>(c.x, c.o, saved, dy, all), form_dx;
    for_fields([](Tensor& d, const Tensor& t) { d = t ? zeros_like(t) : t; }, form_dx, dx);
    delta_rule::Form<M> form(c.x, c.o);
    form.forward(form_y);
    form.backward(dy, form_dx);
    const auto check = [&](const Tensor& got, const Tensor& expected) {
      INFO(M::name << " \"" << c.name << "\"");
      if (expected) CHECK(difference(got, expected, floor_of(Dtype::f64)).error < 1e-10);
    };
    for_fields(check, form_y, y);
    for_fields(check, form_dx, dx);
  }
}

}  // namespace

TEST_CASE("rounding: a product rounds its operands to bf16, and nothing else") {
  const Tensor a = matrix("a"), b = matrix("b");
  const std::vector<Tensor> exact = products(a, b), wanted = products(in_bf16(a), in_bf16(b));
  std::vector<Tensor> rounded;
  {
    const OperandRounding rounding;
    rounded = products(a, b);
  }
  const std::vector<Tensor> after = products(a, b);
  for (size_t i = 0; i < exact.size(); ++i) {
    INFO("product " << i);
    CHECK(same(rounded[i], wanted[i]));
    CHECK_FALSE(same(rounded[i], exact[i]));
    CHECK(same(after[i], exact[i]));
  }
}

TEST_CASE("rounding: in f32 it changes nothing") {
  const Tensor a = matrix("a").to(Dtype::f32), c = zeros_like(a), d = zeros_like(a);
  const auto run = [&](const Tensor& to) {
    tile_gemm<float>(kSize, kSize, kSize, {a.data<float>(), kSize, 1}, a.data<float>(), kSize,
                     to.data<float>(), kSize, false);
  };
  run(c);
  const OperandRounding rounding;
  run(d);
  CHECK(same(c, d));
}

TEST_CASE(
    "rounding: every form's error is that of bf16, and the CPU's own bf16 lies within its bound") {
  for (const Operation* op : operations())
    for (const NamedCase& c : op->cases()) {
      const Expected e = expected_of(*op, c, Dtype::bf16);
      const Errors errors = rounding_errors(e);
      for (const auto& [name, error] : errors) {
        INFO(op->name() << " \"" << c.name << "\" " << name);
        CHECK(error < 0x1p-5);  // delta rules without a gate, states: errors feed on errors
      }
      const Tensors y = op->forward(Form::chunkwise, e.inputs, c.settings);
      const Tensors dx = op->backward(Form::chunkwise, e.inputs, c.settings, e.output_gradients);
      for (const Agreement& a : agreement_by_form(e, y, dx)) {
        INFO(op->name() << " \"" << c.name << "\" " << text(a));
        CHECK(a.passed());
      }
    }
}

TEST_CASE("rounding: once off, f64 agrees with the definition as before") {
  for (const char* name : {"attention", "delta", "kda", "linear"}) {
    const Operation& op = operation(name);
    const NamedCase c = op.cases().front();
    (void)rounding_errors(expected_of(op, c, Dtype::bf16));
    const Expected e = expected_of(op, c, Dtype::f64);
    const Tensors y = op.forward(Form::chunkwise, e.inputs, c.settings);
    const Tensors dx = op.backward(Form::chunkwise, e.inputs, c.settings, e.output_gradients);
    for (const Agreement& a : agreement(e, y, dx)) {
      INFO(name << " " << text(a));
      CHECK(a.passed());
    }
  }
}

TEST_CASE("rounding: the GPU's form of rules that overwrite computes what the CPU's does") {
  compare_forms<Delta>();
  compare_forms<Kda>();
}

TEST_CASE("rounding: operands cost more than outputs alone, where a form has products") {
  for (const char* name : {"attention", "block_sparse", "linear", "gated_linear", "delta", "kda"}) {
    const Operation& op = operation(name);
    double most = 0;  // times the error of outputs alone
    for (const NamedCase& c : op.cases()) {
      const Expected e = expected_of(op, c, Dtype::bf16);
      const Tensor& dk = e.gradients.at("dk");
      const double outputs = difference(dk.to(Dtype::bf16), dk, floor_of(Dtype::bf16)).error;
      if (outputs > 0) most = std::max(most, rounding_errors(e).at("dk") / outputs);
    }
    INFO(name);
    CHECK(most > 1.2);
  }
}
