// The moves of rows around experts; the router is in router.cpp.
#include "kernels/experts/routing.h"

#include "kernels/experts/routing_reference.h"
#include "kernels/rows/rows.h"
#include "kernels/tile/cpu_gemm.h"

namespace weft::kernels {
namespace {

const Registered<GroupedMatmul> grouped_matmul;
const Registered<PermuteRows> permute_rows;
const Registered<CombineRows> combine_rows;

constexpr int64_t kTile = cuts::kExpertTile;

// As with_rows, for gemm(), which takes no repeated rows (stride 0).
Tensor with_rows_apart(const Tensor& t) {
  return t.stride(0) < t.size(1) && t.size(0) > 1 ? t.contiguous() : with_rows(t);
}

// Calls f(expert, first row, count) for tiles of at most kTile rows of one expert, in parallel.
template <class F>
void for_tiles(const Tensor& offsets, const F& f) {
  const int64_t* const at = offsets.data<int64_t>();
  const int64_t E = offsets.size(0) - 1;
  const auto tiles = [&](int64_t e) { return (at[e + 1] - at[e] + kTile - 1) / kTile; };
  int64_t total = 0;
  for (int64_t e = 0; e < E; ++e) total += tiles(e);
  parallel_for(total, [&](int64_t task) {
    int64_t e = 0;
    for (; task >= tiles(e); ++e) task -= tiles(e);
    const int64_t row = at[e] + task * kTile;
    f(e, row, std::min(kTile, at[e + 1] - row));
  });
}

}  // namespace

ExpertOrder sorted_by_expert(const Tensor& index, int64_t E) {
  if (index.device().takes_cuda_forms()) {
    if constexpr (has_cuda) return cuda_sorted_by_expert(index, E);
    fail("sorted_by_expert: this program has no CUDA form of it");
  }
  const int64_t R = index.size(0), k = index.size(1);
  const Tensor chosen = index.contiguous();
  const ExpertOrder order{empty({R * k}, Dtype::i32, index.device()),
                          empty({R * k}, Dtype::i32, index.device()),
                          empty({E + 1}, Dtype::i64, index.device())};
  if (index.is_meta()) return order;
  const int32_t* const expert = chosen.data<int32_t>();
  int64_t* const offsets = order.offsets.data<int64_t>();
  std::fill_n(offsets, E + 1, 0);
  for (int64_t i = 0; i < R * k; ++i) ++offsets[expert[i] + 1];
  for (int64_t e = 0; e < E; ++e) offsets[e + 1] += offsets[e];
  std::vector<int64_t> next(offsets, offsets + E);
  for (int64_t i = 0; i < R * k; ++i) {
    const int64_t q = next[static_cast<size_t>(expert[i])]++;
    order.token.data<int32_t>()[q] = static_cast<int32_t>(i / k);
    order.slot.data<int32_t>()[i] = static_cast<int32_t>(q);
  }
  return order;
}

void GroupedMatmul::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 2, "grouped_matmul: x has shape ", x.x.shape(), ", expected [R, I]");
  const int64_t R = x.x.size(0), I = x.x.size(1);
  require(x.w.dims() == 3 && x.w.size(2) == I, "grouped_matmul: w has shape ", x.w.shape(),
          ", expected [E, O, ", I, "] for x ", x.x.shape());
  const int64_t E = x.w.size(0);
  require(
      o.offsets.defined() && o.offsets.dtype() == Dtype::i64 && o.offsets.shape() == Shape{E + 1},
      "grouped_matmul: offsets is ", o.offsets.dtype(), " ", o.offsets.shape(), ", expected i64 [",
      E + 1, "]");
  if (!o.offsets.device().is_cpu()) return;
  const View<const int64_t> at = view<const int64_t>(o.offsets);
  require(at(0) == 0 && at(E) == R, "grouped_matmul: offsets run from ", at(0), " to ", at(E),
          ", expected from 0 to R = ", R);
  for (int64_t e = 0; e < E; ++e)
    require(at(e) <= at(e + 1), "grouped_matmul: offsets[", e, "] = ", at(e), ", offsets[", e + 1,
            "] = ", at(e + 1), "; expected never falling");
}

Outputs<GroupedMatmul> GroupedMatmul::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty({x.x.size(0), x.w.size(1)}, x.x.dtype(), x.x.device())};
}

void GroupedMatmul::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                Saved*) {
  const Tensor in = with_rows_apart(x.x), w = x.w.contiguous(), offsets = o.offsets.contiguous();
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    const int64_t I = in.size(1), O = w.size(1);
    const auto xs = rows<const Real>(in);
    const int64_t stride = std::max(xs.stride, I);
    for_tiles(offsets, [&](int64_t e, int64_t row, int64_t count) {
      gemm<Real>(count, O, I, 1, {xs[row], stride}, {w.data<Real>() + e * O * I, I, true}, 0,
                 {y.y.data<Real>() + row * O, O});
    });
  });
}

