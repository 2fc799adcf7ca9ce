// Cosines and sines of the positions come in a table made for the call; the rest is two multiplies
// and adds a number.
#include "kernels/sequence/rotary.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "kernels/rows/rows.h"
#include "kernels/sequence/rotary_reference.h"

namespace weft::kernels {
namespace {

const Registered<Rotary> registered;

int64_t width_of(const Rotary::Options& o, int64_t K) { return o.width ? o.width : K; }

// The angle of a token of pair i, whose r_i is `rate`.
double slowed(const Rotary::Options& o, double i, double rate) {
  if (o.factor == 1) return rate;
  const double s = o.ramp_by_rate ? rate : i, length = o.ramp_end - o.ramp_begin;
  const double m = length == 0 ? 1 : std::clamp((s - o.ramp_begin) / length, 0.0, 1.0);
  return rate * (1 - m + m / o.factor);
}

// cos and sin of (offset + t) rate_i for t < T, i < P, times the magnitude. Position t = block a +
// b: the angles of `block a` and of b are few, and a sum of angles costs four multiplies.
struct Table {
  Table(const Rotary::Options& o, int64_t T, int64_t K, Dtype dtype, Device device)
      : offset(o.offset + (o.position && !device.is_meta() ? *o.position.data<int32_t>() : 0)),
        pairs(width_of(o, K) / 2),
        block(T <= cuts::kRotaryShort ? cuts::kRotaryFew : cuts::kRotaryMany),
        tokens(T),
        magnitude(o.magnitude),
        rate(empty({pairs}, Dtype::f64, device)),
        coarse(empty({(T + block - 1) / block, 2, pairs}, Dtype::f64, device)),
        fine(empty({std::min(block, T), 2, pairs}, Dtype::f64, device)),
        cosine(empty({T, pairs}, dtype, device)),
        sine(empty({T, pairs}, dtype, device)) {
    if (device.is_meta()) return;
    for (int64_t i = 0; i < pairs; ++i)
      rate.data<double>()[i] = slowed(
          o, static_cast<double>(i),
          std::pow(o.base, -2.0 * static_cast<double>(i) / static_cast<double>(width_of(o, K))));
    for (int64_t a = 0; a < coarse.size(0); ++a) angles(coarse, a, offset + a * block);
    for (int64_t b = 0; b < fine.size(0); ++b) angles(fine, b, b);
    for_real(dtype, [&]<class T_>() { add_angles<T_>(); });
  }

  void angles(const Tensor& table, int64_t row, int64_t position) const {
    double* const c = table.data<double>() + row * 2 * pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(position) * rate.data<double>()[i];
      c[i] = std::cos(angle);
      c[pairs + i] = std::sin(angle);
    }
  }

  template <class Real>
  void add_angles() const {
    const int64_t grain = std::max(cuts::kRotaryTokens, cuts::kRowGrain / pairs);
    parallel_ranges(tokens, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const double* __restrict__ ca = coarse.data<double>() + t / block * 2 * pairs;
        const double* __restrict__ cb = fine.data<double>() + t % block * 2 * pairs;
        const double* __restrict__ sa = ca + pairs, * __restrict__ sb = cb + pairs;
        Real* __restrict__ c = cosine.data<Real>() + t * pairs;
        Real* __restrict__ s = sine.data<Real>() + t * pairs;
        for (int64_t i = 0; i < pairs; ++i) {
          c[i] = static_cast<Real>(magnitude * (ca[i] * cb[i] - sa[i] * sb[i]));
          s[i] = static_cast<Real>(magnitude * (sa[i] * cb[i] + ca[i] * sb[i]));
        }
      }
    });
  }

  int64_t offset, pairs, block, tokens;
  double magnitude;
  Tensor rate;          // [P]
  Tensor coarse, fine;  // [blocks, 2, P] and [block, 2, P]: cosines, then sines
  Tensor cosine, sine;  // [T, P]
};

template <class Real, bool kInterleaved>
void turn_head(const Real* __restrict__ x, const Real* __restrict__ c, const Real* __restrict__ s,
               Real sign, int64_t pairs, int64_t K, Real* __restrict__ y) {
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t first = kInterleaved ? 2 * i : i, second = kInterleaved ? 2 * i + 1 : i + pairs;
    const Real u = x[first], v = x[second], sine = sign * s[i];
    y[first] = u * c[i] - v * sine;
    y[second] = u * sine + v * c[i];
  }
  for (int64_t i = 2 * pairs; i < K; ++i) y[i] = x[i];
}

// y = x turned by the angles of its positions, forward (sign 1) or back (-1).
void turn(const Tensor& given, const Rotary::Options& o, double sign, const Tensor& y) {
  const Tensor x = given.stride(3) == 1 || given.size(3) == 1 ? given : given.contiguous();
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), K = x.size(3);
  const Table table(o, T, K, x.dtype(), x.device());
  if (x.is_meta()) return;
  const Documents documents(o.cu_seqlens, B, T);
  for_real(x.dtype(), [&]<class S>() {
    const View<const S> from = view<const S>(x);
    const int64_t P = table.pairs, grain = row_grain(H * K);
    parallel_ranges(B * T, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / T, t = row % T;
        const int64_t position = t - documents.begin(documents.of(b, t));
        const S* const c = table.cosine.template data<S>() + position * P;
        const S* const s = table.sine.template data<S>() + position * P;
        for (int64_t h = 0; h < H; ++h) {
          S* const to = y.data<S>() + (row * H + h) * K;
          if (o.interleaved)
            turn_head<S, true>(from.at(b, t, h, 0), c, s, static_cast<S>(sign), P, K, to);
          else
            turn_head<S, false>(from.at(b, t, h, 0), c, s, static_cast<S>(sign), P, K, to);
        }
      }
    });
  });
}

}  // namespace

void Rotary::check(const Inputs<Tensor>& x, const Options& o) {
  require(x.x.dims() == 4, "rotary: x has shape ", x.x.shape(), ", expected [B, T, H, K]");
  const int64_t K = x.x.size(3), width = width_of(o, K);
  require(width >= 2 && width % 2 == 0 && width <= K, "rotary: width = ", width,
          ", expected an even number from 2 to K = ", K);
  for (const auto& [key, value] :
       {std::pair{"base", o.base}, {"factor", o.factor}, {"magnitude", o.magnitude}})
    require(value > 0, "rotary: ", key, " = ", value, ", expected a positive number");
  constexpr int64_t kFarthest = int64_t{1} << 53;
  require(o.offset >= -kFarthest && o.offset <= kFarthest, "rotary: offset = ", o.offset,
          ", expected -2^53 to 2^53; angles are made of positions that a double counts");
  check_documents(name, o.cu_seqlens, x.x.size(0), x.x.size(1));
  require(!o.position || (o.position.dtype() == Dtype::i32 && o.position.shape() == Shape{1} &&
                          o.position.device() == x.x.device()),
          "rotary: position is ", o.position.dtype(), " ", o.position.shape(), " on ",
          o.position.device(), ", expected i32 [1] on ", x.x.device());
}

Outputs<Rotary> Rotary::outputs(const Inputs<Tensor>& x, const Options&) {
  return {empty_like(x.x)};
}

void Rotary::cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y, Saved*) {
  turn(x.x, o, 1, y.y);
}

void Rotary::cpu_backward(const Inputs<Tensor>&, const Options& o, const Saved&,
                          const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (dx.x) turn(dy.y, o, -1, dx.x);
}

}  // namespace weft::kernels
