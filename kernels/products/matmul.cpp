// Three products: y = x w', dx = dy w, dw = dy' x.
#include "kernels/products/matmul.h"

#include "kernels/products/matmul_reference.h"
#include "kernels/rows/rows.h"
#include "kernels/tile/cpu_gemm.h"

namespace weft::kernels {
namespace {

const Registered<Matmul> registered;

// A matrix whose rows or columns are contiguous and apart is used as it lies; any other is copied
// (a row repeated by stride 0, too: gemm() takes none).
Tensor lined(const Tensor& t) {
  const bool by_rows = t.stride(1) == 1 && (t.stride(0) >= t.size(1) || t.size(0) == 1);
  const bool by_columns = t.stride(0) == 1 && (t.stride(1) >= t.size(0) || t.size(1) == 1);
  return by_rows || by_columns ? t : t.contiguous();
}

template <class Real>
Matrix<const Real> matrix(const Tensor& t, bool transposed = false) {
  if (t.stride(1) == 1 && (t.stride(0) >= t.size(1) || t.size(0) == 1))
    return {t.data<Real>(), std::max(t.stride(0), t.size(1)), transposed};
  return {t.data<Real>(), std::max(t.stride(1), t.size(0)), !transposed};
}

}  // namespace

void Matmul::check(const Inputs<Tensor>& x, const Options&) {
  require(x.x.dims() == 2, "matmul: x has shape ", x.x.shape(), ", expected [R, I]");
  require(x.w.dims() == 2 && x.w.size(1) == x.x.size(1), "matmul: w has shape ", x.w.shape(),
          ", expected [O, ", x.x.size(1), "] for x ", x.x.shape());
  require(!x.bias || x.bias.shape() == Shape{x.w.size(0)}, "matmul: bias has shape ",
          x.bias.shape(), ", expected [", x.w.size(0), "]");
}

Outputs<Matmul> Matmul::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty({x.x.size(0), x.w.size(0)}, x.x.dtype(), x.x.device())};
}

void Matmul::cpu_forward(const Inputs<Tensor>& x, const Options&, Outputs<Tensor>& y, Saved*) {
  const Tensor a = lined(x.x), w = lined(x.w), bias = x.bias ? x.bias.contiguous() : x.bias;
  if (a.is_meta()) return;
  for_real(a.dtype(), [&]<class Real>() {
    const int64_t R = a.size(0), O = w.size(0);
    Real* const out = y.y.data<Real>();
    if (bias)
      parallel_ranges(R, cuts::kBiasRows, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) std::copy_n(bias.data<Real>(), O, out + r * O);
      });
    parallel_gemm<Real>(R, O, a.size(1), 1, matrix<Real>(a), matrix<Real>(w, true), bias ? 1 : 0,
                        {out, O});
  });
}

void Matmul::cpu_backward(const Inputs<Tensor>& x, const Options&, const Saved&,
                          const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor a = lined(x.x), w = lined(x.w), d = lined(dy.y);
  const Tensor by_rows = dx.bias ? with_rows(d) : Tensor();
  if (a.is_meta()) return;
  for_real(a.dtype(), [&]<class Real>() {
    const int64_t R = a.size(0), I = a.size(1), O = w.size(0);
    if (dx.x)
      parallel_gemm<Real>(R, I, O, 1, matrix<Real>(d), matrix<Real>(w), 0, {dx.x.data<Real>(), I});
    if (dx.w)
      parallel_gemm<Real>(O, I, R, 1, matrix<Real>(d, true), matrix<Real>(a), 0,
                          {dx.w.data<Real>(), I});
    if (!dx.bias) return;
    const auto flow = rows<const Real>(by_rows);
    parallel_ranges(O, cuts::kBiasColumns, [&](int64_t begin, int64_t end) {
      Real* __restrict__ sum = dx.bias.data<Real>();
      std::fill(sum + begin, sum + end, Real(0));
      for (int64_t r = 0; r < R; ++r) {
        const Real* __restrict__ from = flow[r];
        for (int64_t o = begin; o < end; ++o) sum[o] += from[o];
      }
    });
  });
}

}  // namespace weft::kernels
