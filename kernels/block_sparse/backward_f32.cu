// Backward through the tile layer in f32.
#include "kernels/block_sparse/mask.cuh"
#include "kernels/softmax/backward.cuh"

namespace weft::kernels {

using namespace softmax;
using block_sparse::ListedMask;

template void softmax::run_backward(const Call<float>&, const ListedMask&, const ListedMask&,
                                    const Incoming<float>&, const Heads<float>&,
                                    const Heads<float>&, const Heads<float>&);

}  // namespace weft::kernels
