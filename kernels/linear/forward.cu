// Linear attention forward on CUDA.
//   q, k  f32 or bf16; K and V up to 256. Accumulated and carried in f32. The same bits on every
//         run.
// The kernels are in scan.cuh, their f32 forms in forward_f32.cu, a form for Hopper in
// forward_hopper.cu.
#include "kernels/linear/scan.cuh"

namespace weft::kernels {

void Linear::cuda_forward(const Inputs<Tensor>& inputs, const Options& o, Outputs<Tensor>& y,
                          Saved* saved) {
  const Inputs<Tensor> x = linear::cuda_inputs(inputs);
  const Device device = x.q.device();
  const Tensor cu_seqlens = on_device(o.cu_seqlens, device);
  const int64_t B = x.v.size(0), H = x.v.size(2);
  if (saved && o.normalize) {
    saved->o = y.o;
    saved->denominator = empty({B, x.v.size(1), H}, Dtype::f32, device);
  }
  const int segments = linear::segment_count(x, o);
  Tensor states;
  if (segments > 1)
    states = empty({B, segments - 1, H, x.q.size(3), x.v.size(3)}, Dtype::f32, device);
  if (x.q.is_meta()) return;
  if (x.q.size(1) > 1 && segments == 0 && linear::hopper_forward(x, o, y)) return;
  for_cuda_dtype(x.q.dtype(), [&]<class Real>() {
    const linear::CudaProblem<Real> p(x, o, cu_seqlens);
    launch_forward(
        p, linear::Results<Real>{.o = token_rows<Real>(y.o),
                                 .final_state = dptr<float>(y.final_state),
                                 .final_z = dptr<float>(y.final_z),
                                 .denominator = dptr<float>(saved ? saved->denominator : Tensor()),
                                 .kept = {.states = dptr<float>(states),
                                          .places = segments - 1,
                                          .every = linear::kSegment},
                                 .segments = segments});
  });
  check_launch("linear forward");
}

}  // namespace weft::kernels
