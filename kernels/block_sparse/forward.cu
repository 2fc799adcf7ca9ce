// The chunkwise form on CUDA, forward: the tiles of attention, as the mask lists them (sight.cuh).
#include "kernels/block_sparse/sight.cuh"
#include "kernels/common/softmax_forward.cuh"

namespace weft::kernels {

using namespace softmax;

void BlockSparse::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                               Saved* saved) {
  check_head_size(name, in.q, in.v);
  const Inputs<Tensor> x{with_rows(in.q), with_rows(in.k), with_rows(in.v)};
  const Device device = x.q.device();
  const Tensor cu = documents_on(o.cu_seqlens, x.q.size(1), device);
  const Tensor mask = o.block_mask.contiguous().to(device);
  if (saved) *saved = {y.o, y.lse};
  for_cuda_dtype(x.q.dtype(), [&]<class E>() {
    for_head_size(x.q.size(3), x.v.size(3), [&]<int D>() {
      using Shape = ForwardShape<E, D>;
      const BlockLists lists(BlockLists::rows, mask, x.q.size(1), x.k.size(1), Shape::M, Shape::N,
                             device);
      if (x.q.is_meta()) return;
      const Band band = band_of(x.q, x.k, o.cu_seqlens, cu, o.causal, 0);
      run_forward<E, D>(call_of<E>(x.q, x.k, x.v, {}, o.scale, o.softcap),
                        lists.find(band, mask_of(mask, o.block)),
                        Outgoing<E>{heads_of<E>(y.o), dptr<float>(y.lse)});
    });
  });
  if (!x.q.is_meta()) check_launch("block_sparse forward");
}

}  // namespace weft::kernels
