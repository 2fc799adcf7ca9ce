#include "kernels/selection/select_mass.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/parallel.h"
#include "kernels/selection/grid_cpu.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

using selection::BlockGrid;

Tensor in_real(const Tensor& t) { return t.dtype() == Dtype::bf16 ? t.to(Dtype::f32) : t; }

void check(const Tensor& q, const Tensor& k, const Tensor& means, const Tensor& radius,
           const SelectBlocks& o, double lost) {
  constexpr const char* name = "select_mass";
  const int64_t T = q.size(1), S = k.size(1), slots = (S + o.block - 1) / o.block;
  require(o.block >= 1 && o.top_k >= 1 && o.first >= 0 && o.recent >= 1 && o.scale > 0 &&
              lost >= 0 && lost < 1,
          name, ": block ", o.block, ", top_k ", o.top_k, ", first ", o.first, ", recent ",
          o.recent, ", scale ", o.scale, ", lost ", lost);
  require(T <= S && (!o.cu_seqlens || T == S) && (!o.position || (T == 1 && !o.cu_seqlens)), name,
          ": ", T, " queries and ", S, " keys, with documents as many, with a position one");
  check_documents(name, o.cu_seqlens, q.size(0), T);
  require(q.dims() == 4 && k.dims() == 4 && q.size(3) == k.size(3) && q.size(2) % k.size(2) == 0 &&
              means.shape() == Shape{k.size(0), slots, k.size(2), k.size(3)} &&
              radius.shape() == Shape{k.size(0), slots, k.size(2)},
          name, ": q ", q.shape(), ", k ", k.shape(), ", means ", means.shape(), ", radius ",
          radius.shape(), ", expected [B, T, H, K], [B, S, Hk, K], [B, slots, Hk, K] and ",
          "[B, slots, Hk] with ", slots, " slots");
}

// One query's row.
template <class Real>
struct Row {
  std::vector<Real> low, high;  // of each candidate: exponents of the two sides
  std::vector<int64_t> order;

  // Sets the row of the mask for own block `index`; returns the bound. `self`: exponent of k_t.
  Real choose(const SelectBlocks& o, double lost, int64_t index, Real self, uint8_t* mask) {
    const int64_t first = std::min(o.first, index + 1);
    const int64_t recent = std::max(first, index + 1 - o.recent);
    std::fill(mask, mask + first, uint8_t{1});
    std::fill(mask + recent, mask + index + 1, uint8_t{1});
    Real top = self;
    for (int64_t c = 0; c < index; ++c) top = std::max(top, high[static_cast<size_t>(c)]);
    const auto mass = [&](Real exponent) {
      return static_cast<Real>(o.block) * std::exp(exponent - top);
    };
    Real kept = std::exp(self - top), left = 0;
    for (int64_t c = 0; c < index; ++c)
      if (mask[c]) kept += mass(low[static_cast<size_t>(c)]);
    order.clear();
    for (int64_t c = first; c < recent; ++c) order.push_back(c);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const Real x = high[static_cast<size_t>(a)], y = high[static_cast<size_t>(b)];
      return x > y || (x == y && a < b);
    });
    // What is left behind each place of the order, smallest first.
    std::vector<Real> behind(order.size() + 1, 0);
    for (size_t n = order.size(); n-- > 0;)
      behind[n] = behind[n + 1] + mass(high[static_cast<size_t>(order[n])]);
    const int64_t least = o.top_k - first - (index + 1 - recent);
    size_t n = 0;
    for (; n < order.size(); ++n) {
      left = behind[n];
      if (static_cast<int64_t>(n) >= least && left <= static_cast<Real>(lost) * (left + kept))
        break;
      kept += mass(low[static_cast<size_t>(order[n])]);
      mask[order[n]] = 1;
    }
    left = behind[n];
    return left > 0 ? left / (left + kept) : Real{0};
  }
};

