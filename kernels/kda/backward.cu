// kda on a GPU, backward, in bf16; backward_f32.cu has the other.
#include "kernels/kda/backward.cuh"

namespace weft::kernels {

extern template void kda::backward_form<float>(const Kda::Inputs<Tensor>&, const Kda::Options&,
                                               const Kda::Saved&, const Kda::Outputs<Tensor>&,
                                               Kda::Inputs<Tensor>&);

void Kda::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved& saved,
                        const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  for_cuda_dtype(in.v.dtype(),
                 [&]<class Real>() { kda::backward_form<Real>(in, o, saved, dy, dx); });
  if (!in.v.is_meta()) check_launch("kda backward");
}

}  // namespace weft::kernels
