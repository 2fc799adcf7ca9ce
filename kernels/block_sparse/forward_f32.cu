// Forward through the tile layer in f32.
#include "kernels/block_sparse/sight.cuh"
#include "kernels/softmax/forward.cuh"

namespace weft::kernels::softmax {

template void run_forward(const Call<float>&, const BlockSight&, const Outgoing<float>&);
template void run_forward(const Call<float>&, const OneRowSight&, const Outgoing<float>&);

}  // namespace weft::kernels::softmax
