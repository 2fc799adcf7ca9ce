// Gates that forget all: what the cases with such gates do not promise by being near the
// definition.
#include <algorithm>
#include <cmath>

#include "kernels/contract/agreement.h"
#include "kernels/tokens/resets.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

bool all_finite(const Tensor& t) {
  const std::vector<double> x = to_doubles(t);
  return std::all_of(x.begin(), x.end(), [](double v) { return std::isfinite(v); });
}

// The operations with log gates.
std::vector<const Operation*> gated() {
  std::vector<const Operation*> list;
  for (const Operation* op : operations())
    for (const Field& f : op->inputs())
      if (std::string(f.name) == "g") list.push_back(op);
  return list;
}

void check_gradients(Form form, Device device, Dtype dtype) {
  int seen = 0;
  for (const Operation* op : gated())
    for (const NamedCase& c : op->cases()) {
      if (c.inputs.count("g") == 0 || all_finite(c.inputs.at("g"))) continue;
      INFO(op->name() << ", " << c.name << ", " << name_of(form) << ", " << dtype << ", "
                      << device);
      const Tensors in = rounded_to(dtype, c.inputs, op->inputs());
      const Tensors there = on_device(device, in);
      const Tensors y = op->forward(form, there, c.settings);
      const Tensors dy = rounded_to(dtype, random_gradients(y, 5), op->outputs());
      for (const auto& [name, t] : y) {
        INFO(name);
        CHECK(all_finite(t));
      }
      const Tensors dx = op->backward(form, there, c.settings, on_device(device, dy));
      for (const auto& [name, t] : dx) {
        INFO(name);
        CHECK(all_finite(t));
      }
      const std::vector<double> g = to_doubles(in.at("g")), dg = to_doubles(dx.at("dg"));
      for (size_t i = 0; i < g.size(); ++i)
        if (std::isinf(g[i])) CHECK(dg[i] == 0);
      ++seen;
    }
  CHECK(seen >= 3 * 4);  // cases of an operation, operations
}

// One head of 128 tokens with gates of -|x| / 8, and of `value` at three tokens.
NamedCase with_resets(const Operation& op, double value) {
  constexpr int64_t T = 128, K = 8;
  NamedCase c;
  for (const Field& f : op.inputs()) {
    const std::string name = f.name;
    const bool vector = name == "g" && std::string(f.shape).ends_with("K]");
    if (name == "initial_state" || name == "initial_z" || name == "log_gamma") continue;
    Shape shape{1, T, 1, K};
    if (name == "beta" || (name == "g" && !vector)) shape = {1, T, 1};
    const Tensor t = c.inputs[name] = normal(shape, 7, name, name == "g" ? 0.125 : 0.3);
    for (int64_t i = 0; i < t.numel(); ++i) {
      double& x = t.data<double>()[i];
      if (name == "g") x = -std::abs(x);
      if (name == "beta") x = 1 / (1 + std::exp(-x));
    }
    if (name != "g" || value == 0) continue;
    for (const int64_t at : {3, 40, 70})
      for (int64_t d = 0; d < t.numel() / T; ++d)
        t.data<double>()[at * (t.numel() / T) + d] = value;
  }
  return c;
}

// The worst error of `dtype` in o and in the gradients, relative to the largest number.
double worst_error(const Operation& op, const NamedCase& c, Device device, Dtype dtype) {
  const Expected e = expected_of(op, c, dtype, Form::recurrent);
  const Tensors in = on_device(device, e.inputs);
  const Tensors y = op.forward(Form::chunkwise, in, c.settings);
  const Tensors dx =
      op.backward(Form::chunkwise, in, c.settings, on_device(device, e.output_gradients));
  double worst = 0;
  for (const Agreement& a : agreement(e, y, dx)) worst = std::max(worst, a.difference.error);
  return worst;
}

void check_digits(Device device, Dtype dtype) {
  for (const Operation* op : gated())
    for (const double value : {kReset, -1e4, -800.0, -300.0}) {
      if (dtype == Dtype::f64 && value == -300) continue;  // which f64 can tell from 0
      INFO(op->name() << ", gates of " << value << ", " << dtype << " on " << device);
      const double without = worst_error(*op, with_resets(*op, 0), device, dtype);
      // In f64 both are a few roundings, of which neither is twice the other for a reason.
      const double roundings = dtype == Dtype::f64 ? 1e-14 : 0;
      CHECK(worst_error(*op, with_resets(*op, value), device, dtype) <=
            std::max(2 * without, roundings));
    }
}

}  // namespace

TEST_CASE("resets: no number is NaN, and a gate that forgets all has a gradient of exactly 0") {
  for (const Form form : {Form::recurrent, Form::chunkwise})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32}) check_gradients(form, kCpu, dtype);
  check_gradients(Form::naive, kCpu, Dtype::f64);
}

TEST_CASE("cuda resets: no number is NaN, and a gate that forgets all has a gradient of exactly 0",
          "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    check_gradients(Form::chunkwise, kCuda, dtype);
}

TEST_CASE("resets: tokens behind one have all the digits that they have without it") {
  check_digits(kCpu, Dtype::f64);
  check_digits(kCpu, Dtype::f32);
}

TEST_CASE("cuda resets: tokens behind one have all the digits that they have without it",
          "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  check_digits(kCuda, Dtype::f32);
}

TEST_CASE("resets: a gate of NaN is not taken for one") {
  for (const Operation* op : gated()) {
    INFO(op->name());
    NamedCase c = with_resets(*op, NAN);
    for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
      const Tensors in = rounded_to(dtype, c.inputs, op->inputs());
      const std::vector<double> o = to_doubles(op->forward(Form::chunkwise, in, {}).at("o"));
      CHECK(std::isnan(o.back()));
    }
  }
}
