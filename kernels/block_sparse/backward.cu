// The chunkwise form on CUDA, backward: the loops of attention; dk and dv walk the mask's columns,
// dq its rows (mask.cuh).
#include "kernels/block_sparse/hopper.cuh"
#include "kernels/softmax/backward.cuh"

namespace weft::kernels {

using namespace softmax;
using namespace block_sparse;

extern template void softmax::run_backward(const Call<float>&, const ListedMask&, const ListedMask&,
                                           const Incoming<float>&, const Heads<float>&,
                                           const Heads<float>&, const Heads<float>&);
extern template void softmax::run_backward(const Call<bf16>&, const ListedMask&, const ListedMask&,
                                           const Incoming<bf16>&, const Heads<bf16>&,
                                           const Heads<bf16>&, const Heads<bf16>&);

void BlockSparse::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved& saved,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  check_head_size(name, in.q, in.v);
  const Inputs<Tensor> x{with_rows(in.q), with_rows(in.k), with_rows(in.v)};
  const Tensor dout = with_rows(dy.o);
  const int64_t T = x.q.size(1), S = x.k.size(1);
  const Device device = x.q.device();
  const Tensor cu = documents_on(o.cu_seqlens, T, device);
  const Tensor mask = placed_mask(o.block_mask, device);
  const bool packed = o.cu_seqlens.defined();
  const Tensor notes = notes_of({x.k, x.q}), padded = padded_rows(saved.lse);
  const RowDeltas deltas(saved.lse, dy.lse);
  for_cuda_dtype(x.q.dtype(), [&]<class E>() {
    for_head_size(x.q.size(3), x.v.size(3), [&]<int D>() {
      using Shape = BackwardShape<E, D>;
      const ListShape rows{true, Shape::M, Shape::N}, keys{false, Shape::M, Shape::N};
      const Tensor row_lists = list_memory(rows, mask, packed, T, S, device);
      const Tensor key_lists = list_memory(keys, mask, packed, T, S, device);
      if (x.q.is_meta()) return;
      const Band band = band_of(x.q, x.k, o.cu_seqlens, cu, o.causal, 0);
      const BlockMask blocks = mask_of(mask, o, x.q.size(2));
      const Call<E> call = call_of<E>(x.q, x.k, x.v, {}, o.scale, o.softcap);
      const Incoming<E> incoming = deltas.find<E>(saved.o, dout);
      const Heads<E> dq = heads_of<E>(dx.q), dk = heads_of<E>(dx.k), dv = heads_of<E>(dx.v);
      if constexpr (std::is_same_v<E, bf16>) {
        if (fits_hopper(o.scale, o.softcap, {x.q, x.k, x.v, dout, dx.q, dx.k, dx.v}) &&
            dx.k.defined() == dx.v.defined()) {
          notes.zero();
          constexpr int N = backward_tile(D);
          const PaddedRows numbers = padded_rows_of(padded);
          pad_on_hopper(call, incoming, numbers);
          if (dk.data)
            keys_on_hopper(call, find_lists({false, kOwn, N, kGroups}, key_lists, band, blocks),
                           incoming, numbers, dk, dv, dptr<int>(notes));
          if (dq.data)
            queries_on_hopper(call, find_lists({true, kOwn, N, kGroups}, row_lists, band, blocks),
                              incoming, numbers, dq,
                              dptr<int>(notes) + note_count(call.B, S, call.H / call.group));
          return;
        }
      }
      run_backward(call, find_lists(keys, key_lists, band, blocks),
                   find_lists(rows, row_lists, band, blocks), incoming, dq, dk, dv);
    });
  });
  if (!x.q.is_meta()) check_launch("block_sparse backward");
}

}  // namespace weft::kernels
