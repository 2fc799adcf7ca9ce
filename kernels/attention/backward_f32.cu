// Backward through the tile layer in f32.
#include "kernels/softmax/backward.cuh"

namespace weft::kernels {

using namespace softmax;

template void softmax::run_backward(const Call<float>&, const Band&, const Band&,
                                    const Incoming<float>&, const Heads<float>&,
                                    const Heads<float>&, const Heads<float>&);

}  // namespace weft::kernels
