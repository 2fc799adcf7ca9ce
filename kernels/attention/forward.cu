// The chunkwise form on CUDA, forward: one block a tile of rows. The band of keys is arithmetic, so
// a window costs what it sees. On sm_90a by forward_hopper.cu, else, and for few rows, through the
// tile layer.
#include "kernels/attention/attention.h"
#include "kernels/attention/forward_tiles.cuh"
#include "kernels/attention/hopper.cuh"

namespace weft::kernels {
namespace {

using namespace softmax;
using namespace attention;

// Where few rows meet many keys: enough parts to fill a large GPU, of 256 keys each at least.
Parts allocate_parts(const Inputs<Attention>& x, const Attention::Options& o) {
  constexpr int64_t kFewRows = 64, kBlocks = 512, kLeastKeys = 256;
  const int64_t B = x.q.size(0), T = x.q.size(1), H = x.q.size(2), V = x.v.size(3);
  const int64_t S =
      o.window > 0 ? std::min(x.k.size(1), std::min(o.window, x.k.size(1)) + T) : x.k.size(1);
  if (T > kFewRows || o.cu_seqlens || B * H * T == 0) return {};
  const int64_t blocks = B * (T == 1 ? x.k.size(2) : H);
  const int64_t count = std::clamp<int64_t>(std::min(kBlocks / blocks, S / kLeastKeys), 1, kBlocks);
  if (count == 1 && T > 1) return {};
  return {empty({count, B, T, H, V}, Dtype::f32, x.q.device()),
          empty({count, B, H, T}, Dtype::f32, x.q.device()), count};
}

}  // namespace

void Attention::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                             Saved* saved) {
  check_head_size(name, in.q, in.v);
  const Inputs<Tensor> x{with_rows(in.q), with_rows(in.k), with_rows(in.v),
                         in.sink ? in.sink.contiguous() : in.sink};
  const Tensor cu = documents_on(o.cu_seqlens, x.q.size(1), x.q.device());
  require(!o.position || !saved, "attention: position without a gradient alone");
  const Parts parts = allocate_parts(x, o);
  const Tensor notes = notes_of({x.q});
  if (saved) *saved = {y.o, y.lse};
  if (x.q.is_meta()) return;
  const Band band = band_of(x.q, x.k, o.cu_seqlens, cu, o.causal, o.window);
  float* const lse = dptr<float>(y.lse);
  for_cuda_dtype(x.q.dtype(), [&]<class E>() {
    const Call<E> call = call_of<E>(x.q, x.k, x.v, x.sink, o.scale, o.softcap);
    if constexpr (std::is_same_v<E, bf16>) {
      if (parts.count == 0 && fits_hopper(o.scale, o.softcap, {x.q, x.k, x.v, y.o})) {
        notes.zero();
        return forward_on_hopper(call, band, heads_of<E>(y.o), lse, dptr<int>(notes));
      }
    }
    forward_on_tiles(call, band, parts, heads_of<E>(y.o), lse, dptr<const int>(o.position));
  });
  check_launch("attention forward");
}

}  // namespace weft::kernels
