// The kernels of gated_linear in f32, beside which the compiler can make those in bf16.
#include "kernels/gated_linear/gradients.cuh"
#include "kernels/gated_linear/scan.cuh"

namespace weft::kernels::gated_linear {

template void launch_forward(const CudaProblem<float>&, const Prepared<float>&,
                             const Results<float>&);
template void launch_backward(const CudaProblem<float>&, const Prepared<float>&,
                              const Gradients<float>&);

}  // namespace weft::kernels::gated_linear
