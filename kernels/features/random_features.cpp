// Rows do not depend on each other. A row makes its exponents in blocks of kFeatureBlock features.
#include "kernels/features/random_features.h"

#include <cmath>
#include <limits>

#include "kernels/features/random_features_reference.h"
#include "kernels/rows/rows.h"
#include "kernels/tokens/checks.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

const Registered<RandomFeatures> registered;

// x [B, T, H, K] as a matrix of rows (b, t, h), and the projections in the dtype of the work.
template <class Real>
struct Problem {
  Problem(const Tensor& given, const Tensor& projections, double factor)
      : x(given.contiguous()),
        w(projections.to(dtype_of<Real>()).contiguous()),
        H(x.size(2)),
        K(x.size(3)),
        M(w.size(1)),
        rows(x.size(0) * x.size(1) * H),
        scale(static_cast<Real>(factor)) {}

  const Real* row(int64_t r) const { return x.data<Real>() + r * K; }
  const Real* weights(int64_t r, int64_t i) const { return w.data<Real>() + (r % H * M + i) * K; }
  Real half_square(int64_t r) const { return Real(0.5) * scale * scale * dot(row(r), row(r), K); }
  // p[j] = w_{first + j}.u for n features.
  void products(int64_t r, int64_t first, int64_t n, Real* p) const {
    for (int64_t j = 0; j < n; ++j) p[j] = scale * dot(weights(r, first + j), row(r), K);
  }
  template <class F>
  void each_row(const F& f) const {
    parallel_ranges(rows, row_grain(K * M), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) f(r);
    });
  }
  // Calls f(first feature, their number) for each block.
  template <class F>
  void each_block(const F& f) const {
    for (int64_t i = 0; i < M; i += kFeatureBlock) f(i, std::min(kFeatureBlock, M - i));
  }

  Tensor x, w;
  int64_t H, K, M, rows;
  Real scale;
};

template <class Real>
void features(const Problem<Real>& p, bool waves, const Real* shift, Real* y) {
  const Real by = 1 / std::sqrt(static_cast<Real>(p.M));
  const int64_t width = waves ? 2 * p.M : p.M;
  p.each_row([&](int64_t r) {
    const Real half = p.half_square(r), down = shift ? shift[r] : Real(0);
    p.each_block([&](int64_t first, int64_t n) {
      Real e[kFeatureBlock];
      p.products(r, first, n, e);
      Real* const to = y + r * width + first;
      if (!waves) {
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) to[j] = by * vexp(e[j] - half - down);
        return;
      }
      const Real size = by * std::exp(half - down);
      for (int64_t j = 0; j < n; ++j) {
        to[j] = size * std::cos(e[j]);
        to[p.M + j] = size * std::sin(e[j]);
      }
    });
  });
}

// With t_i the flow into the exponent w_i.u, and s into the one that all features of a row share:
// du = sum_i t_i w_i -+ s u.
template <class Real>
void gradients(const Problem<Real>& p, bool waves, const Real* shift, const Real* dy, Real* dx,
               Real* dshift) {
  const Real by = 1 / std::sqrt(static_cast<Real>(p.M));
  const int64_t width = waves ? 2 * p.M : p.M;
  p.each_row([&](int64_t r) {
    const Real half = p.half_square(r), down = shift ? shift[r] : Real(0);
    Real* const to = dx ? dx + r * p.K : nullptr;
    if (to) std::fill_n(to, p.K, Real(0));
    Real sum = 0;
    p.each_block([&](int64_t first, int64_t n) {
      Real t[kFeatureBlock];
      p.products(r, first, n, t);
      const Real* const flow = dy + r * width + first;
      if (waves) {
        const Real size = by * std::exp(half - down);
        for (int64_t j = 0; j < n; ++j) {
          const Real c = size * std::cos(t[j]), s = size * std::sin(t[j]);
          sum += flow[j] * c + flow[p.M + j] * s;
          t[j] = flow[p.M + j] * c - flow[j] * s;
        }
      } else {
        for (int64_t j = 0; j < n; ++j) {
          t[j] = flow[j] * by * vexp(t[j] - half - down);
          sum += t[j];
        }
      }
      for (int64_t j = 0; j < n && to; ++j) {
        const Real* const w = p.weights(r, first + j);
        for (int64_t d = 0; d < p.K; ++d) to[d] += t[j] * w[d];
      }
    });
    const Real own = (waves ? p.scale : -p.scale) * sum;
    for (int64_t d = 0; d < p.K && to; ++d) to[d] = p.scale * (to[d] + own * p.row(r)[d]);
    if (dshift) dshift[r] = -sum;
  });
}

}  // namespace

double RandomFeatures::scale_of(const Options& o, int64_t K) {
  return o.scale != 0 ? o.scale : std::pow(static_cast<double>(K), -0.25);
}

