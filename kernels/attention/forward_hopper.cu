// Forward on sm_90a: the loop of kernels/softmax/hopper.cuh with the band of attention.
#include "kernels/attention/hopper.cuh"
#include "kernels/softmax/hopper.cuh"

namespace weft::kernels::attention {

using namespace softmax;

void forward_on_hopper(const Call<bf16>& x, const Band& band, const Heads<bf16>& o, float* lse,
                       int* notes) {
  if (std::max(x.q.width, x.v.width) <= 64)
    run_hopper_forward<64, 128>(x, band, o, lse, notes);
  else
    run_hopper_forward<128, 128>(x, band, o, lse, notes);
}

}  // namespace weft::kernels::attention
