// The delta rule on a GPU, forward: chunks by themselves (prepare), then a scan that carries the state.
// A row of one token, the decode step, reads and writes its state once instead.
#include "kernels/delta/chunks.cuh"

namespace weft::kernels {

void Delta::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                         Saved* saved) {
  using namespace overwrite;
  for_cuda_dtype(in.v.dtype(), [&]<class T>() {
    const int64_t B = in.v.size(0), L = in.v.size(1), H = in.v.size(2);
    const int64_t K = in.k.size(3), V = in.v.size(3);
    float* const final_state = y.final_state ? dptr<float>(y.final_state) : nullptr;
    for_key_width(name, K, V, [&]<int KP>() {
      if (L == 1 && !saved) {
        const Tensor q = with_rows(in.q), k = with_rows(in.k), v = with_rows(in.v);
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
                             heads<const float>(in.g),
                             initial ? dptr<float>(initial) : nullptr,
                             final_state,
                             dptr<T>(y.o)};
        launch(decode<T, false>, B * H * ceil_div(V, 32), 32 * kDecodeWarps, 0, step);
        return;
      }
      delta::Problem<T> p(in, o);
      if (saved) {
        if (p.grid.chunks > 1)
          saved->states = empty({B, p.grid.chunks - 1, H, V, K}, in.v.dtype(), in.v.device());
        saved->written = empty(in.v.shape(), in.v.dtype(), in.v.device());
      }
      if (in.v.is_meta()) return;
      p.template prepare_chunks<KP>();
      p.scan.o = dptr<T>(y.o);
      p.scan.final_state = final_state;
      if (saved) {
        p.scan.states = saved->states ? dptr<T>(saved->states) : nullptr;
        p.scan.written = dptr<T>(saved->written);
      }
      using Tiles = ScanTiles<T, KP, false>;
      launch(scan_forward<T, KP, false>, p.columns(), 128, Tiles::kStages * Tiles::kBytes, p.scan);
    });
  });
  if (!in.v.is_meta()) check_launch("delta forward");
}

}  // namespace weft::kernels
