// Every form of every operation on every one of its cases: against the definition, and against
// itself with other threads, other memory, other strides and no memory at all.
#include <cmath>
#include <cstring>
#include <functional>

#include "core/parallel.h"
#include "kernels/contract/agreement.h"
#include "tests/catch.h"

using namespace weft;
using namespace weft::kernels;

namespace {

struct Results {
  Tensors outputs, gradients;
};

Results run(const Operation& op, Form form, const Tensors& in, const Settings& settings,
            const Tensors& dy) {
  return {op.forward(form, in, settings), op.backward(form, in, settings, dy)};
}

void for_cases(const std::function<void(const Operation&, const NamedCase&)>& f) {
  REQUIRE_FALSE(operations().empty());
  for (const Operation* op : operations())
    for (const NamedCase& c : op->cases()) {
      INFO(op->name() << ", case \"" << c.name << "\"");
      f(*op, c);
    }
}

void check_agreement(Dtype dtype) {
  for_cases([&](const Operation& op, const NamedCase& c) {
    const Expected e = expected_of(op, c, dtype);
    for (const Form form : op.forms()) {
      const Results r = run(op, form, e.inputs, c.settings, e.output_gradients);
      for (const Agreement& a : agreement(e, r.outputs, r.gradients)) {
        INFO(name_of(form) << " " << name_of(dtype) << ": " << text(a));
        CHECK(a.passed());
      }
    }
  });
}

void check_same_bits(const Tensors& got, const Tensors& expected) {
  for (const auto& [name, t] : expected) {
    INFO(name);
    REQUIRE(got.count(name) == 1);
    const Tensor a = got.at(name).contiguous(), b = t.contiguous();
    REQUIRE(a.shape() == b.shape());
    REQUIRE(a.dtype() == b.dtype());
    CHECK(std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.numel() * size_of(a.dtype()))) == 0);
  }
}

void check_same_bits(const Results& got, const Results& expected) {
  check_same_bits(got.outputs, expected.outputs);
  check_same_bits(got.gradients, expected.gradients);
}

// Runs `f` with n threads.
template <class F>
auto with_threads(int n, const F& f) {
  const int before = thread_count();
  omp_set_num_threads(n);
  const auto result = f();
  omp_set_num_threads(before);
  return result;
}

// Memory is handed out full of NaN while it lives.
struct Poison {
  Poison() { allocator(kCpu).set_poison(true); }
  ~Poison() { allocator(kCpu).set_poison(false); }
};

// The same numbers in other places: dimensions stored in reverse order, each with a gap.
Tensor scattered(const Tensor& t) {
  if (!is_float(t.dtype()) || t.dims() == 0) return t;
  Shape strides = t.shape();
  int64_t step = 1;
  for (int d = 0; d < t.dims(); ++d) {
    strides[d] = 2 * step;
    step *= 2 * t.size(d);
  }
  const Tensor memory = full({step + 1}, NAN, t.dtype());
  const Tensor view = memory.as_strided(t.shape(), strides, 1);
  view.copy_from(t);
  return view;
}

Tensors scattered(const Tensors& in) {
  Tensors out;
  for (const auto& [name, t] : in) out[name] = scattered(t);
  return out;
}

// The same numbers in rows that lie apart, as in a part of a wider tensor.
Tensors rows_apart(const Tensors& in) {
  Tensors out = in;
  for (auto& [name, t] : out) {
    if (!is_float(t.dtype()) || t.dims() < 2) continue;
    const int last = t.dims() - 1;
    Shape wide = t.shape();
    wide[last] += 3;
    const Tensor view = full(wide, NAN, t.dtype()).slice(last, 1, 1 + t.size(last));
    view.copy_from(t);
    t = view;
  }
  return out;
}

Tensors on_meta(const Tensors& in) {
  Tensors out;
  for (const auto& [name, t] : in) out[name] = is_float(t.dtype()) ? t.to(kMeta) : t;
  return out;
}

// The most memory that f held beyond what was held before it.
template <class F>
int64_t peak_of(Device device, const F& f) {
  Allocator& memory = allocator(device);
  memory.reset_peak();
  const int64_t before = memory.stats().current;
  f();
  return memory.stats().peak - before;
}

}  // namespace

