// Forward through the tile layer, for any call of attention (kernels/softmax/forward.cuh). A decode
// step has one row a head: the heads of a group become the rows of one tile, so that their keys are
// read once, and the keys are dealt to several blocks.
#pragma once

#include "kernels/softmax/forward.cuh"

namespace weft::kernels::attention {

using namespace softmax;

// The heads of a group as rows of one head: all stand at the last key, or at `position` of a ring.
struct OneQuery {
  Range within;
  int rows = 1;
  const int* position = nullptr;
  __device__ Range seen() const {
    return position ? Range{0, min(*position + 1, within.end)} : within;
  }
  __device__ Range keys(int t) const { return t < rows ? seen() : Range{}; }
  __device__ Bounds bounds_of_rows(int, int) const { return Bounds(seen(), seen()); }
  template <int M, int N>
  __device__ Walk key_tiles(int, int, int, int part, int parts) const {
    return Walk(Bounds(seen(), seen()), N, part, parts);
  }
  __device__ bool sees(int, int, int, int) const { return true; }
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

inline Outgoing<float> outgoing(const Parts& parts) {
  const int64_t T = parts.o.size(2), H = parts.o.size(3), V = parts.o.size(4);
  return {{dptr<float>(parts.o), T * H * V, H * V, V, static_cast<int>(V)},
          dptr<float>(parts.lse),
          static_cast<int>(parts.count)};
}

// o and lse; by way of `parts` where there are any, as there are for one query. `position`: of that
// in a ring of keys, or null. One f32 and one bf16 form, in files of their own.
template <class E>
void forward_on_tiles(const Call<E>& x, const Band& band, const Parts& parts, const Heads<E>& o,
                      float* lse, const int* position) {
  for_head_size(x.q.width, x.v.width, [&]<int D>() {
    if (parts.count == 0) return run_forward<E, D>(x, band, Outgoing<E>{o, lse, 1});
    Outgoing<float> to = outgoing(parts);
    if (x.T == 1) {
      const int first = band.window > 0 ? std::max(0, x.S - band.window) : 0;
      const OneQuery mask{{first, x.S}, x.group, position};
      Call<E> one = x;
      one.q = packed(x.q, x.group);
      to.o = packed(to.o, x.group);
      one.T = x.group, one.H = x.H / x.group, one.group = 1;
      run_forward<E, D>(one, mask, to);
    } else {
      run_forward<E, D>(x, band, to);
    }
  });
  if (parts.count == 0) return;
  const int64_t rows = int64_t{x.B} * x.H * x.T;
  launch(merge_parts<E>, (rows + 3) / 4, 128, 0, outgoing(parts), o, lse, rows, x.T, x.H);
}
extern template void forward_on_tiles(const Call<float>&, const Band&, const Parts&,
                                      const Heads<float>&, float*, const int*);
extern template void forward_on_tiles(const Call<bf16>&, const Band&, const Parts&,
                                      const Heads<bf16>&, float*, const int*);

}  // namespace weft::kernels::attention
