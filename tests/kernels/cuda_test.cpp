// Every operation's CUDA form against the definition, in f32 and bf16, on memory that is NaN when
// it is handed out. Without a GPU these say that they were skipped.
#include "tests/kernels/cuda_checks.h"

namespace weft::kernels {
namespace {

void check_bits(const Operation& op, const NamedCase& c, Dtype dtype) {
  allocator(kCuda).empty_cache();  // so that initcheck sees what was never written
  const Expected e = expected_of(op, c, dtype);
  const Tensors in = on_device(kCuda, e.inputs);
  const Tensors dy = on_device(kCuda, e.output_gradients);
  const auto once = [&] {
    Tensors all = op.forward(Form::chunkwise, in, c.settings);
    for (const auto& [name, t] : op.backward(Form::chunkwise, in, c.settings, dy)) all[name] = t;
    return all;
  };
  const Tensors first = once(), second = once();
  for (const auto& [name, t] : first) {
    INFO(op.name() << ", " << c.name << ", " << dtype << ", " << name);
    CHECK(to_doubles(t) == to_doubles(second.at(name)));
  }
}

TEST_CASE("cuda: every case of every operation agrees with the definition", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Operation* op : operations()) {
    if (!op->has_cuda_form()) continue;
    DYNAMIC_SECTION(op->name()) {
      for (const NamedCase& c : op->cases()) {
        DYNAMIC_SECTION(c.name) {
          tests::check_on_gpu(*op, c, Form::naive, concat(op->name(), ", ", c.name));
        }
      }
    }
  }
}

// Whose gradient is not wanted changes what a kernel computes, not the gradients of the others.
void check_without_each(const Operation& op, const NamedCase& c, Dtype dtype, double bound) {
  const Expected e = expected_of(op, c, dtype);
  const Tensors in = on_device(kCuda, e.inputs), dy = on_device(kCuda, e.output_gradients);
  const Tensors all = op.backward(Form::chunkwise, in, c.settings, dy);
  for (const Field& f : op.inputs()) {
    if (!in.count(f.name)) continue;
    INFO(c.name << ", " << dtype << ", without that of " << f.name);
    const Tensors some = op.backward(Form::chunkwise, in, c.settings, dy, {f.name});
    CHECK(some.count(gradient_name(f.name)) == 0);
    for (const auto& [name, t] : all) {
      if (name == gradient_name(f.name)) continue;
      INFO(name);
      CHECK(difference(some.at(name), t, floor_of(dtype)).error <= bound);
    }
  }
}

TEST_CASE("cuda: a gradient that is not wanted is left out, and the others stay", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Operation* op : operations()) {
    if (!op->has_cuda_form()) continue;
    DYNAMIC_SECTION(op->name()) {
      for (const NamedCase& c : op->cases()) {
        check_without_each(*op, c, Dtype::f32, 1e-6);
        check_without_each(*op, c, Dtype::bf16, 1e-3);
      }
    }
  }
}

TEST_CASE("cuda: two runs give the same bits", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Operation* op : operations()) {
    if (!op->has_cuda_form()) continue;
    DYNAMIC_SECTION(op->name()) {
      for (const NamedCase& c : op->cases())
        for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) check_bits(*op, c, dtype);
    }
  }
}

}  // namespace
}  // namespace weft::kernels
