// Softmax attention by tiles of 64 queries and 64 keys: what dense, window and block-sparse
// attention share. An operation decides which tiles there are; these two classes work one off.
//   ForwardTile    the queries of one tile meet their keys in turn, with a running maximum and sum
//   BackwardTile   the keys of one tile meet their queries in turn; P is computed again from lse
// Which keys of a tile a query sees is a KeyBand. A tile that the band cuts is worked off in strips
// of 16 queries, each with those keys alone that one of its queries sees: so the triangle costs
// little more than its area, and a key that no query sees is never read.
#pragma once

#include <algorithm>

#include "core/tensor.h"
#include "kernels/softmax/cuts.h"

namespace weft::kernels {

// The keys that the query at position i of its document sees: [first(i), end(i)) of `keys`. Both
// rise with i.
class KeyBand {
 public:
  KeyBand() = default;
  KeyBand(int64_t keys, bool causal, int64_t window) : keys(keys), causal(causal), window(window) {}

  int64_t keys = 0;
  bool causal = true;
  int64_t window = 0;  // keys, the own one included; not causal: |i - j| < window. 0: all

  int64_t first(int64_t i) const { return window > 0 ? std::max<int64_t>(0, i - window + 1) : 0; }
  int64_t end(int64_t i) const {
    const int64_t stop = causal ? i + 1 : window > 0 ? i + window : keys;
    return std::clamp<int64_t>(stop, 0, keys);
  }
  // The queries that see any of the keys [begin, end): positions [first_query, end_query).
  int64_t first_query(int64_t begin) const {
    return causal ? begin : window > 0 ? begin - window + 1 : -kFar;
  }
  int64_t end_query(int64_t end) const { return window > 0 ? end + window - 1 : kFar; }

 private:
  static constexpr int64_t kFar = int64_t{1} << 60;  // beyond any position
};

// The tokens of one head: token i is at data + i * stride, its numbers contiguous.
template <class Real>
struct HeadRows {
  Real* data = nullptr;
  int64_t stride = 0;

  Real* operator[](int64_t i) const { return data + i * stride; }
  HeadRows from(int64_t i) const { return {data + i * stride, stride}; }
  explicit operator bool() const { return data != nullptr; }
  operator HeadRows<const Real>() const { return {data, stride}; }
};

// From token t on, in a tensor [B, T, H, width] whose last dimension is contiguous; absent if it
// is.
template <class Real>
HeadRows<Real> rows_of(const View<Real>& v, int64_t b, int64_t t, int64_t h) {
  if (!v) return {};
  return {v.at(b, t, h), v.stride(1)};
}

// What is the same for all tiles of a call. Scores are x = softcap * tanh(scale * q.k / softcap),
// or scale * q.k where softcap is 0.
struct SoftmaxShape {
  int64_t K = 0, V = 0;
  double scale = 1, softcap = 0;
};

template <class Real>
class ForwardTile {
 public:
  // Numbers of scratch memory that a tile needs.
  static int64_t scratch(const SoftmaxShape& shape);
  ForwardTile(const SoftmaxShape& shape, Real* scratch);

  // At most kSoftmaxTile queries, of which the first is at `position`.
  void start(HeadRows<const Real> q, int64_t rows, int64_t position, const KeyBand& band);
  // Lets the queries see those keys of [begin, end) that lie in the band. k and v hold the
  // document's keys from position 0 on.
  void see(HeadRows<const Real> k, HeadRows<const Real> v, int64_t begin, int64_t end);
  // Writes the results, o [rows, V] and lse [rows]; where a query saw nothing, 0 and -infinity (or
  // the sink's logit). sink: null, or one more logit in the denominator.
  void finish(const Real* sink, HeadRows<Real> o, Real* lse);

 private:
  void part(HeadRows<const Real> k, HeadRows<const Real> v, int64_t a, int64_t rows, int64_t begin,
            int64_t end);
  void one(HeadRows<const Real> k, HeadRows<const Real> v, int64_t begin, int64_t end);
  void mask(int64_t a, int64_t width, int64_t begin, int64_t end);

  SoftmaxShape shape_;
  KeyBand band_;
  int64_t rows_ = 0, position_ = 0;
  Real late_ = 1;                     // what of the scale is not in q_
  Real* q_;                           // [K, kSoftmaxTile], scaled and transposed; of one query [K]
  Real* x_;                           // [keys, kSoftmaxTile] scores; of one query [keys]
  Real *o_, *most_, *sum_, *shrink_;  // [kSoftmaxTile, V]; [kSoftmaxTile] each
};

// The queries of one tile with what flows back into them.
template <class Real>
struct QueryTile {
  HeadRows<const Real> q, dout;
  const Real* lse = nullptr;    // [rows]
  const Real* delta = nullptr;  // [rows] dout.o - dlse
  HeadRows<Real> dq;            // added to; may be absent
  int64_t rows = 0, position = 0;
};

template <class Real>
class BackwardTile {
 public:
  static int64_t scratch(const SoftmaxShape& shape);
  // Which gradients are wanted of keys and of values.
  BackwardTile(const SoftmaxShape& shape, bool want_k, bool want_v, Real* scratch);

  // The keys [begin, end) of a document, at most kSoftmaxTile; k and v as in ForwardTile::see.
  void start(HeadRows<const Real> k, HeadRows<const Real> v, int64_t begin, int64_t end);
  // Adds what the queries send back to the keys that they see, and to dq.
  void meet(const QueryTile<Real>& x, const KeyBand& band);
  // Writes the gradients of keys [begin, end) to rows begin... of dk and dv.
  void finish(HeadRows<Real> dk, HeadRows<Real> dv);

 private:
  void part(const QueryTile<Real>& x, const KeyBand& band, int64_t a, int64_t rows, int64_t begin,
            int64_t end);
  void gradients(const QueryTile<Real>& x, const KeyBand& band, int64_t i, int64_t begin,
                 int64_t end, Real* p, Real* d) const;

  SoftmaxShape shape_;
  bool want_k_, want_v_;
  HeadRows<const Real> k_;
  int64_t begin_ = 0, end_ = 0;
  Real *kt_, *vt_;  // [K, kSoftmaxTile], [V, kSoftmaxTile]
  Real *p_, *d_;    // [queries, kSoftmaxTile]: P, and the gradient of scores
  Real *dk_, *dv_;  // [kSoftmaxTile, K], [kSoftmaxTile, V]
};

}  // namespace weft::kernels
