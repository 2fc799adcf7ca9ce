// The delta rule on a GPU, forward, in f32.
#include "kernels/delta/chunks.cuh"

namespace weft::kernels {

template void delta_rule::forward_form<delta::Problem<float>, Delta>(const Delta::Inputs<Tensor>&,
                                                                     const Delta::Options&,
                                                                     Delta::Outputs<Tensor>&,
                                                                     Delta::Saved*);

}  // namespace weft::kernels
