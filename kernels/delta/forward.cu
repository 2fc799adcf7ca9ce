// The delta rule on a GPU, forward, in bf16; forward_f32.cu has the other.
#include "kernels/delta/chunks.cuh"

namespace weft::kernels {

extern template void delta_rule::forward_form<delta::Problem<float>, Delta>(
    const Delta::Inputs<Tensor>&, const Delta::Options&, Delta::Outputs<Tensor>&, Delta::Saved*);

void Delta::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                         Saved* saved) {
  delta_rule::check_widths(name, in.k.size(3), in.v.size(3));
  for_cuda_dtype(in.v.dtype(), [&]<class Real>() {
    delta_rule::forward_form<delta::Problem<Real>, Delta>(in, o, y, saved);
  });
  if (!in.v.is_meta()) check_launch("delta forward");
}

}  // namespace weft::kernels
