// Backward on sm_90a: the loops of kernels/softmax/hopper_backward.cuh along lists of tiles.
#include "kernels/block_sparse/hopper.cuh"
#include "kernels/softmax/hopper_backward.cuh"

namespace weft::kernels::block_sparse {

using namespace softmax;

void pad_on_hopper(const Call<bf16>& x, const Incoming<bf16>& in, const PaddedRows& rows) {
  run_pad_rows(x, in, rows);
}

void keys_on_hopper(const Call<bf16>& x, const ListedMask& keys, const Incoming<bf16>& in,
                    const PaddedRows& padded, const Heads<bf16>& dk, const Heads<bf16>& dv,
                    int* notes) {
  if (hopper_head_size(x) == 64)
    run_hopper_key_gradients<64>(x, keys, in, padded, dk, dv, notes);
  else
    run_hopper_key_gradients<128>(x, keys, in, padded, dk, dv, notes);
}

void queries_on_hopper(const Call<bf16>& x, const ListedMask& rows, const Incoming<bf16>& in,
                       const PaddedRows& padded, const Heads<bf16>& dq, int* notes) {
  if (hopper_head_size(x) == 64)
    run_hopper_query_gradients<64>(x, rows, in, padded, dq, notes);
  else
    run_hopper_query_gradients<128>(x, rows, in, padded, dq, notes);
}

}  // namespace weft::kernels::block_sparse