void RandomFeatures::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 4 && x.x.size(2) > 0 && x.x.size(3) > 0, name, ": x has shape ",
          x.x.shape(), ", expected [B, T, H, K] with heads and columns");
  const int64_t H = x.x.size(2), K = x.x.size(3);
  check_shape(name, "shift", x.shift, {x.x.size(0), x.x.size(1), H});
  require(o.kind == "positive" || o.kind == "trigonometric", name, ": kind = \"", o.kind,
          "\", expected positive or trigonometric");
  require(o.projection.defined(), name, ": projection [H, M, K] is missing");
  const bool fits = is_float(o.projection.dtype()) && o.projection.dims() == 3 &&
                    o.projection.size(0) == H && o.projection.size(2) == K &&
                    o.projection.size(1) > 0 && o.projection.device() == x.x.device();
  require(fits, name, ": projection is ", o.projection.dtype(), " ", o.projection.shape(), " on ",
          o.projection.device(), ", expected floats [", H, ", M, ", K, "] on ", x.x.device());
}

Outputs<RandomFeatures> RandomFeatures::outputs(const Inputs<Tensor>& x, const Options& o) {
  Shape shape = x.x.shape();
  shape[3] = o.projection.size(1) * (trigonometric(o) ? 2 : 1);
  return {empty(shape, x.x.dtype(), x.x.device())};
}

void RandomFeatures::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                 Saved*) {
  for_real(x.x.dtype(), [&]<class Real>() {
    const Problem<Real> p(x.x, o.projection, scale_of(o, x.x.size(3)));
    const Tensor shift = x.shift ? x.shift.contiguous() : x.shift;
    if (x.x.is_meta()) return;
    features(p, trigonometric(o), shift.data<Real>(), y.y.data<Real>());
  });
}

void RandomFeatures::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                  const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  for_real(x.x.dtype(), [&]<class Real>() {
    const Problem<Real> p(x.x, o.projection, scale_of(o, x.x.size(3)));
    const Tensor shift = x.shift ? x.shift.contiguous() : x.shift;
    const Tensor flow = dy.y.contiguous();
    if (x.x.is_meta()) return;
    gradients(p, trigonometric(o), shift.data<Real>(), flow.data<Real>(), dx.x.data<Real>(),
              dx.shift.data<Real>());
  });
}

Tensor largest_exponents(const Tensor& x, const Tensor& projection, double scale) {
  const Dtype wide = x.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const Tensor largest = empty({x.size(0), x.size(1), x.size(2)}, wide, x.device());
  if constexpr (has_cuda)
    if (x.device().takes_cuda_forms()) {
      cuda_largest_exponents(x, projection, scale, largest);
      return largest;
    }
  for_real(wide, [&]<class Real>() {
    const Problem<Real> p(x.to(wide), projection, scale);
    if (x.is_meta()) return;
    Real* const to = largest.data<Real>();
    p.each_row([&](int64_t r) {
      Real most = -std::numeric_limits<Real>::infinity();
      p.each_block([&](int64_t first, int64_t n) {
        Real e[kFeatureBlock];
        p.products(r, first, n, e);
        for (int64_t j = 0; j < n; ++j) most = std::max(most, e[j]);
      });
      to[r] = most - p.half_square(r);
    });
  });
  return largest;
}

RunningShift running_shift(const Tensor& exponents, const Tensor& initial, const Tensor& cu_seqlens,
                           int64_t group) {
  const int64_t B = exponents.size(0), T = exponents.size(1), H = exponents.size(2);
  check_documents("running_shift", cu_seqlens, B, T);
  const int64_t N = document_count(cu_seqlens, B);
  const auto make = [&](const Shape& shape) {
    return empty(shape, exponents.dtype(), exponents.device());
  };
  const RunningShift out{make({B, T, H}), make({B, T, H * group}), make({N, H})};
  if constexpr (has_cuda)
    if (exponents.device().takes_cuda_forms()) {
      cuda_running_shift(exponents, initial, cu_seqlens, group, out);
      return out;
    }
  if (exponents.is_meta()) return out;
  for_real(exponents.dtype(), [&]<class Real>() {
    const Documents documents(cu_seqlens, B, T);
    const View<const Real> e = view<const Real>(exponents), start = view<const Real>(initial);
    const View<Real> shift = view<Real>(out.shift), g = view<Real>(out.g),
                     last = view<Real>(out.last);
    parallel_for(N * H, [&](int64_t i) {
      const int64_t n = i / H, h = i % H, b = documents.row(n), begin = documents.begin(n);
      if (begin == documents.end(n)) return;
      Real most = start ? start(n, h) : e(b, begin, h);
      for (int64_t t = begin; t < documents.end(n); ++t) {
        const Real now = std::max(most, e(b, t, h));
        shift(b, t, h) = now;
        for (int64_t j = 0; j < group; ++j) g(b, t, h * group + j) = most - now;
        most = now;
      }
      last(n, h) = most;
    });
  });
  return out;
}

}  // namespace weft::kernels
