// The delta rule on a GPU, backward, in f32.
#include "kernels/delta/backward.cuh"

namespace weft::kernels {

template void delta::backward_form<float>(const Delta::Inputs<Tensor>&, const Delta::Options&,
                                          const Delta::Saved&, const Delta::Outputs<Tensor>&,
                                          Delta::Inputs<Tensor>&);

}  // namespace weft::kernels