TEST_CASE("forms: every form agrees with the definition in f64, forward and backward") {
  check_agreement(Dtype::f64);
}

TEST_CASE("forms: every form agrees with the definition in f32, forward and backward") {
  check_agreement(Dtype::f32);
}

TEST_CASE("forms: every form in bf16 is nearly as good as bf16 can be") {
  check_agreement(Dtype::bf16);
}

TEST_CASE("forms: one thread and two, and clean and unwritten memory, give the same bits") {
  for_cases([&](const Operation& op, const NamedCase& c) {
    const Tensors in = rounded_to(Dtype::f32, c.inputs, op.inputs());
    for (const Form form : op.forms()) {
      if (form == Form::naive) continue;
      INFO(name_of(form));
      const Tensors dy = rounded_to(
          Dtype::f32, random_gradients(op.forward(form, in, c.settings), 2), op.outputs());
      const auto go = [&] { return run(op, form, in, c.settings, dy); };
      const Results first = with_threads(2, go);
      check_same_bits(with_threads(2, go), first);
      const Poison poison;
      check_same_bits(with_threads(1, go), first);
    }
  });
}

TEST_CASE("forms: inputs, output gradients and both of any strides give the same result") {
  for_cases([&](const Operation& op, const NamedCase& c) {
    const Expected e = expected_of(op, c, Dtype::f64);
    for (const Form form : op.forms()) {
      const Tensors in = scattered(e.inputs), dy = scattered(e.output_gradients);
      const Tensors rows = rows_apart(e.inputs), flow = rows_apart(e.output_gradients);
      for (const auto& [x, d] : {std::pair{in, dy},
                                 {e.inputs, dy},
                                 {in, e.output_gradients},
                                 {e.inputs, flow},
                                 {rows, e.output_gradients}}) {
        const Results r = run(op, form, x, c.settings, d);
        for (const Agreement& a : agreement(e, r.outputs, r.gradients)) {
          INFO(name_of(form) << ": " << text(a));
          CHECK(a.passed());
        }
      }
    }
  });
}

TEST_CASE("forms: the meta device allocates what the real call does, to the byte") {
  for_cases([&](const Operation& op, const NamedCase& c) {
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      INFO(name_of(dtype));
      const Tensors in = rounded_to(dtype, c.inputs, op.inputs());
      const Tensors dy = rounded_to(
          dtype, random_gradients(op.forward(Form::chunkwise, in, c.settings), 2), op.outputs());
      const Tensors meta_in = on_meta(in), meta_dy = on_meta(dy);
      Tensors y, meta_y;
      const auto forward = [&](const Tensors& x) {
        return op.forward(Form::chunkwise, x, c.settings);
      };
      const int64_t cpu = peak_of(kCpu, [&] { y = forward(in); });
      const int64_t meta = peak_of(kMeta, [&] { meta_y = forward(meta_in); });
      CHECK(meta == cpu);
      for (const auto& [name, t] : y) CHECK(meta_y.at(name).shape() == t.shape());
      CHECK(peak_of(kMeta, [&] { op.backward(Form::chunkwise, meta_in, c.settings, meta_dy); }) ==
            peak_of(kCpu, [&] { op.backward(Form::chunkwise, in, c.settings, dy); }));
    }
  });
}

TEST_CASE("forms: a gradient that is not wanted is left out, and the others stay what they are") {
  for_cases([&](const Operation& op, const NamedCase& c) {
    const Expected e = expected_of(op, c, Dtype::f64);
    const Tensors all = op.backward(Form::chunkwise, e.inputs, c.settings, e.output_gradients);
    for (const Field& f : op.inputs()) {
      if (!e.inputs.count(f.name)) continue;
      INFO("without that of " << f.name);
      Tensors others = all;
      others.erase(gradient_name(f.name));
      const Tensors some =
          op.backward(Form::chunkwise, e.inputs, c.settings, e.output_gradients, {f.name});
      REQUIRE(some.size() == others.size());
      for (const auto& [name, t] : others) {
        INFO(name);
        CHECK(difference(some.at(name), t, floor_of(Dtype::f64)).error <= 1e-12);
      }
    }
  });
}
