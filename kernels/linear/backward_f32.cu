// The backward kernels of linear in f32, beside which the compiler can make those in bf16.
#include "kernels/linear/gradients.cuh"

namespace weft::kernels::linear {

template void launch_backward(const CudaProblem<float>&, const Gradients<float>&);

}  // namespace weft::kernels::linear
