// The kernels of linear in f32, beside which the compiler can make those in bf16.
#include "kernels/linear/gradients.cuh"
#include "kernels/linear/scan.cuh"

namespace weft::kernels::linear {

template void launch_forward(const CudaProblem<float>&, const Results<float>&);
template void launch_backward(const CudaProblem<float>&, const Gradients<float>&);

}  // namespace weft::kernels::linear
