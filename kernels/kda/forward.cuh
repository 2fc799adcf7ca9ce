// kda on a GPU, forward: chunks by themselves (prepare), then a scan that carries the state.
// A row of one token, the decode step, reads and writes its state once instead.
#pragma once

#include "kernels/common/overwrite_hopper.cuh"
#include "kernels/kda/chunks.cuh"

namespace weft::kernels::kda {

template <class T>
void forward_form(const Kda::Inputs<Tensor>& in, const Kda::Options& o, Kda::Outputs<Tensor>& y,
                  Kda::Saved* saved) {
  const int64_t B = in.v.size(0), H = in.v.size(2), K = in.k.size(3), V = in.v.size(3);
  float* const final_state = y.final_state ? dptr<float>(y.final_state) : nullptr;
  if (in.v.size(1) == 1 && !saved) {
    const Tensor q = aligned(in.q), k = aligned(in.k), v = aligned(in.v), g = aligned(in.g);
    const Tensor initial = in.initial_state ? in.initial_state.contiguous() : in.initial_state;
    if (v.is_meta()) return;
    const Decode<T> step{static_cast<int>(B),
                         static_cast<int>(H),
                         static_cast<int>(K),
                         static_cast<int>(V),
                         static_cast<int>(H / k.size(2)),
                         static_cast<float>(o.factor(K)),
                         heads<const T>(q),
                         heads<const T>(k),
                         heads<const T>(v),
                         heads<const float>(in.beta),
                         heads<const float>(g),
                         initial ? dptr<float>(initial) : nullptr,
                         final_state,
                         dptr<T>(y.o)};
    launch(decode<T, true>, B * H * ceil_div(V, 32), 32 * kDecodeWarps, 0, step);
    return;
  }
  CudaProblem<T> p(in, o);
  if (saved) {
    saved->states = p.states();
    saved->written = p.rows();
  }
  if (in.v.is_meta()) return;
  p.scan.o = dptr<T>(y.o);
  p.scan.final_state = final_state;
  if (saved) {
    p.scan.states = saved->states ? dptr<T>(saved->states) : nullptr;
    p.scan.written = dptr<T>(saved->written);
  }
  for_key_width<T>(K, [&]<int KP>() {
    p.template prepare_chunks<KP>();
    run_scan<T, KP, true, false>(p.scan);
  });
}

}  // namespace weft::kernels::kda