template <class Real>
void select(const Tensor& q_in, const Tensor& k_in, const Tensor& means_in, const Tensor& radius_in,
            const BlockGrid& grid, const SelectBlocks& o, double lost, const SelectedMass& to) {
  const View<const Real> q = view<const Real>(q_in), k = view<const Real>(k_in);
  const View<const Real> means = view<const Real>(means_in), radius = view<const Real>(radius_in);
  const View<uint8_t> mask = view<uint8_t>(to.mask);
  const View<Real> bound = view<Real>(to.bound);
  const int64_t H = q.size(2), T = q.size(1), K = q.size(3), group = H / k.size(2);
  const auto s = static_cast<Real>(o.scale);
  parallel_for(q.size(0) * H * T, [&](int64_t unit) {
    const int64_t t = unit % T, h = unit / T % H, b = unit / T / H, hk = h / group;
    const auto dot = [&](const Real* key) {
      Real sum = 0;
      for (int64_t i = 0; i < K; ++i) sum += q(b, t, h, i) * key[i];
      return sum;
    };
    Real length = 0;
    for (int64_t i = 0; i < K; ++i) length += q(b, t, h, i) * q(b, t, h, i);
    length = std::sqrt(length);
    const auto at = grid.place(t);
    Row<Real> row;
    for (int64_t c = 0; c < at.index; ++c) {
      row.low.push_back(s * dot(&means(b, at.slot + c, hk, 0)));
      row.high.push_back(row.low.back() + s * length * radius(b, at.slot + c, hk));
    }
    const int64_t own = o.position ? grid.held() - 1 : t + grid.S - T;
    std::fill_n(&mask(b, h, t, 0), mask.size(3), uint8_t{0});
    bound(b, h, t) = row.choose(o, lost, at.index, s * dot(&k(b, own, hk, 0)), &mask(b, h, t, 0));
  });
}

}  // namespace

Tensor block_radius(const Tensor& k_in, const Tensor& means_in, const SelectBlocks& o) {
  const int64_t B = k_in.size(0), S = k_in.size(1), Hk = k_in.size(2), K = k_in.size(3);
  const Device device = k_in.device();
  const Dtype real = k_in.dtype() == Dtype::bf16 ? Dtype::f32 : k_in.dtype();
  const Tensor radius = empty({B, means_in.size(1), Hk}, real, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_block_radius(k_in, means_in, o, radius);
    return radius;
  }
  const Tensor k = in_real(k_in).contiguous(), means = in_real(means_in).contiguous();
  if (device.is_meta()) return radius;
  const BlockGrid grid =
      selection::grid_on_cpu(o.position ? 1 : S, S, o.block, o.cu_seqlens, o.position);
  for_real(real, [&]<class Real>() {
    const View<const Real> x = view<const Real>(k), m = view<const Real>(means);
    const View<Real> to = view<Real>(radius);
    parallel_for(radius.numel(), [&](int64_t unit) {
      const int64_t h = unit % Hk, slot = unit / Hk % to.size(1), b = unit / Hk / to.size(1);
      const int64_t first = grid.first_token(slot);
      Real most = 0;
      for (int64_t t = first; first >= 0 && t < first + o.block; ++t) {
        Real sum = 0;
        for (int64_t i = 0; i < K; ++i) {
          const Real gap = x(b, t, h, i) - m(b, slot, h, i);
          sum += gap * gap;
        }
        most = std::max(most, sum);
      }
      to(b, slot, h) = std::sqrt(most);
    });
  });
  return radius;
}

SelectedMass select_mass(const Tensor& q_in, const Tensor& k_in, const Tensor& means_in,
                         const Tensor& radius, const SelectBlocks& o, double lost) {
  check(q_in, k_in, means_in, radius, o, lost);
  const Device device = q_in.device();
  const int64_t B = q_in.size(0), T = q_in.size(1), H = q_in.size(2);
  const SelectedMass result{empty({B, H, T, means_in.size(1)}, Dtype::u8, device),
                            empty({B, H, T}, radius.dtype(), device)};
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_select_mass(q_in, k_in, means_in, radius, o, lost, result);
    return result;
  }
  const Tensor q = in_real(q_in).contiguous(), k = in_real(k_in).contiguous(),
               means = in_real(means_in).contiguous();
  if (device.is_meta()) return result;
  const BlockGrid grid = selection::grid_on_cpu(T, k.size(1), o.block, o.cu_seqlens, o.position);
  for_real(q.dtype(),
           [&]<class Real>() { select<Real>(q, k, means, radius, grid, o, lost, result); });
  return result;
}

}  // namespace weft::kernels
