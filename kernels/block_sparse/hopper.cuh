// The way to the kernels of sm_90a (kernels/softmax/hopper.cuh) for lists of tiles. They take what
// fits_hopper() says; D is 64 or 128. `notes`: note_count() of what a call owns, at zero.
#pragma once

#include "kernels/block_sparse/mask.cuh"

namespace weft::kernels::block_sparse {

using namespace softmax;

inline int hopper_head_size(const Call<bf16>& x) {
  return std::max(x.q.width, x.v.width) <= 64 ? 64 : 128;
}

// `rows`: lists for tiles of kOwn rows, of tiles of kSparseKeys keys.
void forward_on_hopper(const Call<bf16>& x, const ListedMask& rows, const Heads<bf16>& o,
                       float* lse, int* notes);
// Backward: first the rows' numbers, then either.
void pad_on_hopper(const Call<bf16>& x, const Incoming<bf16>& in, const PaddedRows& rows);
// `keys`: for tiles of kOwn keys, of tiles of backward_tile(D) rows; `rows`: the reverse.
void keys_on_hopper(const Call<bf16>& x, const ListedMask& keys, const Incoming<bf16>& in,
                    const PaddedRows& padded, const Heads<bf16>& dk, const Heads<bf16>& dv,
                    int* notes);
void queries_on_hopper(const Call<bf16>& x, const ListedMask& rows, const Incoming<bf16>& in,
                       const PaddedRows& padded, const Heads<bf16>& dq, int* notes);

}  // namespace weft::kernels::block_sparse
