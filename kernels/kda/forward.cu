// kda on a GPU, forward, in bf16; forward_f32.cu has the other.
#include "kernels/kda/chunks.cuh"

namespace weft::kernels {

extern template void delta_rule::forward_form<kda::CudaProblem<float>, Kda>(
    const Kda::Inputs<Tensor>&, const Kda::Options&, Kda::Outputs<Tensor>&, Kda::Saved*);

void Kda::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                       Saved* saved) {
  delta_rule::check_widths(name, in.k.size(3), in.v.size(3));
  for_cuda_dtype(in.v.dtype(), [&]<class Real>() {
    delta_rule::forward_form<kda::CudaProblem<Real>, Kda>(in, o, y, saved);
  });
  if (!in.v.is_meta()) check_launch("kda forward");
}

}  // namespace weft::kernels
