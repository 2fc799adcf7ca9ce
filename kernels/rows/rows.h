// What the operations of this folder share: matrices by rows, rows cut into blocks by shape,
// gathers and the scatters that undo them.
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>

#include "core/parallel.h"
#include "kernels/rows/cuts.h"
#include "kernels/rows/matrix.h"
#include "kernels/tile/vmath.h"

namespace weft::kernels {

template <class Real>
struct Rows {
  Real* data = nullptr;
  int64_t stride = 0;

  explicit operator bool() const { return data != nullptr; }
  Real* operator[](int64_t r) const { return data + r * stride; }
};

template <class Real>
Rows<Real> rows(const Tensor& t) {
  if (!t) return {};
  return {t.data<std::remove_const_t<Real>>(), t.stride(0)};
}

// How many rows of D columns make a piece of work worth a thread.
inline int64_t row_grain(int64_t D) {
  return std::max<int64_t>(1, cuts::kRowGrain / std::max<int64_t>(1, D));
}

// The sum of products, of two rows or of three.
template <class Real>
Real dot(const Real* __restrict__ a, const Real* __restrict__ b, int64_t n) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class Real>
Real dot(const Real* __restrict__ a, const Real* __restrict__ b, const Real* __restrict__ c,
         int64_t n) {
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i] * c[i];
  return sum;
}

// log(sum exp(row)), relative to the largest.
template <class Real>
Real log_sum_exp(const Real* __restrict__ row, int64_t n) {
  Real most = row[0], sum = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = row[i] > most ? row[i] : most;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += vexp(row[i] - most);
  return most + std::log(sum);
}

// Rows cut into at most kRowBlocks blocks. A sum over all rows is made block by block, then over
// the blocks in order: the same bits whoever computes which block.
struct RowBlocks {
  int64_t rows, size, count;

  explicit RowBlocks(int64_t R)
      : rows(R),
        size(std::max(cuts::kBlockRows, (R + cuts::kRowBlocks - 1) / cuts::kRowBlocks)),
        count((R + size - 1) / size) {}
  // Calls f(block, first row, end).
  template <class F>
  void each(const F& f) const {
    parallel_for(count, [&](int64_t b) { f(b, b * size, std::min(rows, (b + 1) * size)); });
  }
};

// to[n] = sum over blocks, first to last, of parts [count, n].
template <class Real>
void sum_blocks(const Real* parts, int64_t count, int64_t n, Real* to) {
  parallel_ranges(n, cuts::kSumGrain, [&](int64_t begin, int64_t end) {
    std::fill(to + begin, to + end, Real(0));
    for (int64_t b = 0; b < count; ++b) {
      const Real* __restrict__ part = parts + b * n;
      for (int64_t i = begin; i < end; ++i) to[i] += part[i];
    }
  });
}

// Throws Error unless `index` is i32 of the given shape. `what` is "embedding: ids".
inline void check_index_shape(std::string_view what, const Tensor& index, const Shape& shape) {
  require(index.defined(), what, " is missing, expected i32 ", shape);
  require(index.dtype() == Dtype::i32 && index.shape() == shape, what, " is ", index.dtype(), " ",
          index.shape(), ", expected i32 ", shape);
}

// Throws Error that names the first element outside 0 .. limit - 1. `of` says what there are so
// many of. Elements on a GPU are not looked at, and a meta tensor has none.
inline void check_index(std::string_view what, const Tensor& index, int64_t limit,
                        std::string_view of) {
  if (!index.device().is_cpu()) return;
  const View<const int32_t> v = view<const int32_t>(index);
  for (int64_t i = 0; i < index.numel(); ++i)
    if (v(i) < 0 || v(i) >= limit) [[unlikely]]
      fail(what, "[", i, "] = ", v(i), ", expected 0 .. ", limit - 1, ": ", of, " has ", limit,
           " rows");
}

// out [R, D] = 0, then out[index[q]] += factor(q) * from(q)[:] for q = 0, 1, ... A thread owns some
// columns, hence the order of a sum is that of q.
template <class Real, class From, class Factor>
void scatter_rows(int64_t Q, int64_t R, int64_t D, const int32_t* index, const From& from,
                  const Factor& factor, Real* out) {
  parallel_ranges(R, row_grain(D), [&](int64_t begin, int64_t end) {
    std::fill(out + begin * D, out + end * D, Real(0));
  });
  const int64_t width = Q * D < cuts::kScatterWhole ? D : cuts::kScatterStrip;
  parallel_ranges(D, width, [&](int64_t begin, int64_t end) {
    for (int64_t q = 0; q < Q; ++q) {
      const Real f = factor(q);
      const Real* __restrict__ source = from(q);
      Real* __restrict__ to = out + index[q] * D;
      for (int64_t d = begin; d < end; ++d) to[d] += f * source[d];
    }
  });
}

}  // namespace weft::kernels
