// What every operation with a state promises, whatever it computes: that a sequence may be cut and
// the state carried, that packed documents do not know of each other, that the past does not know
// of the future. M has an input `initial_state`, the outputs `o` and `final_state`, and the option
// `cu_seqlens`; its inputs of shape "[B, T, ...]" are the tokens', the rest belongs to all of them.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/gradcheck.h"
#include "autograd/kernel_op.h"
#include "core/allocator.h"
#include "kernels/contract/reference.h"
#include "tests/catch.h"
#include "tests/gap.h"

namespace weft::kernels::stateful {

template <class M>
struct Result {
  Outputs<M> y;
  Inputs<M> dx;
};

// Forward and backward in the form that trains. An absent gradient of `o` is zero.
template <class M>
Result<M> run(const Inputs<M>& x, const Options<M>& o, Outputs<M> dy) {
  typename M::Saved saved;
  Result<M> r;
  r.y = forward<M>(x, o, &saved);
  if (!dy.o) dy.o = zeros_like(r.y.o);
  Inputs<M, bool> wanted;
  for_fields([](bool& want) { want = true; }, wanted);
  r.dx = backward<M>(x, o, saved, dy, wanted);
  return r;
}

// Random gradients of the outputs.
template <class M>
Outputs<M> gradients_for(const Inputs<M>& x, const Options<M>& o) {
  Outputs<M> dy = M::outputs(x, o);
  dy.o =
      normal(dy.o.shape(), 5, "dout").to(x.initial_state ? x.initial_state.dtype() : dy.o.dtype());
  dy.final_state = normal(dy.final_state.shape(), 5, "dfinal_state").to(dy.o.dtype());
  return dy;
}

// max |a - b| / max |b|
inline double difference(const Tensor& a, const Tensor& b) {
  return tests::gap(to_doubles(a), to_doubles(b)).relative();
}
inline bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && to_doubles(a) == to_doubles(b);
}

inline bool of_tokens(const Field& f) { return std::string_view(f.shape).substr(0, 5) == "[B, T"; }

// Calls f(field of Inputs, ...) with its name and whether it is the tokens'.
template <class M, class F, class... Rest>
void for_inputs(const F& f, Rest&... x) {
  size_t i = 0;
  for_fields(
      [&](auto&... t) {
        const Field& info = M::kInputs[i++];
        f(std::string(info.name), of_tokens(info), t...);
      },
      x...);
}

template <class M>
Inputs<M> copy(Inputs<M> x) {
  for_fields([](Tensor& t) { t = t ? t.clone() : t; }, x);
  return x;
}

// Tokens [from, to) and all that belongs to none of them, but for the state.
template <class M>
Inputs<M> tokens(Inputs<M> x, int64_t from, int64_t to) {
  for_inputs<M>(
      [&](const std::string&, bool token, Tensor& t) {
        if (t && token) t = t.slice(1, from, to);
      },
      x);
  x.initial_state = {};
  return x;
}

template <class M>
void check_close(const Result<M>& a, const Result<M>& b, double bound) {
  CHECK(difference(a.y.o, b.y.o) < bound);
  CHECK(difference(a.y.final_state, b.y.final_state) < bound);
  for_inputs<M>(
      [&](const std::string& name, bool, const Tensor& t, const Tensor& u) {
        INFO("gradient of " << name);
        CHECK(t.defined() == u.defined());
        if (t && u) CHECK(difference(t, u) < bound);
      },
      const_cast<Inputs<M>&>(a.dx), const_cast<Inputs<M>&>(b.dx));
}

template <class M>
void check_same(const Result<M>& a, const Result<M>& b) {
  CHECK(same(a.y.o, b.y.o));
  CHECK(same(a.y.final_state, b.y.final_state));
  for_inputs<M>(
      [&](const std::string& name, bool, const Tensor& t, const Tensor& u) {
        INFO("gradient of " << name);
        if (t && u) CHECK(same(t, u));
      },
      const_cast<Inputs<M>&>(a.dx), const_cast<Inputs<M>&>(b.dx));
}

