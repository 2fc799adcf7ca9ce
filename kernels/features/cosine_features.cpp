// The cosine and the sine of a row come once; the rest is a product a number. The gradient of the
// frequencies is summed block of rows by block of rows.
#include "kernels/features/cosine_features.h"

#include <cmath>

#include "kernels/features/cosine_features_reference.h"
#include "kernels/rows/rows.h"
#include "kernels/tokens/checks.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

const Registered<CosineFeatures> registered;

// Rows are (b, t, h). x has any strides; angles are fp64, so that far positions are exact.
template <class Real>
struct Problem {
  Problem(const CosineFeatures::Inputs<Tensor>& in, const CosineFeatures::Options& o)
      : x(in.x.contiguous()),
        frequency(view<const Real>(in.frequency)),
        documents(o.cu_seqlens, x.size(0), x.size(1)),
        T(x.size(1)),
        H(x.size(2)),
        K(x.size(3)),
        tokens(x.size(0) * T),
        first(o.offset + (o.position && !x.is_meta() ? *o.position.data<int32_t>() : 0)) {}

  const Real* row(int64_t token, int64_t h) const { return x.data<Real>() + (token * H + h) * K; }
  double position(int64_t token) const {
    const int64_t t = token % T;
    return static_cast<double>(first + t - documents.begin(documents.of(token / T, t)));
  }

  Tensor x;
  View<const Real> frequency;
  Documents documents;
  int64_t T, H, K, tokens, first;
};

template <class Real>
void features(const Problem<Real>& p, Real* y) {
  const int64_t K = p.K;
  parallel_ranges(p.tokens, row_grain(p.H * K), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token)
      for (int64_t h = 0; h < p.H; ++h) {
        const double theta = static_cast<double>(p.frequency(h)) * p.position(token);
        const Real c = static_cast<Real>(std::cos(theta)), s = static_cast<Real>(std::sin(theta));
        const Real* const x = p.row(token, h);
        Real* const to = y + (token * p.H + h) * 2 * K;
        for (int64_t d = 0; d < K; ++d) {
          const Real u = x[d] <= 0 ? Real(0) : x[d];  // NaN stays
          to[d] = u * c;
          to[K + d] = u * s;
        }
      }
  });
}

// parts [blocks, H]: the gradient of the frequencies from each block of tokens. Both may be null.
template <class Real>
void gradients(const Problem<Real>& p, const RowBlocks& blocks, const Real* dy, Real* dx,
               Real* parts) {
  const int64_t K = p.K;
  blocks.each([&](int64_t block, int64_t begin, int64_t end) {
    Real* const part = parts ? parts + block * p.H : nullptr;
    if (part) std::fill_n(part, p.H, Real(0));
    for (int64_t token = begin; token < end; ++token)
      for (int64_t h = 0; h < p.H; ++h) {
        const double position = p.position(token);
        const double theta = static_cast<double>(p.frequency(h)) * position;
        const Real c = static_cast<Real>(std::cos(theta)), s = static_cast<Real>(std::sin(theta));
        const Real* const x = p.row(token, h);
        const Real* const flow = dy + (token * p.H + h) * 2 * K;
        Real turn = 0;  // the gradient of theta
        for (int64_t d = 0; d < K; ++d) {
          const bool on = x[d] > 0;
          if (dx) dx[(token * p.H + h) * K + d] = on ? flow[d] * c + flow[K + d] * s : Real(0);
          if (on) turn += x[d] * (flow[K + d] * c - flow[d] * s);
        }
        if (part) part[h] += turn * static_cast<Real>(position);
      }
  });
}

}  // namespace

void CosineFeatures::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 4 && x.x.size(2) > 0 && x.x.size(3) > 0, name, ": x has shape ",
          x.x.shape(), ", expected [B, T, H, K] with heads and columns");
  check_shape(name, "frequency", x.frequency, {x.x.size(2)});
  check_documents(name, o.cu_seqlens, x.x.size(0), x.x.size(1));
  constexpr int64_t kFarthest = int64_t{1} << 53;
  require(o.offset >= -kFarthest && o.offset <= kFarthest, name, ": offset = ", o.offset,
          ", expected -2^53 to 2^53; angles are made of positions that a double counts");
  require(!o.position || (o.position.dtype() == Dtype::i32 && o.position.shape() == Shape{1} &&
                          o.position.device() == x.x.device()),
          name, ": position is ", o.position.dtype(), " ", o.position.shape(), " on ",
          o.position.device(), ", expected i32 [1] on ", x.x.device());
}

Outputs<CosineFeatures> CosineFeatures::outputs(const Inputs<Tensor>& x, const Options&) {
  Shape shape = x.x.shape();
  shape[3] *= 2;
  return {empty(shape, x.x.dtype(), x.x.device())};
}

void CosineFeatures::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                 Saved*) {
  for_real(x.x.dtype(), [&]<class Real>() {
    const Problem<Real> p(x, o);
    if (!x.x.is_meta()) features(p, y.y.data<Real>());
  });
}

void CosineFeatures::cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                  const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  for_real(x.x.dtype(), [&]<class Real>() {
    const Problem<Real> p(x, o);
    const Tensor flow = dy.y.contiguous();
    const RowBlocks blocks(p.tokens);
    Tensor parts;
    if (dx.frequency) parts = empty({blocks.count, p.H}, x.x.dtype(), x.x.device());
    if (x.x.is_meta()) return;
    gradients(p, blocks, flow.data<Real>(), dx.x.data<Real>(), parts.data<Real>());
    if (dx.frequency) sum_blocks(parts.data<Real>(), blocks.count, p.H, dx.frequency.data<Real>());
  });
}

}  // namespace weft::kernels
