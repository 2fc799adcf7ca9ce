// The forward kernels of linear in f32, beside which the compiler can make those in bf16.
#include "kernels/linear/scan.cuh"

namespace weft::kernels::linear {

template void launch_forward(const CudaProblem<float>&, const Results<float>&);

}  // namespace weft::kernels::linear
