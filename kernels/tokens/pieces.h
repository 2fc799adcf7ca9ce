// Documents packed into a row of tokens, and the pieces in which the chunkwise forms walk them.
//
// A row lies on a fixed grid of chunks of C tokens; a piece is what one document has in one chunk.
// So a piece starts from the state at its chunk's start (kept once for each chunk of the grid,
// hence by T and C alone, however many documents there are) or, if it is the first of its document,
// from initial_state[document] or zero; and it ends at its chunk's end or with its document.
#pragma once

#include <algorithm>
#include <string_view>

#include "core/tensor.h"

namespace weft::kernels {

struct Piece {
  int64_t begin = 0, end = 0;  // tokens of the row
  int64_t chunk = 0;
  int64_t document = 0;  // its place in initial_state and final_state
  bool first = false;    // it holds its document's first token
  bool last = false;     // it holds its document's last token
  int64_t size() const { return end - begin; }
};

// N: the documents of `cu_seqlens`, or B without it.
inline int64_t document_count(const Tensor& cu_seqlens, int64_t B) {
  return cu_seqlens ? cu_seqlens.size(0) - 1 : B;
}

// Throws Error unless cu_seqlens is absent, or i32 [N + 1] on the CPU, rising strictly from 0 to T,
// and B is 1. After the last token there may be empty documents, so that N need not tell how many
// there are, unless `states` says that the call gives or wants a state of each.
inline void check_documents(std::string_view name, const Tensor& cu_seqlens, int64_t B, int64_t T,
                            bool states = false) {
  if (!cu_seqlens) return;
  require(cu_seqlens.dtype() == Dtype::i32 && cu_seqlens.dims() == 1 && cu_seqlens.size(0) >= 2 &&
              cu_seqlens.device().is_cpu(),
          name, ": cu_seqlens is ", cu_seqlens.dtype(), " ", cu_seqlens.shape(), " on ",
          cu_seqlens.device(), ", expected i32 [N + 1] on cpu with N >= 1");
  require(B == 1, name, ": cu_seqlens with B = ", B,
          "; packed documents lie in one row, so reshape [B, T] to [1, B * T]");
  const View<const int32_t> cu = view<const int32_t>(cu_seqlens);
  const int64_t N = cu.size(0) - 1;
  for (int64_t n = 0; n < N; ++n) {
    if (cu(n) < cu(n + 1)) continue;
    const bool behind = n > 0 && cu(n) == T && cu(n + 1) == T;
    require(
        behind && !states, name, ": cu_seqlens[", n, "] = ", cu(n), ", cu_seqlens[", n + 1,
        "] = ", cu(n + 1), "; expected strictly rising",
        behind ? " (an empty document has no state to give or return)" : " (no empty documents)");
  }
  require(cu(0) == 0 && cu(N) == T, name, ": cu_seqlens runs from ", cu(0), " to ", cu(N),
          ", expected from 0 to T = ", T);
}

class Documents {
 public:
  // B rows of T tokens on a grid of C. Without cu_seqlens each row is one document.
  Documents(const Tensor& cu_seqlens, int64_t B, int64_t T, int64_t C = 1)
      : cu_seqlens_(cu_seqlens), T_(T), C_(C), N_(document_count(cu_seqlens, B)) {
    if (cu_seqlens) cu_ = view<const int32_t>(cu_seqlens_);
  }

  int64_t count() const { return N_; }                         // N
  int64_t chunks() const { return (T_ + C_ - 1) / C_; }        // of a row
  int64_t row(int64_t n) const { return cu_ ? 0 : n; }         // the row of document n
  int64_t begin(int64_t n) const { return cu_ ? cu_(n) : 0; }  // its first token in that row
  int64_t end(int64_t n) const { return cu_ ? cu_(n + 1) : T_; }

  // The document of token t of a row.
  int64_t of(int64_t row, int64_t t) const {
    if (!cu_) return row;
    int64_t low = 0, high = N_;  // cu[low] <= t < cu[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (cu_(middle) <= t ? low : high) = middle;
    }
    return low;
  }

  // Does the document of the token before chunk c go on in it?
  bool continues(int64_t row, int64_t c) const {
    return c > 0 && c < chunks() && begin(of(row, c * C_)) < c * C_;
  }

  // Calls f(piece) for the pieces of one chunk of a row, first to last.
  template <class F>
  void for_pieces(int64_t row, int64_t chunk, const F& f) const {
    const int64_t stop = std::min(T_, (chunk + 1) * C_);
    int64_t n = of(row, chunk * C_);
    for (int64_t t = chunk * C_; t < stop; ++n) {
      const Piece p = piece(t, std::min(stop, end(n)), chunk, n);
      f(p);
      t = p.end;
    }
  }
  // The same, last to first.
  template <class F>
  void for_pieces_back(int64_t row, int64_t chunk, const F& f) const {
    const int64_t start = chunk * C_;
    int64_t t = std::min(T_, start + C_);
    for (int64_t n = of(row, t - 1); t > start; --n) {
      const Piece p = piece(std::max(start, begin(n)), t, chunk, n);
      f(p);
      t = p.begin;
    }
  }

 private:
  Piece piece(int64_t from, int64_t to, int64_t chunk, int64_t n) const {
    return {from, to, chunk, n, from == begin(n), to == end(n)};
  }

  Tensor cu_seqlens_;
  View<const int32_t> cu_;
  int64_t T_, C_, N_;
};

// A tensor [B, T, heads, width] whose rows of one head make a matrix as gemm() takes it: itself
// where it lies so, else a copy. matrix_stride() is the distance of those rows.
inline Tensor with_matrix_rows(const Tensor& t) {
  if (!t) return t;
  const bool lies =
      (t.stride(3) == 1 || t.size(3) == 1) && (t.stride(1) >= t.size(3) || t.size(1) == 1);
  return lies ? t : t.contiguous();
}
inline int64_t matrix_stride(const Tensor& t) { return std::max(t.stride(1), t.size(3)); }

}  // namespace weft::kernels
