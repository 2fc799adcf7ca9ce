// Backward through the tile layer in bf16.
#include "kernels/softmax/backward.cuh"

namespace weft::kernels {

using namespace softmax;

template void softmax::run_backward(const Call<bf16>&, const Band&, const Band&,
                                    const Incoming<bf16>&, const Heads<bf16>&, const Heads<bf16>&,
                                    const Heads<bf16>&);

}  // namespace weft::kernels