void GroupedMatmul::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                 const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor in = with_rows_apart(x.x), w = x.w.contiguous(), d = with_rows_apart(dy.y);
  const Tensor offsets = o.offsets.contiguous();
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    const int64_t E = w.size(0), O = w.size(1), I = w.size(2);
    const auto xs = rows<const Real>(in), flow = rows<const Real>(d);
    const int64_t x_stride = std::max(xs.stride, I), d_stride = std::max(flow.stride, O);
    if (dx.x)
      for_tiles(offsets, [&](int64_t e, int64_t row, int64_t count) {
        gemm<Real>(count, I, O, 1, {flow[row], d_stride}, {w.data<Real>() + e * O * I, I}, 0,
                   {dx.x.data<Real>() + row * I, I});
      });
    if (!dx.w) return;
    const int64_t strips = (O + kTile - 1) / kTile;
    parallel_for(E * strips, [&](int64_t task) {
      const int64_t e = task / strips, out = task % strips * kTile;
      const int64_t row = offsets.data<int64_t>()[e], count = offsets.data<int64_t>()[e + 1] - row;
      Real* const to = dx.w.data<Real>() + (e * O + out) * I;
      const int64_t size = std::min(kTile, O - out);
      if (count == 0)
        std::fill_n(to, size * I, Real(0));
      else
        gemm<Real>(size, I, count, 1, {flow[row] + out, d_stride, true}, {xs[row], x_stride}, 0,
                   {to, I});
    });
  });
}

void PermuteRows::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 2, "permute_rows: x has shape ", x.x.shape(), ", expected [R, D]");
  require(o.index.defined() && o.index.dims() == 1, "permute_rows: index has shape ",
          o.index.shape(), ", expected i32 [Q]");
  check_index_shape("permute_rows: index", o.index, o.index.shape());
  require(!x.weight || x.weight.shape() == o.index.shape(), "permute_rows: weight has shape ",
          x.weight.shape(), ", expected ", o.index.shape(), " as index");
  check_index("permute_rows: index", o.index, x.x.size(0), "x");
}

Outputs<PermuteRows> PermuteRows::outputs(const Inputs<Tensor>& x, const Options& o) {
  return {empty({o.index.size(0), x.x.size(1)}, x.x.dtype(), x.x.device())};
}

void PermuteRows::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                              Saved*) {
  const Tensor in = with_rows(x.x), index = o.index.contiguous();
  const Tensor weight = x.weight ? x.weight.contiguous() : Tensor();
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    const int64_t Q = index.size(0), D = in.size(1);
    const auto xs = rows<const Real>(in), ys = rows<Real>(y.y);
    parallel_ranges(Q, row_grain(D), [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) {
        const Real factor = weight ? weight.data<Real>()[q] : Real(1);
        const Real* __restrict__ from = xs[index.data<int32_t>()[q]];
        Real* __restrict__ to = ys[q];
        for (int64_t i = 0; i < D; ++i) to[i] = factor * from[i];
      }
    });
  });
}

void PermuteRows::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor in = with_rows(x.x), d = with_rows(dy.y), index = o.index.contiguous();
  const Tensor weight = x.weight ? x.weight.contiguous() : Tensor();
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    const int64_t Q = index.size(0), R = in.size(0), D = in.size(1);
    const auto xs = rows<const Real>(in), flow = rows<const Real>(d);
    const int32_t* const at = index.data<int32_t>();
    const Real* const w = weight.data<Real>();
    if (dx.x)
      scatter_rows<Real>(
          Q, R, D, at, [&](int64_t q) { return flow[q]; },
          [&](int64_t q) { return w ? w[q] : Real(1); }, dx.x.data<Real>());
    if (dx.weight)
      parallel_ranges(Q, row_grain(D), [&](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q)
          dx.weight.data<Real>()[q] = dot(flow[q], xs[at[q]], D);
      });
  });
}

void CombineRows::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 2, "combine_rows: x has shape ", x.x.shape(), ", expected [Q, D]");
  require(x.weight.dims() == 2, "combine_rows: weight has shape ", x.weight.shape(),
          ", expected [R, k]");
  check_index_shape("combine_rows: index", o.index, {x.weight.numel()});
  check_index("combine_rows: index", o.index, x.x.size(0), "x");
}

Outputs<CombineRows> CombineRows::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty({x.weight.size(0), x.x.size(1)}, x.x.dtype(), x.x.device())};
}

void CombineRows::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                              Saved*) {
  const Tensor in = with_rows(x.x), weight = x.weight.contiguous(), index = o.index.contiguous();
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    const int64_t R = weight.size(0), k = weight.size(1), D = in.size(1);
    const auto xs = rows<const Real>(in), ys = rows<Real>(y.y);
    parallel_ranges(R, row_grain(D * k), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        Real* __restrict__ to = ys[r];
        std::fill_n(to, D, Real(0));
        for (int64_t q = r * k; q < (r + 1) * k; ++q) {
          const Real factor = weight.data<Real>()[q];
          const Real* __restrict__ from = xs[index.data<int32_t>()[q]];
          for (int64_t i = 0; i < D; ++i) to[i] += factor * from[i];
        }
      }
    });
  });
}

void CombineRows::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                               const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor in = with_rows(x.x), d = with_rows(dy.y);
  const Tensor weight = x.weight.contiguous(), index = o.index.contiguous();
  if (in.is_meta()) return;
  for_real(in.dtype(), [&]<class Real>() {
    const int64_t R = weight.size(0), k = weight.size(1), D = in.size(1);
    const auto xs = rows<const Real>(in), flow = rows<const Real>(d);
    const int32_t* const at = index.data<int32_t>();
    if (dx.x)
      scatter_rows<Real>(
          R * k, in.size(0), D, at, [&](int64_t q) { return flow[q / k]; },
          [&](int64_t q) { return weight.data<Real>()[q]; }, dx.x.data<Real>());
    if (dx.weight)
      parallel_ranges(R * k, row_grain(D), [&](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q)
          dx.weight.data<Real>()[q] = dot(flow[q / k], xs[at[q]], D);
      });
  });
}

}  // namespace weft::kernels
