#include "kernels/rows/pointwise.h"

#include <vector>

#include "core/parallel.h"
#include "kernels/rows/cuts.h"
#include "kernels/rows/pointwise_loops.h"

namespace weft::kernels {
namespace {

constexpr int64_t kGrain = cuts::kPointwiseGrain;

template <class Real, class From>
Real number(From value) {
  if constexpr (std::is_same_v<Real, bf16>)
    return bf16(static_cast<float>(value));
  else
    return static_cast<Real>(value);
}

// out[i] = f(a[i], b[i])
template <class F>
void elementwise(const Tensor& a, const Tensor& b, const Tensor& out, const F& f) {
  for_dtype(a.dtype(), [&]<class Real>() {
    const Real* x = a.data<Real>();
    const Real* y = b.data<Real>();
    Real* z = out.data<Real>();
    parallel_ranges(a.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) z[i] = number<Real>(f(x[i], y[i]));
    });
  });
}

Tensor pointwise(Pointwise what, const Tensor& a_in, const Tensor& b_in) {
  const Tensor a = a_in.contiguous(), b = b_in.contiguous(), out = empty_like(a);
  if (out.is_meta()) return out;
  if constexpr (has_cuda)
    if (a.device().is_cuda()) return cuda_pointwise(what, a, b, out), out;
  if (what == Pointwise::add)
    elementwise(a, b, out, [](auto x, auto y) { return x + y; });
  else
    elementwise(a, b, out, [](auto x, auto y) { return x * y; });
  return out;
}

// out = f(x, w[along dim])
template <class F>
void loop_along(const Tensor& x, const Tensor& w, const Around& s, const Tensor& out, const F& f) {
  for_dtype(x.dtype(), [&]<class Real>() {
    parallel_ranges(s.before * s.size, std::max<int64_t>(1, kGrain / s.after),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t r = begin; r < end; ++r) {
                        const Real factor = w.data<Real>()[r % s.size];
                        const Real* from = x.data<Real>() + r * s.after;
                        Real* to = out.data<Real>() + r * s.after;
                        for (int64_t i = 0; i < s.after; ++i)
                          to[i] = number<Real>(f(from[i], factor));
                      }
                    });
  });
}

Tensor along(Pointwise what, const Tensor& x_in, const Tensor& w_in, int dim) {
  if (x_in.dtype() != w_in.dtype() && !x_in.device().takes_cuda_forms())
    return along(what, x_in.to(w_in.dtype()), w_in, dim).to(x_in.dtype());
  const Tensor x = x_in.contiguous(), w = w_in.contiguous();
  const Around s = around(x.shape(), dim);
  require(w.shape() == Shape{s.size}, "along dimension ", dim, " of ", x.shape(),
          ": the vector has shape ", w.shape());
  const Tensor out = empty_like(x);
  if (out.is_meta()) return out;
  if constexpr (has_cuda)
    if (x.device().is_cuda()) return cuda_along(what, x, w, s, out), out;
  if (what == Pointwise::add)
    loop_along(x, w, s, out, [](auto a, auto b) { return a + b; });
  else
    loop_along(x, w, s, out, [](auto a, auto b) { return a * b; });
  return out;
}

}  // namespace

Tensor added(const Tensor& a, const Tensor& b) { return pointwise(Pointwise::add, a, b); }
Tensor multiplied(const Tensor& a, const Tensor& b) { return pointwise(Pointwise::multiply, a, b); }
Tensor added_along(const Tensor& x, const Tensor& w, int dim) {
  return along(Pointwise::add, x, w, dim);
}
Tensor multiplied_along(const Tensor& x, const Tensor& w, int dim) {
  return along(Pointwise::multiply, x, w, dim);
}

Tensor scaled(const Tensor& x_in, double factor) {
  const Tensor x = x_in.contiguous(), out = empty_like(x);
  if (out.is_meta()) return out;
  if constexpr (has_cuda)
    if (x.device().is_cuda()) return cuda_scaled(x, factor, out), out;
  elementwise(x, x, out, [factor](auto a, auto) {
    return number<decltype(a)>(static_cast<double>(a) * factor);
  });
  return out;
}

Tensor reduced_to(const Tensor& a_in, const Tensor& b_in, int dim, Dtype dtype) {
  const Tensor a = a_in.contiguous(), b = b_in ? b_in.contiguous() : Tensor();
  const Around s = around(a.shape(), dim);
  const Tensor out = empty({s.size}, dtype, a.device());
  if constexpr (has_cuda)
    if (a.device().takes_cuda_forms()) return cuda_reduced(a, b, s, out), out;
  if (out.is_meta()) return out;
  if (a.dtype() != dtype) return out.copy_from(reduced_to(a, b, dim, a.dtype())), out;
  for_dtype(a.dtype(), [&]<class Real>() {
    parallel_ranges(s.size, cuts::kReducedGrain, [&](int64_t begin, int64_t end) {
      std::vector<double> total(static_cast<size_t>(end - begin), 0.0);
      for (int64_t r = 0; r < s.before; ++r)
        for (int64_t j = begin; j < end; ++j) {
          const int64_t at = (r * s.size + j) * s.after;
          double part = 0;
          for (int64_t i = at; i < at + s.after; ++i)
            part += static_cast<double>(a.data<Real>()[i]) *
                    (b ? static_cast<double>(b.data<Real>()[i]) : 1.0);
          total[static_cast<size_t>(j - begin)] += part;
        }
      for (int64_t j = begin; j < end; ++j)
        out.data<Real>()[j] = number<Real>(total[static_cast<size_t>(j - begin)]);
    });
  });
  return out;
}

}  // namespace weft::kernels
