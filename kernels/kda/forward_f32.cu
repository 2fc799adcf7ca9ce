// kda on a GPU, forward, in f32.
#include "kernels/kda/forward.cuh"

namespace weft::kernels {

template void kda::forward_form<float>(const Kda::Inputs<Tensor>&, const Kda::Options&,
                                       Kda::Outputs<Tensor>&, Kda::Saved*);

}  // namespace weft::kernels
