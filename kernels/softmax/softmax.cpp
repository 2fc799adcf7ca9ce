#include "kernels/softmax/softmax.h"

#include <cmath>

#include "core/parallel.h"

namespace weft::kernels {
namespace {

Tensor with_contiguous_rows(const Tensor& t) {
  return !t || t.stride(-1) == 1 ? t : t.contiguous();
}

}  // namespace

void check_softmax(std::string_view name, const Tensor& q, const Tensor& k, const Tensor& v,
                   double softcap, const Tensor& cu_seqlens) {
  require(q.dims() == 4, name, ": q has shape ", q.shape(), ", expected [B, T, H, K]");
  require(k.dims() == 4 && k.size(0) == q.size(0) && k.size(3) == q.size(3), name, ": k has shape ",
          k.shape(), ", expected [", q.size(0), ", S, Hk, ", q.size(3), "] for q ", q.shape());
  require(
      v.dims() == 4 && v.size(0) == k.size(0) && v.size(1) == k.size(1) && v.size(2) == k.size(2),
      name, ": v has shape ", v.shape(), ", expected [", k.size(0), ", ", k.size(1), ", ",
      k.size(2), ", V] for k ", k.shape());
  require(k.size(2) > 0 && q.size(2) % k.size(2) == 0, name, ": q has ", q.size(2), " heads and k ",
          k.size(2), "; expected a multiple of the key heads");
  require(softcap >= 0, name, ": softcap is ", softcap, ", expected 0 (none) or a positive number");
  require(!cu_seqlens || q.size(1) == k.size(1), name, ": cu_seqlens with T = ", q.size(1),
          " and S = ", k.size(1), "; packed documents need S = T");
  check_documents(name, cu_seqlens, q.size(0), q.size(1));
}

void check_position(std::string_view name, const Tensor& q, const Tensor& position,
                    const Tensor& cu_seqlens) {
  if (!position) return;
  require(position.dtype() == Dtype::i32 && position.shape() == Shape{1} &&
              position.device() == q.device(),
          name, ": position is ", position.dtype(), " ", position.shape(), " on ",
          position.device(), ", expected i32 [1] on ", q.device());
  require(q.size(1) == 1 && !cu_seqlens, name, ": position with T = ", q.size(1),
          "; it is that of a single query, T = 1, without cu_seqlens");
}

int64_t rows_held(const Tensor& position, int64_t S) {
  const int64_t p = *position.data<int32_t>();
  require(p >= 0, "position ", p, ", expected 0 or more");
  return std::min(p + 1, S);
}

SoftmaxCall::SoftmaxCall(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, double scale,
                         double softcap, const Tensor& cu_seqlens)
    : q(with_contiguous_rows(q_in)),
      k(with_contiguous_rows(k_in)),
      v(with_contiguous_rows(v_in)),
      B(q.size(0)),
      T(q.size(1)),
      S(k.size(1)),
      H(q.size(2)),
      Hk(k.size(2)),
      shape{.K = q.size(3), .V = v.size(3), .scale = scale, .softcap = softcap},
      queries(cu_seqlens, B, T, kSoftmaxTile),
      keys(cu_seqlens, B, S, kSoftmaxTile) {
  if (scale == 0) shape.scale = 1 / std::sqrt(static_cast<double>(shape.K));
}

SoftmaxBackward::SoftmaxBackward(const SoftmaxCall& c, const Tensor& o_in, const Tensor& lse_in,
                                 const Tensor& dout_in, const Tensor& dlse_in, const Tensor& dq_in)
    : call(c),
      lse(lse_in),
      dout(with_contiguous_rows(dout_in)),
      dlse(dlse_in),
      dq(dq_in),
      o(o_in),
      delta(empty(lse.shape(), c.q.dtype(), c.q.device())) {
  const int64_t heads = std::max<int64_t>(1, c.B * c.Hk);
  parts = std::clamp<int64_t>((kSoftmaxUnits + heads - 1) / heads, 1,
                              std::max<int64_t>(1, c.keys.chunks()));
  if (parts > 1 && dq)
    other_dq = empty({parts - 1, c.B, c.T, c.H, c.shape.K}, c.q.dtype(), c.q.device());
}

template <class Real>
void SoftmaxBackward::begin() const {
  const View<Real> y = view<Real>(o), dy = view<Real>(dout), dl = view<Real>(dlse),
                   d = view<Real>(delta);
  Real* const first = dq ? dq.data<Real>() : nullptr;
  Real* const others = other_dq ? other_dq.data<Real>() : nullptr;
  const int64_t width = call.H * call.shape.K, V = call.shape.V;
  parallel_ranges(call.B * call.T, kSoftmaxTile, [&](int64_t from, int64_t to) {
    if (first) std::fill(first + from * width, first + to * width, Real(0));
    for (int64_t p = 0; others && p < parts - 1; ++p) {
      Real* const part = others + p * call.B * call.T * width;
      std::fill(part + from * width, part + to * width, Real(0));
    }
    for (int64_t n = from; n < to; ++n) {
      const int64_t b = n / call.T, t = n % call.T;
      for (int64_t h = 0; h < call.H; ++h) {
        const Real *x = y.at(b, t, h), *dx = dy.at(b, t, h);
        Real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < V; ++c) sum += x[c] * dx[c];
        d(b, h, t) = dl ? sum - dl(b, h, t) : sum;
      }
    }
  });
}

