// Forward through the tile layer in bf16.
#include "kernels/block_sparse/sight.cuh"
#include "kernels/softmax/forward.cuh"

namespace weft::kernels::softmax {

template void run_forward(const Call<bf16>&, const BlockSight&, const Outgoing<bf16>&);
template void run_forward(const Call<bf16>&, const OneRowSight&, const Outgoing<bf16>&);

}  // namespace weft::kernels::softmax
