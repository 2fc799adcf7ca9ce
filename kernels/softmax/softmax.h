// What the operations of softmax attention share around the tiles (tiles.h): the check of
// their tensors, the sizes and positions of a call, and the steps of backward before and after the
// tiles.
#pragma once

#include <string_view>

#include "kernels/softmax/tiles.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {

// Throws Error unless q [B, T, H, K], k [B, S, Hk, K], v [B, S, Hk, V] go together, H is a multiple
// of Hk, cu_seqlens is absent or fits T with S = T, and softcap is not negative.
void check_softmax(std::string_view name, const Tensor& q, const Tensor& k, const Tensor& v,
                   double softcap, const Tensor& cu_seqlens);

// Throws Error unless `position` is absent, or i32 [1] on the device of q, with T = 1 and no
// documents.
void check_position(std::string_view name, const Tensor& q, const Tensor& position,
                    const Tensor& cu_seqlens);
// Of S rows written at their positions in turn, how many hold one of 0 .. position. On the CPU.
int64_t rows_held(const Tensor& position, int64_t S);

// A call's tensors (copied where their last dimension is not contiguous), sizes and positions.
struct SoftmaxCall {
  SoftmaxCall(const Tensor& q, const Tensor& k, const Tensor& v, double scale, double softcap,
              const Tensor& cu_seqlens);

  Tensor q, k, v;
  int64_t B, T, S, H, Hk;
  SoftmaxShape shape;
  Documents queries, keys;  // on grids of kSoftmaxTile
  bool causal = true;
  int64_t window = 0;

  int64_t key_head(int64_t h) const { return h / (H / Hk); }
  KeyBand band(int64_t n) const { return {keys.end(n) - keys.begin(n), causal, window}; }
  // Where row t of document n stands among its keys: the last query at the last key.
  int64_t position(int64_t n, int64_t t) const {
    return t - queries.end(n) + keys.end(n) - keys.begin(n);
  }
  int64_t row(int64_t n, int64_t position) const {
    return position + queries.end(n) - keys.end(n) + keys.begin(n);
  }
};

// Backward besides the tiles. The tiles of keys are cut into `parts` where there are few heads, for
// all cores to have work; a part holds every parts-th chunk of keys and has its own dq.
struct SoftmaxBackward {
  // Allocates. `dlse` and `dq` may be absent.
  SoftmaxBackward(const SoftmaxCall& call, const Tensor& o, const Tensor& lse, const Tensor& dout,
                  const Tensor& dlse, const Tensor& dq);

  // Fills delta, and all dq with zeros.
  template <class Real>
  void begin() const;
  // What flows back into rows [t, t + rows) of head h, for the tiles of a part.
  template <class Real>
  QueryTile<Real> tile(int64_t part, int64_t b, int64_t h, int64_t t, int64_t rows,
                       int64_t position) const;
  // Adds up dq.
  template <class Real>
  void end() const;
  // dsink[h] = -sum over b, t of exp(sink[h] - lse) delta.
  template <class Real>
  void sink(const View<Real>& sink, const View<Real>& dsink) const;

  const SoftmaxCall& call;
  int64_t parts;
  Tensor lse, dout, dlse, dq;
  Tensor o;
  Tensor delta;     // [B, H, T] dout.o - dlse
  Tensor other_dq;  // [parts - 1, B, T, H, K]
};

}  // namespace weft::kernels
