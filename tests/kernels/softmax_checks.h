// What the tests of attention and of block_sparse share: both have the outputs o and lse, and
// inputs q, k and v.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "autograd/gradcheck.h"
#include "core/allocator.h"
#include "core/parallel.h"
#include "kernels/contract/reference.h"
#include "tests/catch.h"
#include "tests/gap.h"

namespace weft::kernels::softmax_checks {

template <class M>
struct Result {
  Outputs<M> y;
  Inputs<M> dx;
};

// Random output gradients, those of lse included.
template <class M>
Outputs<M> gradients_for(const Inputs<M>& x) {
  const int64_t B = x.q.size(0), T = x.q.size(1), H = x.q.size(2);
  return {normal({B, T, H, x.v.size(3)}, 5, "dout").to(x.q.dtype()),
          normal({B, H, T}, 5, "dlse").to(x.q.dtype())};
}

// Forward and backward in the form that trains.
template <class M>
Result<M> run(const Inputs<M>& x, const Options<M>& o, const Outputs<M>& dy) {
  typename M::Saved saved;
  Result<M> r;
  r.y = forward<M>(x, o, &saved);
  Inputs<M, bool> wanted;
  for_fields([](bool& want) { want = true; }, wanted);
  r.dx = backward<M>(x, o, saved, dy, wanted);
  return r;
}
template <class M>
Result<M> run(const Inputs<M>& x, const Options<M>& o) {
  return run<M>(x, o, gradients_for<M>(x));
}

template <class M>
Inputs<M> as(Dtype dtype, Inputs<M> x) {
  for_fields(
      [&](Tensor& t) {
        if (t) t = t.to(dtype);
      },
      x);
  return x;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  const Tensor x = a.contiguous(), y = b.contiguous();
  return std::memcmp(x.raw(), y.raw(), static_cast<size_t>(x.numel() * size_of(x.dtype()))) == 0;
}

template <class M>
void check_same_bits(const Result<M>& a, const Result<M>& b) {
  auto &ya = const_cast<Outputs<M>&>(a.y), &yb = const_cast<Outputs<M>&>(b.y);
  auto &da = const_cast<Inputs<M>&>(a.dx), &db = const_cast<Inputs<M>&>(b.dx);
  size_t i = 0;
  for_fields(
      [&](const Tensor& s, const Tensor& t) {
        INFO(M::kOutputs[i++].name);
        CHECK(same_bits(s, t));
      },
      ya, yb);
  i = 0;
  for_fields(
      [&](const Tensor& s, const Tensor& t) {
        INFO("d" << M::kInputs[i++].name);
        CHECK((!s || same_bits(s, t)));
      },
      da, db);
}

// max |a - b| / max |b|; an lse of -infinity in both, of a query that sees no key, does not differ.
inline double difference(const Tensor& a, const Tensor& b) {
  return tests::gap(a, b, /*log_of_sum=*/true).relative();
}

inline bool all_zero(const Tensor& t) {
  for (const double v : to_doubles(t))
    if (v != 0) return false;
  return true;
}
inline bool all_finite(const Tensor& t) {
  for (const double v : to_doubles(t))
    if (!std::isfinite(v)) return false;
  return true;
}

template <class F>
auto with_threads(int n, const F& f) {
  const int before = thread_count();
  omp_set_num_threads(n);
  const auto result = f();
  omp_set_num_threads(before);
  return result;
}

// The most memory that f held beyond what was held before it.
template <class F>
int64_t peak_of(const F& f) {
  Allocator& memory = allocator(kCpu);
  memory.reset_peak();
  const int64_t before = memory.stats().current;
  f();
  return memory.stats().peak - before;
}

// Central differences against the backward pass of each form but the naive one (which the machine
// differentiates), along random directions where an input is large.
inline void check_finite_differences(const std::string& name, const NamedCase& c) {
  const Operation& op = operation(name);
  for (const Form form : {Form::recurrent, Form::chunkwise}) {
    Tensors x = c.inputs, dy;
    for (auto& [field, t] : x) t = t.clone();
    for (const auto& [field, y] : op.forward(form, x, c.settings)) {
      const Tensor d = normal(y.shape(), 9, "d" + field), value = y.contiguous();
      for (int64_t i = 0; i < d.numel(); ++i)  // a dead row's lse has no gradient
        if (!std::isfinite(value.data<double>()[i])) d.data<double>()[i] = 0;
      dy[gradient_name(field)] = d;
    }
    const auto loss = [&] {
      double sum = 0;
      for (const auto& [field, y] : op.forward(form, x, c.settings)) {
        const std::vector<double> a = to_doubles(y), b = to_doubles(dy.at(gradient_name(field)));
        for (size_t i = 0; i < a.size(); ++i)
          if (std::isfinite(a[i])) sum += a[i] * b[i];
      }
      return sum;
    };
    const Tensors dx = op.backward(form, x, c.settings, dy);
    for (const Field& field : op.inputs()) {
      if (x.count(field.name) == 0) continue;
      const Tensor& t = x.at(field.name);
      autograd::GradcheckOptions options;
      if (t.numel() > 60) options.directions = 6;
      const auto report =
          autograd::check_input(field.name, loss, t, dx.at(gradient_name(field.name)), options);
      INFO(name_of(form) << " d" << field.name << ": relative error " << report.max_rel << ", got "
                         << report.analytic << ", differences give " << report.numeric);
      // Nothing is left but rounding where all gradients vanish.
      CHECK((report.passed || report.max_abs < 1e-11));
    }
  }
}

}  // namespace weft::kernels::softmax_checks
