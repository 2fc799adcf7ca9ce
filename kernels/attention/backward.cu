// The chunkwise form on CUDA, backward: a block a tile of keys for dk and dv, a block a tile of
// rows for dq (kernels/softmax/backward.cuh). The same bits on every run.
#include "kernels/attention/attention.h"
#include "kernels/attention/hopper.cuh"
#include "kernels/softmax/backward.cuh"

namespace weft::kernels {

using namespace softmax;
using namespace attention;

extern template void softmax::run_backward(const Call<float>&, const Band&, const Band&,
                                           const Incoming<float>&, const Heads<float>&,
                                           const Heads<float>&, const Heads<float>&);
extern template void softmax::run_backward(const Call<bf16>&, const Band&, const Band&,
                                           const Incoming<bf16>&, const Heads<bf16>&,
                                           const Heads<bf16>&, const Heads<bf16>&);

void Attention::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved& saved,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  check_head_size(name, in.q, in.v);
  const Inputs<Tensor> x{with_rows(in.q), with_rows(in.k), with_rows(in.v),
                         in.sink ? in.sink.contiguous() : in.sink};
  const Tensor dout = with_rows(dy.o);
  const Tensor cu = documents_on(o.cu_seqlens, x.q.size(1), x.q.device());
  const RowDeltas deltas(saved.lse, dy.lse);
  const Tensor notes = notes_of({x.k, x.q}), rows = padded_rows(saved.lse);
  if (x.q.is_meta()) return;
  const Band band = band_of(x.q, x.k, o.cu_seqlens, cu, o.causal, o.window);
  const bool hopper = fits_hopper(o.scale, o.softcap, {x.q, x.k, x.v, dout, dx.q, dx.k, dx.v}) &&
                      dx.k.defined() == dx.v.defined();
  for_cuda_dtype(x.q.dtype(), [&]<class E>() {
    const Call<E> call = call_of<E>(x.q, x.k, x.v, x.sink, o.scale, o.softcap);
    const Incoming<E> incoming = deltas.find<E>(saved.o, dout);
    const Heads<E> dq = heads_of<E>(dx.q), dk = heads_of<E>(dx.k), dv = heads_of<E>(dx.v);
    if (dx.sink) deltas.sink(x.sink, dx.sink);
    if constexpr (std::is_same_v<E, bf16>) {
      if (hopper) {
        notes.zero();
        return backward_on_hopper(call, band, incoming, padded_rows_of(rows), dq, dk, dv,
                                  dptr<int>(notes));
      }
    }
    run_backward(call, band, band, incoming, dq, dk, dv);
  });
  check_launch("attention backward");
}

}  // namespace weft::kernels
