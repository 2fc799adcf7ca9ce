// Forward through the tile layer in bf16.
#include "kernels/block_sparse/mask.cuh"
#include "kernels/softmax/forward.cuh"

namespace weft::kernels {

using namespace softmax;
using block_sparse::ListedMask;
using block_sparse::OneRowMask;

template void softmax::run_forward(const Call<bf16>&, const ListedMask&, const Outgoing<bf16>&);
template void softmax::run_forward(const Call<bf16>&, const OneRowMask&, const Outgoing<bf16>&);

}  // namespace weft::kernels
