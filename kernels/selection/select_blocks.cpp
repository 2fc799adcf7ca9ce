// One query after the other: scores of its candidates, then the best of them by turns.
#include "kernels/selection/select_blocks.h"

#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "kernels/selection/grid_cpu.h"
#include "kernels/tokens/pieces.h"

namespace weft::kernels {
namespace {

using selection::BlockGrid;

BlockGrid grid_of(int64_t T, int64_t S, const SelectBlocks& o) {
  return selection::grid_on_cpu(T, S, o.block, o.cu_seqlens, o.position);
}

void check(const Tensor& q, const Tensor& means, int64_t T, int64_t S, const SelectBlocks& o) {
  constexpr const char* name = "select_blocks";
  require(o.block >= 1 && o.top_k >= 1 && o.first >= 0 && o.recent >= 1, name, ": block ", o.block,
          ", top_k ", o.top_k, ", first ", o.first, ", recent ", o.recent,
          "; expected 1 or more, and of first 0 or more");
  require(T <= S && (!o.cu_seqlens || T == S) && (!o.position || (T == 1 && !o.cu_seqlens)), name,
          ": ", T, " queries and ", S, " keys, with documents as many, with a position one");
  const int64_t slots = (S + o.block - 1) / o.block;
  require(q.dims() == 4 && means.dims() == 4 && q.size(1) == (o.by_block ? slots : T) &&
              means.size(1) == slots && q.size(0) == means.size(0) && q.size(3) == means.size(3) &&
              means.size(2) > 0 && q.size(2) % means.size(2) == 0 && q.dtype() == means.dtype() &&
              q.device() == means.device(),
          name, ": q ", q.dtype(), " ", q.shape(), " and means ", means.dtype(), " ", means.shape(),
          ", expected [B, ", o.by_block ? slots : T, ", H, K] and [B, ", slots, ", Hk, K]");
  check_documents(name, o.cu_seqlens, q.size(0), T);
  const int64_t H = q.size(2), heads = o.heads > 0 ? o.heads : H;
  require(heads == H || heads == means.size(2), name, ": a mask of ", heads, " heads for ", H,
          " heads of queries and ", means.size(2), " of keys, expected either");
  require(!o.lse || (!o.by_block && o.lse.shape() == Shape{q.size(0), H, T}), name,
          ": lse has shape ", o.lse.shape(), ", expected [B, H, T]");
}

// The blocks of one query, of which `index` is its own.
template <class Real>
class Chooser {
 public:
  Chooser(const SelectBlocks& o, int64_t index, uint8_t* row, Real* score)
      : o_(o), index_(index), row_(row), score_(score) {}

  // `score(c)` of a candidate.
  template <class F>
  void choose(int64_t slots, const F& score) const {
    std::fill_n(row_, slots, uint8_t{0});
    const int64_t first = std::min(o_.first, index_ + 1);
    const int64_t recent = std::max(first, index_ + 1 - o_.recent);
    std::fill(row_, row_ + first, uint8_t{1});
    std::fill(row_ + recent, row_ + index_ + 1, uint8_t{1});
    const int64_t left = std::min(o_.top_k - first - (index_ + 1 - recent), recent - first);
    if (left <= 0) return;
    for (int64_t c = first; c < recent; ++c) {
      const Real s = score(c);
      score_[c] = std::isnan(s) ? -std::numeric_limits<Real>::infinity() : s;
    }
    for (int64_t n = 0; n < left; ++n) {
      int64_t best = -1;
      for (int64_t c = first; c < recent; ++c)
        if (!row_[c] && (best < 0 || score_[c] > score_[best])) best = c;
      row_[best] = 1;
    }
  }

