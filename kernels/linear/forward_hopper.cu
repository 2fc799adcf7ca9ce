// Linear attention forward on Hopper: one scan (scan_hopper.cuh).
#include "kernels/linear/scan_hopper.cuh"

namespace weft::kernels {

void linear::hopper::scan_forwards(const Sizes& p, const Roles& x) {
  launch_scan<false, Gates::unmoved>(p, x);
}

// In problem.cuh.
bool linear::hopper_forward(const Inputs<Linear>& x, const Options<Linear>& o,
                            const Outputs<Linear>& y) {
  if (x.q.dtype() != Dtype::bf16 || x.q.size(3) > 128 || o.normalize || o.cu_seqlens ||
      !tile::on_hopper(x.q.device())) {
    return false;
  }
  for (const Tensor& t : {x.q, x.k, x.v, y.o})
    if (t.numel() == 0 || !hopper::has_aligned_rows(t)) return false;
  const hopper::Roles roles{x.q, x.k, x.v, y.o, Tensor()};
  hopper::Sizes p = hopper::sizes_of(CudaProblem<tile::bf16>(x, o, Tensor()), roles);
  p.initial_state = dptr<const float>(x.initial_state);
  p.final_state = dptr<float>(y.final_state);
  hopper::scan_forwards(p, roles);
  return true;
}

}  // namespace weft::kernels