// The parts [begin, end) of one row, one after the other: each starts from `initial_of(i)` and, if
// `carry`, hands its state on to the next. Gradients of what belongs to all add up.
template <class M>
Result<M> run_parts(const Inputs<M>& x, const Outputs<M>& dy, const std::vector<int64_t>& cuts,
                    bool carry) {
  const size_t parts = cuts.size() - 1;
  Result<M> all;
  all.y = M::outputs(x, {});
  all.y.final_state = empty(dy.final_state.shape(), dy.final_state.dtype());
  all.dx = copy<M>(x);
  for_fields(
      [](Tensor& t) {
        if (t) t.zero();
      },
      all.dx);
  const auto state_of = [&](const Tensor& t, size_t i) {  // of the document, one row each
    const auto n = static_cast<int64_t>(carry ? 0 : i);
    return t ? t.slice(0, n, n + 1) : t;
  };
  std::vector<Inputs<M>> in(parts);
  Tensor state;
  for (size_t i = 0; i < parts; ++i) {
    in[i] = tokens<M>(x, cuts[i], cuts[i + 1]);
    in[i].initial_state = carry && i > 0 ? state : state_of(x.initial_state, i);
    const auto y = forward<M>(in[i], {});
    all.y.o.slice(1, cuts[i], cuts[i + 1]).copy_from(y.o);
    state = y.final_state;
    state_of(all.y.final_state, i).copy_from(state);
  }
  Tensor dstate = dy.final_state;
  for (size_t i = parts; i-- > 0;) {
    Outputs<M> part;
    part.o = dy.o.slice(1, cuts[i], cuts[i + 1]);
    part.final_state = carry ? dstate : state_of(dy.final_state, i);
    const Result<M> r = run<M>(in[i], {}, part);
    dstate = r.dx.initial_state;
    for_inputs<M>(
        [&](const std::string& name, bool token, Tensor& to, const Tensor& from) {
          if (!to) return;
          if (token)
            to.slice(1, cuts[i], cuts[i + 1]).copy_from(from);
          else if (name == "initial_state" && (!carry || i == 0))
            state_of(to, i).copy_from(from);
          else if (name != "initial_state")
            to.add_from(from);
        },
        all.dx, const_cast<Inputs<M>&>(r.dx));
  }
  return all;
}

// One row with an initial state, cut anywhere.
template <class M>
void check_split(const Case<M>& c, const std::vector<int64_t>& cuts, double bound) {
  const Outputs<M> dy = gradients_for<M>(c.x, c.o);
  check_close<M>(run_parts<M>(c.x, dy, cuts, true), run<M>(c.x, c.o, dy), bound);
}

// Packed documents against each by itself.
template <class M>
void check_packed(const Case<M>& c, double bound) {
  const Outputs<M> dy = gradients_for<M>(c.x, c.o);
  check_close<M>(run_parts<M>(c.x, dy, to_ints(c.o.cu_seqlens), false), run<M>(c.x, c.o, dy),
                 bound);
}

// Other numbers for the tokens [from, to) of an input.
template <class M>
Inputs<M> changed(const Inputs<M>& x, int64_t from, int64_t to) {
  Inputs<M> y = copy<M>(x);
  for_inputs<M>(
      [&](const std::string&, bool token, Tensor& t) {
        if (!t || !token) return;
        const Tensor part = t.slice(1, from, to);
        part.copy_from(part.clone());
        part.add_from(part.clone());  // doubled, and so still in the legal range of gates
      },
      y);
  return y;
}

// Nothing before token p changes with what is at p and after, to the bit: not the outputs, and not
// the gradients of a loss that ends before p.
template <class M>
void check_prefix(const Case<M>& c, int64_t p) {
  Outputs<M> dy = gradients_for<M>(c.x, c.o);
  dy.o.slice(1, p, dy.o.size(1)).zero();
  dy.final_state.zero();
  const Result<M> a = run<M>(c.x, c.o, dy);
  const Result<M> b = run<M>(changed<M>(c.x, p, dy.o.size(1)), c.o, dy);
  CHECK(same(a.y.o.slice(1, 0, p), b.y.o.slice(1, 0, p)));
  for_inputs<M>(
      [&](const std::string& name, bool token, const Tensor& t, const Tensor& u) {
        INFO("gradient of " << name);
        if (!t) return;
        if (token)
          CHECK(same(t.slice(1, 0, p), u.slice(1, 0, p)));
        else
          CHECK(same(t, u));
      },
      const_cast<Inputs<M>&>(a.dx), const_cast<Inputs<M>&>(b.dx));
}

// Changing document d leaves all others as they were, to the bit.
template <class M>
void check_leak(const Case<M>& c, int64_t d) {
  const std::vector<int64_t> cu = to_ints(c.o.cu_seqlens);
  const int64_t from = cu[static_cast<size_t>(d)], to = cu[static_cast<size_t>(d) + 1];
  const int64_t T = cu.back(), N = static_cast<int64_t>(cu.size()) - 1;
  const Outputs<M> dy = gradients_for<M>(c.x, c.o);
  const Result<M> a = run<M>(c.x, c.o, dy);
  const Result<M> b = run<M>(changed<M>(c.x, from, to), c.o, dy);
  const auto others = [](const Tensor& t, const Tensor& u, int dim, int64_t begin, int64_t end,
                         int64_t size) {
    return same(t.slice(dim, 0, begin), u.slice(dim, 0, begin)) &&
           same(t.slice(dim, end, size), u.slice(dim, end, size));
  };
  CHECK(others(a.y.o, b.y.o, 1, from, to, T));
  CHECK(!same(a.y.o, b.y.o));
  CHECK(others(a.y.final_state, b.y.final_state, 0, d, d + 1, N));
  for_inputs<M>(
      [&](const std::string& name, bool token, const Tensor& t, const Tensor& u) {
        INFO("gradient of " << name);
        if (t && token) CHECK(others(t, u, 1, from, to, T));
        if (t && name == "initial_state") CHECK(others(t, u, 0, d, d + 1, N));
      },
      const_cast<Inputs<M>&>(a.dx), const_cast<Inputs<M>&>(b.dx));
}

