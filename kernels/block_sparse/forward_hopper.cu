// Forward on sm_90a: the loop of kernels/softmax/hopper.cuh along lists of tiles.
#include "kernels/block_sparse/hopper.cuh"
#include "kernels/softmax/hopper.cuh"

namespace weft::kernels::block_sparse {

using namespace softmax;

void forward_on_hopper(const Call<bf16>& x, const ListedMask& rows, const Heads<bf16>& o,
                       float* lse, int* notes) {
  if (hopper_head_size(x) == 64)
    run_hopper_forward<64, kSparseKeys>(x, rows, o, lse, notes);
  else
    run_hopper_forward<128, kSparseKeys>(x, rows, o, lse, notes);
}

}  // namespace weft::kernels::block_sparse
