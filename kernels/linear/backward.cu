// Linear attention backward on CUDA. The kernels are in gradients.cuh, their f32 forms in
// backward_f32.cu.
#include "kernels/linear/gradients.cuh"

namespace weft::kernels {
namespace linear {
namespace {

// dlog_gamma[h] = sum of parts[.., h], a warp for each head.
__global__ void __launch_bounds__(32)
    sum_gate_parts(const double* parts, const int count, const int H, float* out) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += 32) sum += parts[int64_t{i} * H + blockIdx.x];
  sum = warp_sum_of_doubles(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = static_cast<float>(sum);
}

}  // namespace
}  // namespace linear

void Linear::cuda_backward(const Inputs<Tensor>& inputs, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Inputs<Tensor> x = linear::cuda_inputs(inputs);
  const Device device = x.q.device();
  const Tensor cu_seqlens = on_device(o.cu_seqlens, device);
  const Tensor dout = with_rows(dy.o), out = with_rows(saved.o);
  const Tensor dfinal_state = dy.final_state ? dy.final_state.contiguous() : Tensor();
  const Tensor dfinal_z = dy.final_z ? dy.final_z.contiguous() : Tensor();
  const int64_t B = x.v.size(0), T = x.v.size(1), H = x.v.size(2), K = x.q.size(3);
  const int64_t V = x.v.size(3), chunks = ceil_div(T, linear::kTokens);
  const auto make = [&](bool wanted, const Shape& shape, Dtype dtype = Dtype::f32) {
    return wanted ? empty(shape, dtype, device) : Tensor();
  };
  const linear::ScanScratch scratch(x, o, dy, dx);
  const int64_t whole = scratch.covers ? linear::kPart : 1;  // what scans hold of a state
  const Tensor states =
      make(chunks > 1, {B, chunks - 1, H, ceil_div(K, whole) * whole, ceil_div(V, whole) * whole},
           x.q.dtype());
  const int64_t kept = std::max((chunks - 1) * B * H * K * V, scratch.of_heads);
  const Tensor dstates = make(kept > 0, {kept}, x.q.dtype());  // [B, chunks - 1, H, K, V]
  const Tensor sums = make(chunks > 1 && o.normalize, {B, chunks - 1, H, K});
  const Tensor dsums = make(chunks > 1 && o.normalize, {B, chunks - 1, H, K});
  const Tensor dd = make(o.normalize, {B, T, H});
  // One number a head is the sum over all tokens: its terms can cancel, and are kept in full.
  const bool sums_gates = static_cast<bool>(dx.log_gamma);
  const bool beside = sums_gates && chunks > 1 && x.q.dtype() == Dtype::bf16;
  const Tensor exact = make(beside, {B, chunks - 1, H, K, V});
  const Tensor dexact = make(beside, {B, chunks - 1, H, K, V});
  const Tensor gate_parts = make(sums_gates, {B, chunks, H}, Dtype::f64);
  if (x.q.is_meta() || linear::hopper_backward(x, o, dout, dx, scratch, states, dstates)) return;
  for_cuda_dtype(x.q.dtype(), [&]<class Real>() {
    const linear::CudaProblem<Real> p(x, o, cu_seqlens);
    const int places = static_cast<int>(chunks - 1);
    linear::launch_backward(
        p, linear::Gradients<Real>{.state = {.dout = token_rows<const Real>(dout),
                                             .denominator = dptr<const float>(saved.denominator),
                                             .dd = dptr<const float>(dd),
                                             .dfinal_state = dptr<const float>(dfinal_state),
                                             .dfinal_z = dptr<const float>(dfinal_z),
                                             .dinitial_state = dptr<float>(dx.initial_state),
                                             .dinitial_z = dptr<float>(dx.initial_z)},
                                   .o = token_rows<const Real>(out),
                                   .before = {.states = dptr<Real>(states),
                                              .sums = dptr<float>(sums),
                                              .places = places,
                                              .exact = dptr<float>(exact)},
                                   .after = {.states = dptr<Real>(dstates),
                                             .sums = dptr<float>(dsums),
                                             .places = places,
                                             .exact = dptr<float>(dexact)},
                                   .dq = token_rows<Real>(dx.q),
                                   .dk = token_rows<Real>(dx.k),
                                   .dv = token_rows<Real>(dx.v),
                                   .dd = dptr<float>(dd),
                                   .dg = dptr<float>(dx.g),
                                   .gate_parts = dptr<double>(gate_parts),
                                   .chunks = static_cast<int>(chunks)});
    if (gate_parts)
      launch(linear::sum_gate_parts, H, 32, 0, dptr<const double>(gate_parts),
             static_cast<int>(B * chunks), static_cast<int>(H), dptr<float>(dx.log_gamma));
  });
  check_launch("linear backward");
}

}  // namespace weft::kernels
