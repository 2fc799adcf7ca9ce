// kda on a GPU, forward, in f32.
#include "kernels/kda/chunks.cuh"

namespace weft::kernels {

template void delta_rule::forward_form<kda::CudaProblem<float>, Kda>(const Kda::Inputs<Tensor>&,
                                                                     const Kda::Options&,
                                                                     Kda::Outputs<Tensor>&,
                                                                     Kda::Saved*);

}  // namespace weft::kernels
