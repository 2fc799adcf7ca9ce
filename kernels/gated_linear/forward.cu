// Gated linear attention forward on CUDA; the kernels are in scan.cuh, their f32 forms in f32.cu.
#include "kernels/gated_linear/scan.cuh"

namespace weft::kernels {

void GatedLinear::cuda_forward(const Inputs<Tensor>& inputs, const Options& o, Outputs<Tensor>& y,
                               Saved*) {
  const Inputs<Tensor> x = gated_linear::cuda_inputs(inputs);
  const bool one = x.q.size(1) == 1;
  const Tensor cu_seqlens = on_device(o.cu_seqlens, x.q.device());
  std::optional<gated_linear::PreparedTensors> prepared;
  if (!one) prepared.emplace(x);
  if (x.q.is_meta()) return;
  for_cuda_dtype(x.q.dtype(), [&]<class Real>() {
    const gated_linear::CudaProblem<Real> p(x, o, cu_seqlens);
    const gated_linear::Results<Real> results{token_rows<Real>(y.o), dptr<float>(y.final_state)};
    launch_forward(p, prepared ? prepared->view<Real>() : gated_linear::Prepared<Real>{}, results);
  });
  check_launch("gated_linear forward");
}

}  // namespace weft::kernels
