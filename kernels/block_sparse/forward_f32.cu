// Forward through the tile layer in f32.
#include "kernels/block_sparse/mask.cuh"
#include "kernels/softmax/forward.cuh"

namespace weft::kernels {

using namespace softmax;
using block_sparse::ListedMask;
using block_sparse::OneRowMask;

template void softmax::run_forward(const Call<float>&, const ListedMask&, const Outgoing<float>&);
template void softmax::run_forward(const Call<float>&, const OneRowMask&, const Outgoing<float>&);

}  // namespace weft::kernels