template <class Real>
QueryTile<Real> SoftmaxBackward::tile(int64_t part, int64_t b, int64_t h, int64_t t, int64_t rows,
                                      int64_t position) const {
  QueryTile<Real> x{.q = rows_of(view<Real>(call.q), b, t, h),
                    .dout = rows_of(view<Real>(dout), b, t, h),
                    .lse = view<Real>(lse).at(b, h, t),
                    .delta = view<Real>(delta).at(b, h, t),
                    .dq = {},
                    .rows = rows,
                    .position = position};
  if (dq && part == 0) x.dq = rows_of(view<Real>(dq), b, t, h);
  if (dq && part > 0) x.dq = rows_of(view<Real>(other_dq.select(0, part - 1)), b, t, h);
  return x;
}

template <class Real>
void SoftmaxBackward::end() const {
  if (!other_dq) return;
  const int64_t n = dq.numel();
  Real* const sum = dq.data<Real>();
  const Real* const others = other_dq.data<Real>();
  parallel_ranges(n, kSoftmaxSumGrain, [&](int64_t from, int64_t to) {
    for (int64_t p = 0; p < parts - 1; ++p)
      for (int64_t i = from; i < to; ++i) sum[i] += others[p * n + i];
  });
}

template <class Real>
void SoftmaxBackward::sink(const View<Real>& sink, const View<Real>& dsink) const {
  const View<Real> l = view<Real>(lse), d = view<Real>(delta);
  parallel_for(call.H, [&](int64_t h) {
    Real sum = 0;
    for (int64_t b = 0; b < call.B; ++b)
      for (int64_t t = 0; t < call.T; ++t) sum += std::exp(sink(h) - l(b, h, t)) * d(b, h, t);
    dsink(h) = -sum;
  });
}

template void SoftmaxBackward::begin<float>() const;
template void SoftmaxBackward::begin<double>() const;
template QueryTile<float> SoftmaxBackward::tile(int64_t, int64_t, int64_t, int64_t, int64_t,
                                                int64_t) const;
template QueryTile<double> SoftmaxBackward::tile(int64_t, int64_t, int64_t, int64_t, int64_t,
                                                 int64_t) const;
template void SoftmaxBackward::end<float>() const;
template void SoftmaxBackward::end<double>() const;
template void SoftmaxBackward::sink(const View<float>&, const View<float>&) const;
template void SoftmaxBackward::sink(const View<double>&, const View<double>&) const;

}  // namespace weft::kernels