// A view of the same numbers with a gap after each of them.
inline Tensor with_gaps(const Tensor& t) {
  if (!t) return t;
  const Tensor memory = full({2 * t.numel()}, NAN, t.dtype());
  Shape strides = t.contiguous().strides();
  for (int i = 0; i < strides.dims(); ++i) strides[i] *= 2;
  const Tensor view = memory.as_strided(t.shape(), strides, 0);
  view.copy_from(t);
  return view;
}

template <class M>
void check_strided(const Case<M>& c) {
  Outputs<M> dy = gradients_for<M>(c.x, c.o);
  const Result<M> plain = run<M>(c.x, c.o, dy);
  Inputs<M> x = c.x;
  for_fields([](Tensor& t) { t = with_gaps(t); }, x);
  for_fields([](Tensor& t) { t = with_gaps(t); }, dy);
  check_same<M>(run<M>(x, c.o, dy), plain);
}

template <class M>
Case<M> in_f32(Case<M> c) {
  for_fields([](Tensor& t) { t = t ? t.to(Dtype::f32) : t; }, c.x);
  return c;
}

// The same bits on one thread and on two, and in a second run on memory full of NaN.
template <class M>
void check_repeatable(const Case<M>& c) {
  const Outputs<M> dy = gradients_for<M>(c.x, c.o);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const Result<M> one = run<M>(c.x, c.o, dy);
  omp_set_num_threads(2);
  allocator(kCpu).set_poison(true);
  const Result<M> two = run<M>(c.x, c.o, dy);
  allocator(kCpu).set_poison(false);
  omp_set_num_threads(threads);
  check_same<M>(two, one);
}

// The meta device follows every allocation: the peaks are equal to the byte.
template <class M>
void check_meta(const Case<M>& c) {
  const Outputs<M> dy = gradients_for<M>(c.x, c.o);
  const auto peak = [&](Device device) {
    const auto moved = [&](auto fields) {
      for_fields([&](Tensor& t) { t = t ? t.to(device) : t; }, fields);
      return fields;
    };
    const Inputs<M> x = moved(c.x);
    const Outputs<M> d = moved(dy);
    const int64_t before = allocator(device).stats().current;
    allocator(device).reset_peak();
    run<M>(x, c.o, d);
    return allocator(device).stats().peak - before;
  };
  CHECK(peak(kCpu) == peak(kMeta));
}

// naive, recurrent and chunkwise agree on outputs and gradients; fp32 is as near as fp32 can be.
template <class M>
void check_forms() {
  const Operation& op = operation(std::string(M::name));
  for (const NamedCase& c : op.cases()) {
    INFO("case \"" << c.name << "\"");
    const Tensors y = op.forward(Form::naive, c.inputs, c.settings);
    Tensors dy, narrow = c.inputs, narrow_dy;
    for (const auto& [name, t] : y) dy[gradient_name(name)] = normal(t.shape(), 3, name);
    for (auto& [name, t] : narrow)
      if (is_float(t.dtype())) t = t.to(Dtype::f32);
    for (auto& [name, t] : dy) narrow_dy[name] = t.to(Dtype::f32);
    const Tensors dx = op.backward(Form::naive, c.inputs, c.settings, dy);
    const auto check = [&](const char* what, const Tensors& a, const Tensors& b, double bound) {
      CHECK(a.size() == b.size());
      for (const auto& [name, t] : b) {
        INFO(what << ", " << name);
        CHECK(difference(a.at(name).to(Dtype::f64), t) < bound);
      }
    };
    for (const Form form : {Form::recurrent, Form::chunkwise}) {
      const std::string name = name_of(form);
      check(name.c_str(), op.forward(form, c.inputs, c.settings), y, 1e-11);
      check(name.c_str(), op.backward(form, c.inputs, c.settings, dy), dx, 1e-10);
    }
    check("f32", op.forward(Form::chunkwise, narrow, c.settings), y, 2e-5);
    check("f32", op.backward(Form::chunkwise, narrow, c.settings, narrow_dy), dx, 2e-5);
  }
}

// backward against finite differences, every element of every input.
template <class M>
void check_differences(const Case<M>& c) {
  INFO("case \"" << c.name << "\"");
  std::vector<autograd::NamedInput> inputs;
  Inputs<M> given = copy<M>(c.x);
  for_inputs<M>(
      [&](const std::string& name, bool, const Tensor& t) {
        if (t) inputs.push_back({name, t});
      },
      given);
  const auto report = autograd::gradcheck(
      [&](const std::vector<autograd::Var>& vars) -> std::vector<autograd::Var> {
        Inputs<M, autograd::Var> x;
        size_t next = 0;
        for_fields(
            [&](autograd::Var& v, const Tensor& t) {
              if (t) v = vars[next++];
            },
            x, given);
        auto y = autograd::apply<M>(x, c.o);
        return {y.o, y.final_state};
      },
      inputs);
  INFO(report.text());
  CHECK(report.passed());
}

}  // namespace weft::kernels::stateful
