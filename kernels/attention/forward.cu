// The chunkwise form on CUDA, forward: one block a tile of rows (kernels/common/softmax_forward.cuh).
// The band of keys is arithmetic, so a window costs what it sees. A decode step has one row a head:
// the heads of a group become the rows of one tile, so that their keys are read once, and the keys are
// dealt to several blocks.
#include "kernels/attention/attention.h"
#include "kernels/attention/hopper.cuh"
#include "kernels/common/softmax_forward.cuh"

namespace weft::kernels {
namespace {

using namespace softmax;

// The heads of a group as rows of one head: all stand at the last key.
struct OneQuery {
  Range seen;
  int rows = 1;
  __device__ Range keys(int t) const { return t < rows ? seen : Range{}; }
  template <int M, int N>
  __device__ Walk key_tiles(int, int, int part, int parts) const {
    return Walk(seen, seen, N, part, parts);
  }
  __device__ bool sees(int, int, int) const { return true; }
  __device__ int sink(int h, int t) const { return h * rows + t; }
};

// [B, 1, H, width] as [B, H / heads, heads, width]: nothing moves.
template <class E>
Heads<E> packed(Heads<E> x, int group) {
  x.token = x.head;
  x.head *= group;
  return x;
}

// What several blocks find for the same rows.
struct Parts {
  Tensor o, lse;      // [parts, B, T, H, V], [parts, B, H, T]
  int64_t count = 0;  // 0: rows are not shared
};

// Where few rows meet many keys: enough parts to fill a large GPU, of 256 keys each at least.
Parts allocate_parts(const Inputs<Attention>& x, const Attention::Options& o) {
  constexpr int64_t kFewRows = 64, kBlocks = 512, kLeastKeys = 256;
  const int64_t B = x.q.size(0), T = x.q.size(1), H = x.q.size(2), V = x.v.size(3);
  const int64_t S = o.window > 0 ? std::min(x.k.size(1), o.window + T) : x.k.size(1);
  if (T > kFewRows || o.cu_seqlens || B * H * T == 0) return {};
  const int64_t blocks = B * (T == 1 ? x.k.size(2) : H);
  const int64_t count = std::clamp<int64_t>(std::min(kBlocks / blocks, S / kLeastKeys), 1, kBlocks);
  if (count == 1 && T > 1) return {};
  return {empty({count, B, T, H, V}, Dtype::f32, x.q.device()),
          empty({count, B, H, T}, Dtype::f32, x.q.device()), count};
}

Outgoing<float> outgoing(const Parts& parts) {
  const int64_t T = parts.o.size(2), H = parts.o.size(3), V = parts.o.size(4);
  return {{dptr<float>(parts.o), T * H * V, H * V, V, static_cast<int>(V)},
          dptr<float>(parts.lse),
          static_cast<int>(parts.count)};
}

template <class E, int D>
void forward_of(const Inputs<Attention>& x, const Attention::Options& o, const Band& band,
                const Parts& parts, const Outputs<Attention>& y) {
  Call<E> call = call_of<E>(x.q, x.k, x.v, x.sink, o.scale, o.softcap);
  const Heads<E> out = heads_of<E>(y.o);
  float* const lse = dptr<float>(y.lse);
  if (parts.count == 0) return run_forward<E, D>(call, band, Outgoing<E>{out, lse, 1});
  Outgoing<float> to = outgoing(parts);
  if (call.T == 1) {
    const int group = call.group, first = band.window > 0 ? std::max(0, call.S - band.window) : 0;
    const OneQuery sight{{first, call.S}, group};
    Call<E> one = call;
    one.q = packed(call.q, group);
    to.o = packed(to.o, group);
    one.T = group, one.H = call.H / group, one.group = 1;
    run_forward<E, D>(one, sight, to);
  } else {
    run_forward<E, D>(call, band, to);
  }
  const int64_t rows = int64_t{call.B} * call.H * call.T;
  launch(merge_parts<E>, (rows + 3) / 4, 128, 0, outgoing(parts), out, lse, rows, call.T, call.H);
}

}  // namespace

void Attention::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                             Saved* saved) {
  check_head_size(name, in.q, in.v);
  const Inputs<Tensor> x{with_rows(in.q), with_rows(in.k), with_rows(in.v),
                         in.sink ? in.sink.contiguous() : in.sink};
  const Tensor cu = documents_on(o.cu_seqlens, x.q.size(1), x.q.device());
  const Parts parts = allocate_parts(x, o);
  if (saved) *saved = {y.o, y.lse};
  if (x.q.is_meta()) return;
  const Band band = band_of(x.q, x.k, o.cu_seqlens, cu, o.causal, o.window);
  if (parts.count == 0 && fits_hopper(o.scale, o.softcap, {x.q, x.k, x.v, y.o})) {
    forward_on_hopper(call_of<bf16>(x.q, x.k, x.v, x.sink, o.scale, o.softcap), band,
                      heads_of<bf16>(y.o), dptr<float>(y.lse));
  } else {
    for_cuda_dtype(x.q.dtype(), [&]<class E>() {
      for_head_size(x.q.size(3), x.v.size(3),
                    [&]<int D>() { forward_of<E, D>(x, o, band, parts, y); });
    });
  }
  check_launch("attention forward");
}

}  // namespace weft::kernels
