// Backward on sm_90a: the loops of kernels/softmax/hopper_backward.cuh with the band of attention.
#include "kernels/attention/hopper.cuh"
#include "kernels/softmax/hopper_backward.cuh"

namespace weft::kernels::attention {

using namespace softmax;
namespace {

template <int D>
void run(const Call<bf16>& x, const Band& band, const Incoming<bf16>& in, const PaddedRows& rows,
         const Heads<bf16>& dq, const Heads<bf16>& dk, const Heads<bf16>& dv, int* notes) {
  if (dk.data) run_hopper_key_gradients<D>(x, band, in, rows, dk, dv, notes);
  notes += note_count(x.B, x.S, x.H / x.group);
  if (dq.data) run_hopper_query_gradients<D>(x, band, in, rows, dq, notes);
}

}  // namespace

void backward_on_hopper(const Call<bf16>& x, const Band& band, const Incoming<bf16>& in,
                        const PaddedRows& rows, const Heads<bf16>& dq, const Heads<bf16>& dk,
                        const Heads<bf16>& dv, int* notes) {
  run_pad_rows(x, in, rows);
  if (std::max(x.q.width, x.v.width) <= 64)
    run<64>(x, band, in, rows, dq, dk, dv, notes);
  else
    run<128>(x, band, in, rows, dq, dk, dv, notes);
}

}  // namespace weft::kernels::attention
