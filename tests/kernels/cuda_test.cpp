// Every operation's CUDA form against the definition, in f32 and bf16, on memory that is NaN when it is
// handed out. Without a GPU these say that they were skipped.
#include "kernels/agreement.h"
#include "tests/catch.h"

namespace weft::kernels {
namespace {

TEST_CASE("cuda: every case of every operation agrees with the definition", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  allocator(kCuda).set_poison(true);
  for (const Operation* op : operations())
    for (const NamedCase& c : op->cases())
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        const Expected e = expected_of(*op, c, dtype);
        const Tensors in = on_device(kCuda, e.inputs);
        const Tensors y = op->forward(Form::chunkwise, in, c.settings);
        const Tensors dx =
            op->backward(Form::chunkwise, in, c.settings, on_device(kCuda, e.output_gradients));
        for (const Agreement& a : agreement_by_form(e, y, dx)) {
          INFO(op->name() << ", " << c.name << ", " << dtype << ": " << text(a));
          CHECK(a.passed());
        }
      }
  allocator(kCuda).set_poison(false);
}

TEST_CASE("cuda: two runs give the same bits", "[cuda]") {
  if (cuda_device_count() == 0) SKIP(why_no_cuda());
  for (const Operation* op : operations())
    for (const NamedCase& c : op->cases()) {
      const Expected e = expected_of(*op, c, Dtype::bf16);
      const Tensors in = on_device(kCuda, e.inputs);
      const Tensors dy = on_device(kCuda, e.output_gradients);
      const auto once = [&] {
        Tensors all = op->forward(Form::chunkwise, in, c.settings);
        for (const auto& [name, t] : op->backward(Form::chunkwise, in, c.settings, dy))
          all[name] = t;
        return all;
      };
      const Tensors first = once(), second = once();
      for (const auto& [name, t] : first) {
        INFO(op->name() << ", " << c.name << ", " << name);
        CHECK(to_doubles(t) == to_doubles(second.at(name)));
      }
    }
}

}  // namespace
}  // namespace weft::kernels
