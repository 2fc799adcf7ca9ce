// The way to the kernels of sm_90a (kernels/softmax/hopper.cuh) for the band of attention. They
// take what fits_hopper() says; heads are padded to 64 or 128. `notes`: of notes_of(), at
// zero; forward owns the rows of q, backward the keys of k and then the rows of q.
#pragma once

#include "kernels/softmax/softmax.cuh"

namespace weft::kernels::attention {

using namespace softmax;

void forward_on_hopper(const Call<bf16>& x, const Band& band, const Heads<bf16>& o, float* lse,
                       int* notes);
// Absent gradients are not computed, but dk and dv come together. `rows`: memory, filled here.
void backward_on_hopper(const Call<bf16>& x, const Band& band, const Incoming<bf16>& in,
                        const PaddedRows& rows, const Heads<bf16>& dq, const Heads<bf16>& dk,
                        const Heads<bf16>& dv, int* notes);

}  // namespace weft::kernels::attention
