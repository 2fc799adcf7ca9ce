// Backward through the tile layer in bf16.
#include "kernels/block_sparse/sight.cuh"
#include "kernels/softmax/backward.cuh"

namespace weft::kernels::softmax {

template void run_backward(const Call<bf16>&, const BlockSight&, const BlockSight&,
                           const Incoming<bf16>&, const Heads<bf16>&, const Heads<bf16>&,
                           const Heads<bf16>&);

}  // namespace weft::kernels::softmax
