// A case on a GPU, in f32 and bf16, on memory that is NaN when it is handed out.
#pragma once

#include "kernels/contract/agreement.h"
#include "tests/catch.h"

namespace weft::tests {

// `judge` says what is expected, as in expected_of(); `label` names the case.
inline void check_on_gpu(const kernels::Operation& op, const kernels::NamedCase& c,
                         kernels::Form judge, const std::string& label) {
  using namespace kernels;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Expected e = expected_of(op, c, dtype, judge);
    const Tensors in = on_device(kCuda, e.inputs);
    allocator(kCuda).set_poison(true);
    const Tensors y = op.forward(Form::chunkwise, in, c.settings);
    const Tensors dx =
        op.backward(Form::chunkwise, in, c.settings, on_device(kCuda, e.output_gradients));
    allocator(kCuda).set_poison(false);
    for (const Agreement& a : agreement_by_form(e, y, dx)) {
      INFO(label << ", " << dtype << ": " << text(a));
      CHECK(a.passed());
    }
  }
}

}  // namespace weft::tests
