// The delta rule on a GPU, backward, in bf16; backward_f32.cu has the other.
#include "kernels/delta/backward.cuh"

namespace weft::kernels {

extern template void delta::backward_form<float>(const Delta::Inputs<Tensor>&,
                                                 const Delta::Options&, const Delta::Saved&,
                                                 const Delta::Outputs<Tensor>&,
                                                 Delta::Inputs<Tensor>&);

void Delta::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved& saved,
                          const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  for_cuda_dtype(in.v.dtype(),
                 [&]<class Real>() { delta::backward_form<Real>(in, o, saved, dy, dx); });
  if (!in.v.is_meta()) check_launch("delta backward");
}

}  // namespace weft::kernels
