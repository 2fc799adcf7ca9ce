// kda on a GPU, backward, in f32.
#include "kernels/kda/backward.cuh"

namespace weft::kernels {

template void kda::backward_form<float>(const Kda::Inputs<Tensor>&, const Kda::Options&,
                                        const Kda::Saved&, const Kda::Outputs<Tensor>&,
                                        Kda::Inputs<Tensor>&);

}  // namespace weft::kernels