 private:
  const SelectBlocks& o_;
  int64_t index_;
  uint8_t* row_;
  Real* score_;
};

template <class Real>
void select(const Tensor& q_in, const Tensor& means_in, const BlockGrid& grid,
            const SelectBlocks& o, const Tensor& mask, const Tensor& scratch) {
  const View<const Real> q = view<const Real>(q_in), means = view<const Real>(means_in);
  const View<const Real> lse = view<const Real>(o.lse);
  const View<uint8_t> to = view<uint8_t>(mask);
  const int64_t heads = to.size(1), T = to.size(2), slots = to.size(3), K = q.size(3);
  const int64_t share = q.size(2) / heads, group = q.size(2) / means.size(2);
  parallel_for(q.size(0) * heads * T, [&](int64_t unit) {
    const int64_t t = unit % T, m = unit / T % heads, b = unit / T / heads;
    const auto at = grid.place(t);
    const int64_t row = o.by_block ? at.slot + at.index - 1 : t;
    const Chooser<Real> chooser(o, at.index, to.at(b, m, t, 0),
                                view<Real>(scratch).at(thread_index(), 0));
    chooser.choose(slots, [&](int64_t c) {
      Real sum = 0;
      for (int64_t h = m * share; h < (m + 1) * share; ++h) {
        Real dot = 0;
        for (int64_t i = 0; i < K; ++i)
          dot += q(b, row, h, i) * means(b, at.slot + c, h / group, i);
        sum += lse ? std::exp(static_cast<Real>(o.scale) * dot - lse(b, h, t)) : dot;
      }
      return sum;
    });
  });
}

Tensor in_real(const Tensor& t) { return t && t.dtype() == Dtype::bf16 ? t.to(Dtype::f32) : t; }

}  // namespace

Tensor select_blocks(const Tensor& q_in, const Tensor& means_in, int64_t T, int64_t S,
                     const SelectBlocks& given) {
  check(q_in, means_in, T, S, given);
  const Device device = q_in.device();
  const int64_t heads = given.heads > 0 ? given.heads : q_in.size(2);
  const Tensor mask = empty({q_in.size(0), heads, T, means_in.size(1)}, Dtype::u8, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_select_blocks(q_in, means_in, T, S, given, mask);
    return mask;
  }
  const Tensor q = in_real(q_in), means = in_real(means_in);
  SelectBlocks o = given;
  o.lse = given.lse ? given.lse.to(q.dtype()) : Tensor();
  const Tensor scratch = empty({thread_count(), means.size(1)}, q.dtype(), device);
  if (device.is_meta()) return mask;
  for_real(q.dtype(),
           [&]<class Real>() { select<Real>(q, means, grid_of(T, S, o), o, mask, scratch); });
  return mask;
}

BlocksBefore blocks_before(int64_t B, int64_t T, int64_t S, int64_t H, const SelectBlocks& o,
                           Dtype dtype, Device device) {
  const BlocksBefore y{empty({B * T * H}, Dtype::i32, device), empty({B, T, H}, dtype, device)};
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_blocks_before(T, S, o, y);
    return y;
  }
  if (device.is_meta()) return y;
  const BlockGrid grid = grid_of(T, S, o);
  for_dtype(dtype, [&]<class Real>() {
    Real* const there = y.there.data<Real>();
    for (int64_t i = 0; i < B * T * H; ++i) {
      const auto at = grid.place(i / H % T);
      const int64_t slot = at.index > 0 ? at.slot + at.index - 1 : 0;
      y.index.data<int32_t>()[i] =
          static_cast<int32_t>((i / H / T * grid.slots() + slot) * H + i % H);
      there[i] = Real(at.index > 0 ? 1.f : 0.f);
    }
  });
  return y;
}

Tensor past_slots(int64_t T, int64_t S, const SelectBlocks& o, Device device) {
  const Tensor mask = empty({1, 1, T, (S + o.block - 1) / o.block}, Dtype::u8, device);
  if (device.takes_cuda_forms()) {
    if constexpr (has_cuda) cuda_past_slots(T, S, o, mask);
    return mask;
  }
  if (device.is_meta()) return mask;
  const BlockGrid grid = grid_of(T, S, o);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t slot = 0; slot < grid.slots(); ++slot)
      view<uint8_t>(mask)(0, 0, t, slot) = grid.is_past(t, slot);
  return mask;
}

Tensor slot_borders(const Tensor& cu_seqlens, int64_t T, int64_t block) {
  if (!cu_seqlens) return {};
  const int64_t slots = (T + block - 1) / block;
  const Tensor borders = empty({slots + 1}, Dtype::i32);
  const View<const int32_t> cu = view<const int32_t>(cu_seqlens);
  int32_t* const to = borders.data<int32_t>();
  std::fill_n(to, slots + 1, static_cast<int32_t>(slots));
  to[0] = 0;
  for (int64_t n = 0, count = 1; n + 1 < cu.size(0); ++n) {
    if (cu(n + 1) - cu(n) < block) continue;
    const auto begin = static_cast<int32_t>(cu(n) / block);
    if (begin > 0) to[count++] = begin;
  }
  return borders;
}

}  // namespace weft::kernels
