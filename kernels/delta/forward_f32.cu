// The delta rule on a GPU, forward, in f32.
#include "kernels/delta/forward.cuh"

namespace weft::kernels {

template void delta::forward_form<float>(const Delta::Inputs<Tensor>&, const Delta::Options&,
                                         Delta::Outputs<Tensor>&, Delta::Saved*);

}  // namespace weft::kernels
