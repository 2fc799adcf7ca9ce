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
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  T* operator[](int64_t i) const { return data + i * stride; }
  Rows from(int64_t i) const { return {data + i * stride, stride}; }
  explicit operator bool() const { return data != nullptr; }
  operator Rows<const T>() const { return {data, stride}; }
};

// From token t on, in a tensor [B, T, H, width] whose last dimension is contiguous; absent if it
// is.
template <class T>
Rows<T> rows_of(const View<T>& v, int64_t b, int64_t t, int64_t h) {
  if (!v) return {};
  return {v.at(b, t, h), v.stride(1)};
}

// What is the same for all tiles of a call. Scores are x = softcap * tanh(scale * q.k / softcap),
// or scale * q.k where softcap is 0.
struct SoftmaxShape {
  int64_t K = 0, V = 0;
  double scale = 1, softcap = 0;
};

template <class T>
class ForwardTile {
 public:
  // Numbers of scratch memory that a tile needs.
  static int64_t scratch(const SoftmaxShape& shape);
  ForwardTile(const SoftmaxShape& shape, T* scratch);

  // At most kSoftmaxTile queries, of which the first is at `position`.
  void start(Rows<const T> q, int64_t rows, int64_t position, const KeyBand& band);
  // Lets the queries see those keys of [begin, end) that lie in the band. k and v hold the
  // document's keys from position 0 on.
  void see(Rows<const T> k, Rows<const T> v, int64_t begin, int64_t end);
  // Writes the results, o [rows, V] and lse [rows]; where a query saw nothing, 0 and -infinity (or
  // the sink's logit). sink: null, or one more logit in the denominator.
  void finish(const T* sink, Rows<T> o, T* lse);

 private:
  void part(Rows<const T> k, Rows<const T> v, int64_t a, int64_t rows, int64_t begin, int64_t end);
  void one(Rows<const T> k, Rows<const T> v, int64_t begin, int64_t end);
  void mask(int64_t a, int64_t width, int64_t begin, int64_t end);

  SoftmaxShape shape_;
  KeyBand band_;
  int64_t rows_ = 0, position_ = 0;
  T late_ = 1;                     // what of the scale is not in q_
  T* q_;                           // [K, kSoftmaxTile], scaled and transposed; of one query [K]
  T* x_;                           // [keys, kSoftmaxTile] scores; of one query [keys]
  T *o_, *most_, *sum_, *shrink_;  // [kSoftmaxTile, V]; [kSoftmaxTile] each
};

// The queries of one tile with what flows back into them.
template <class T>
struct QueryTile {
  Rows<const T> q, dout;
  const T* lse = nullptr;    // [rows]
  const T* delta = nullptr;  // [rows] dout.o - dlse
  Rows<T> dq;                // added to; may be absent
  int64_t rows = 0, position = 0;
};

template <class T>
class BackwardTile {
 public:
  static int64_t scratch(const SoftmaxShape& shape);
  // Which gradients are wanted of keys and of values.
  BackwardTile(const SoftmaxShape& shape, bool want_k, bool want_v, T* scratch);

  // The keys [begin, end) of a document, at most kSoftmaxTile; k and v as in ForwardTile::see.
  void start(Rows<const T> k, Rows<const T> v, int64_t begin, int64_t end);
  // Adds what the queries send back to the keys that they see, and to dq.
  void meet(const QueryTile<T>& x, const KeyBand& band);
  // Writes the gradients of keys [begin, end) to rows begin... of dk and dv.
  void finish(Rows<T> dk, Rows<T> dv);

 private:
  void part(const QueryTile<T>& x, const KeyBand& band, int64_t a, int64_t rows, int64_t begin,
            int64_t end);
  void gradients(const QueryTile<T>& x, const KeyBand& band, int64_t i, int64_t begin, int64_t end,
                 T* p, T* d) const;

  SoftmaxShape shape_;
  bool want_k_, want_v_;
  Rows<const T> k_;
  int64_t begin_ = 0, end_ = 0;
  T *kt_, *vt_;  // [K, kSoftmaxTile], [V, kSoftmaxTile]
  T *p_, *d_;    // [queries, kSoftmaxTile]: P, and the gradient of scores
  T *dk_, *dv_;  // [kSoftmaxTile, K], [kSoftmaxTile, V]
};

}  // namespace weft::kernels
