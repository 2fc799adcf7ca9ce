// Documents and their pieces (pieces.h) as a kernel walks them, and tensors of tokens as it reads
// them.
#pragma once

#include "core/cuda.cuh"
#include "kernels/tokens/documents.cuh"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {

// What one document has of one chunk of the grid.
struct GridPiece {
  int begin, end;    // tokens of the row
  int chunk;         // of the grid
  bool first, last;  // it holds its document's first, last token
  __device__ int size() const { return end - begin; }
};

// The documents of a call, on a grid of C tokens.
template <int C>
struct DocumentWalk {
  const int32_t* cu = nullptr;  // [N + 1]; absent: each row is a document
  int T = 0, N = 0;

  __device__ int row(int n) const { return cu ? 0 : n; }
  __device__ int begin(int n) const { return cu ? cu[n] : 0; }
  __device__ int end(int n) const { return cu ? cu[n + 1] : T; }

  // The document of token t of a row.
  __device__ int of(int row, int t) const {
    if (!cu) return row;
    return document_at(cu, N, t);
  }
  // The piece of document [begin, end) that starts with token t, and that which ends before it.
  __device__ static GridPiece from(int begin, int end, int t) {
    const int to = min(end, (t / C + 1) * C);
    return {t, to, t / C, t == begin, to == end};
  }
  __device__ static GridPiece up_to(int begin, int end, int t) {
    const int from = max(begin, (t - 1) / C * C);
    return {from, t, (t - 1) / C, from == begin, t == end};
  }
};

// A tensor [B, T, heads, width] whose rows are contiguous.
template <class Real>
struct TokenRows {
  Real* data = nullptr;
  int64_t by_row = 0, by_token = 0, by_head = 0;

  __device__ Real* at(int b, int t, int h) const {
    return data + b * by_row + t * by_token + h * by_head;
  }
  __device__ explicit operator bool() const { return data != nullptr; }
};

template <class Real>
TokenRows<Real> token_rows(const Tensor& t) {
  if (!t) return {};
  return {dptr<Real>(t), t.stride(0), t.stride(1), t.stride(2)};
}
// Itself where its rows are contiguous, else a copy.
inline Tensor with_rows(const Tensor& t) {
  return !t || t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

// cu_seqlens where kernels can read it.
inline Tensor on_device(const Tensor& cu_seqlens, Device device) {
  return cu_seqlens ? cu_seqlens.to(device) : cu_seqlens;
}

// Calls f.template operator()<N>() with the least N of 64, 128, 256 that holds `width`; in f32,
// which is there for checks and small models, of 64 and 256.
template <class Real, class F>
void for_padded_width(int64_t width, F&& f) {
  if (width <= 64) return f.template operator()<64>();
  if (sizeof(Real) == 2 && width <= 128) return f.template operator()<128>();
  f.template operator()<256>();
}

}  // namespace weft::kernels
