// The chunkwise form on CUDA, forward: the tiles of attention, as the mask lists them (mask.cuh).
#include "kernels/block_sparse/hopper.cuh"
#include "kernels/softmax/forward.cuh"

namespace weft::kernels {

using namespace softmax;
using namespace block_sparse;

extern template void softmax::run_forward(const Call<float>&, const ListedMask&,
                                          const Outgoing<float>&);
extern template void softmax::run_forward(const Call<bf16>&, const ListedMask&,
                                          const Outgoing<bf16>&);
extern template void softmax::run_forward(const Call<float>&, const OneRowMask&,
                                          const Outgoing<float>&);
extern template void softmax::run_forward(const Call<bf16>&, const OneRowMask&,
                                          const Outgoing<bf16>&);

void BlockSparse::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                               Saved* saved) {
  check_head_size(name, in.q, in.v);
  const Inputs<Tensor> x{with_rows(in.q), with_rows(in.k), with_rows(in.v)};
  const int64_t T = x.q.size(1), S = x.k.size(1);
  const Device device = x.q.device();
  const Tensor cu = documents_on(o.cu_seqlens, T, device);
  const Tensor mask = placed_mask(o.block_mask, device);
  const bool packed = o.cu_seqlens.defined();
  const Tensor notes = notes_of({x.q});
  require(!o.position || !saved, "block_sparse: position without a gradient alone");
  if (saved) *saved = {y.o, y.lse};
  for_cuda_dtype(x.q.dtype(), [&]<class E>() {
    for_head_size(x.q.size(3), x.v.size(3), [&]<int D>() {
      using Shape = ForwardShape<E, D>;
      const ListShape shape{true, Shape::M, Shape::N};
      const Tensor lists = list_memory(shape, mask, packed, T, S, device);
      if (x.q.is_meta()) return;
      const Band band = band_of(x.q, x.k, o.cu_seqlens, cu, o.causal, 0);
      const BlockMask blocks = mask_of(mask, o, x.q.size(2));
      const Call<E> call = call_of<E>(x.q, x.k, x.v, {}, o.scale, o.softcap);
      const Heads<E> out = heads_of<E>(y.o);
      if (const int* const at = dptr<const int>(o.position)) {
        const OneRowMask one{find_lists(shape, lists, band, blocks, at), at};
        return run_forward(call, one, Outgoing<E>{out, dptr<float>(y.lse)});
      }
      if constexpr (std::is_same_v<E, bf16>) {
        if (fits_hopper(o.scale, o.softcap, {x.q, x.k, x.v, y.o})) {
          notes.zero();
          const ListedMask rows =
              find_lists({true, kOwn, kSparseKeys, kGroups}, lists, band, blocks);
          return forward_on_hopper(call, rows, out, dptr<float>(y.lse), dptr<int>(notes));
        }
      }
      run_forward(call, find_lists(shape, lists, band, blocks),
                  Outgoing<E>{out, dptr<float>(y.lse)});
    });
  });
  if (!x.q.is_meta()) check_launch("block_sparse forward");
}

}  // namespace weft::kernels
