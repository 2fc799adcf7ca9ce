// Gated linear attention backward on CUDA; the kernels are in gradients.cuh, their f32 forms in
// f32.cu.
#include "kernels/gated_linear/gradients.cuh"

namespace weft::kernels {

void GatedLinear::cuda_backward(const Inputs<Tensor>& inputs, const Options& o, const Saved&,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Inputs<Tensor> x = gated_linear::cuda_inputs(inputs);
  const Device device = x.q.device();
  const Tensor cu_seqlens = on_device(o.cu_seqlens, device);
  const Tensor dout = with_rows(dy.o);
  const Tensor dfinal_state = dy.final_state ? dy.final_state.contiguous() : Tensor();
  const gated_linear::PreparedTensors prepared(x);
  const int64_t B = x.v.size(0), T = x.v.size(1), H = x.v.size(2), K = x.q.size(3);
  const int64_t V = x.v.size(3), Hk = x.q.size(2), chunks = ceil_div(T, gated_linear::kTokens);
  const auto make = [&](bool wanted, const Shape& shape, Dtype dtype) {
    return wanted ? empty(shape, dtype, device) : Tensor();
  };
  const Tensor states = make(chunks > 1, {B, chunks - 1, H, K, V}, x.q.dtype());
  const Tensor dstates = make(chunks > 1, {B, chunks - 1, H, K, V}, x.q.dtype());
  const Tensor dq_sum = make(H > Hk && dx.q, {B, T, Hk, K}, Dtype::f32);
  const Tensor dk_sum = make(H > Hk && dx.k, {B, T, Hk, K}, Dtype::f32);
  if (x.q.is_meta()) return;
  for_cuda_dtype(x.q.dtype(), [&]<class Real>() {
    const gated_linear::CudaProblem<Real> p(x, o, cu_seqlens);
    launch_backward(p, prepared.view<Real>(),
                    gated_linear::Gradients<Real>{.dout = token_rows<const Real>(dout),
                                                  .dfinal_state = dptr<const float>(dfinal_state),
                                                  .states = dptr<Real>(states),
                                                  .dstates = dptr<Real>(dstates),
                                                  .dq = token_rows<Real>(dx.q),
                                                  .dk = token_rows<Real>(dx.k),
                                                  .dv = token_rows<Real>(dx.v),
                                                  .dg = token_rows<float>(dx.g),
                                                  .dq_sum = token_rows<float>(dq_sum),
                                                  .dk_sum = token_rows<float>(dk_sum),
                                                  .dinitial_state = dptr<float>(dx.initial_state),
                                                  .chunks = static_cast<int>(chunks)});
  });
  check_launch("gated_linear backward");
}

}  // namespace weft::kernels
