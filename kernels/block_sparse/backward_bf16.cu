// Backward through the tile layer in bf16.
#include "kernels/block_sparse/mask.cuh"
#include "kernels/softmax/backward.cuh"

namespace weft::kernels {

using namespace softmax;
using block_sparse::ListedMask;

template void softmax::run_backward(const Call<bf16>&, const ListedMask&, const ListedMask&,
                                    const Incoming<bf16>&, const Heads<bf16>&, const Heads<bf16>&,
                                    const Heads<bf16>&);

}  // namespace weft::kernels
