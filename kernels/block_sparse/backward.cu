// The chunkwise form on CUDA, backward: the loops of attention; dk and dv walk the mask's columns, dq its
// rows (sight.cuh).
#include "kernels/block_sparse/sight.cuh"
#include "kernels/common/softmax_backward.cuh"

namespace weft::kernels {

using namespace softmax;

void BlockSparse::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved& saved,
                                const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  check_head_size(name, in.q, in.v);
  const Inputs<Tensor> x{with_rows(in.q), with_rows(in.k), with_rows(in.v)};
  const Tensor dout = with_rows(dy.o);
  const Device device = x.q.device();
  const Tensor cu = documents_on(o.cu_seqlens, x.q.size(1), device);
  const Tensor mask = o.block_mask.contiguous().to(device);
  const RowDeltas deltas(saved.lse, dy.lse);
  for_cuda_dtype(x.q.dtype(), [&]<class E>() {
    for_head_size(x.q.size(3), x.v.size(3), [&]<int D>() {
      using Shape = BackwardShape<E, D>;
      const auto lists = [&](BlockLists::Side side) {
        return BlockLists(side, mask, x.q.size(1), x.k.size(1), Shape::M, Shape::N, device);
      };
      const BlockLists rows = lists(BlockLists::rows), keys = lists(BlockLists::keys);
      if (x.q.is_meta()) return;
      const Band band = band_of(x.q, x.k, o.cu_seqlens, cu, o.causal, 0);
      const BlockMask blocks = mask_of(mask, o.block);
      const Call<E> call = call_of<E>(x.q, x.k, x.v, {}, o.scale, o.softcap);
      const Incoming<E> incoming = deltas.find<E>(saved.o, dout);
      run_key_gradients<E, D>(call, keys.find(band, blocks), incoming, heads_of<E>(dx.k),
                              heads_of<E>(dx.v));
      run_query_gradients<E, D>(call, rows.find(band, blocks), incoming, heads_of<E>(dx.q));
    });
  });
  if (!x.q.is_meta()) check_launch("block_sparse backward");
}

}  // namespace weft::kernels
