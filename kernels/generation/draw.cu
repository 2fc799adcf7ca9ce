// A block draws a token without sorting. What is looked for is the token at which the weight of
// those before it, in falling order of logits, passes a target: the range of logits is cut into
// bins, their weights added up, and the bin that holds the target taken as the next range, until
// one logit is left. Sums are of whole numbers: exact, so that their order does not matter.
#include <cmath>

#include "core/cuda.cuh"
#include "kernels/generation/draw.h"

namespace weft::kernels {
namespace {

using Weight = unsigned long long;

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kBins = kThreads;
constexpr double kUnit = 1ull << 40;  // the weight of the likeliest token

struct Settings {
  double rate;  // 1 / temperature; 0: the likeliest token
  int64_t top_k;
  double top_p;
};

// Over the block; every thread gets the result.
template <class X, class F>
__device__ X reduced(X x, F combine) {
  __shared__ X of_warp[kWarps];
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x = combine(x, __shfl_xor_sync(~0u, x, m));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warp[threadIdx.x % 32];
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) x = combine(x, __shfl_xor_sync(~0u, x, m));
  __syncthreads();
  return x;
}
__device__ Weight sum(Weight x) {
  return reduced(x, [](Weight a, Weight b) { return a + b; });
}

// The sum of x over this thread and those before it.
__device__ Weight running_sum(Weight x) {
  __shared__ Weight of_warp[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto within_warp = [lane](Weight y) {
#pragma unroll
    for (int m = 1; m < 32; m *= 2) {
      const Weight before = __shfl_up_sync(~0u, y, m);
      if (lane >= m) y += before;
    }
    return y;
  };
  x = within_warp(x);
  if (lane == 31) of_warp[warp] = x;
  __syncthreads();
  if (warp == 0) of_warp[lane] = within_warp(of_warp[lane]);
  __syncthreads();
  x += warp > 0 ? of_warp[warp - 1] : 0;
  __syncthreads();
  return x;
}

// Logits from `low` to `high`, cut into bins, the highest first.
struct Cut {
  float low, high;
  __device__ bool holds(float x) const { return low <= x && x <= high; }
  __device__ int bin(float x) const {
    const double scale = kBins / (static_cast<double>(high) - low);
    return min(kBins - 1, static_cast<int>((static_cast<double>(high) - x) * scale));
  }
};

// Where a target was met: at a token of this logit, with so much weight in front of all such
// tokens.
struct Met {
  float logit;
  Weight before;
};

template <class Real>
struct Logits {
  const Real* x;
  int n;
  double rate;
  float most;

  __device__ Weight weight(float logit) const {
    return __double2ull_rn(exp((static_cast<double>(logit) - most) * rate) * kUnit);
  }
  // f(logit) for those that are numbers of a range.
  template <class F>
  __device__ void each(const Cut& range, F&& f) const {
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const float logit = to_float(x[i]);
      if (range.holds(logit)) f(logit);
    }
  }
  // bins = the weights of the bins of a range.
  template <class W>
  __device__ void fill(Weight* bins, const Cut& range, W&& weight) const {
    bins[threadIdx.x] = 0;
    __syncthreads();
    each(range, [&](float logit) { atomicAdd(&bins[range.bin(logit)], weight(logit)); });
    __syncthreads();
  }
  // The first token, of those in `range`, with which the weight comes to `target` or more.
  // `filled`: bins hold the range's weights already.
  template <class W>
  __device__ Met meet(Weight* bins, bool filled, Cut range, Weight target, W&& weight) const {
    __shared__ int bin;
    __shared__ Weight passed;
    Weight before = 0;
    while (range.low < range.high) {
      if (!filled) fill(bins, range, weight);
      filled = false;
      if (threadIdx.x == 0) bin = kBins - 1, passed = 0;
      const Weight own = bins[threadIdx.x], until = before + running_sum(own);
      if (until - own < target && target <= until) {
        bin = static_cast<int>(threadIdx.x);
        passed = until - own;
      }
      __syncthreads();
      before = passed;
      const int chosen = bin;
      float low = INFINITY, high = -INFINITY;
      each(range, [&](float logit) {
        if (range.bin(logit) != chosen) return;
        low = fminf(low, logit);
        high = fmaxf(high, logit);
      });
      range.low = reduced(low, [](float a, float b) { return fminf(a, b); });
      range.high = reduced(high, [](float a, float b) { return fmaxf(a, b); });
    }
    return {range.low, before};
  }
  // The number of the token that is the `nth` (from 1) of those with this logit. A warp looks
  // through neighbours.
  __device__ int number(float logit, Weight nth) const {
    __shared__ int count[kWarps], answer;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int share = (n + kThreads - 1) / kThreads * 32, begin = warp * share;
    const auto equals = [&](int i) {
      const int at = begin + i + lane;
      return __ballot_sync(~0u, at < n && to_float(x[at]) == logit);
    };
    int own = 0;
    for (int i = 0; i < share; i += 32) own += __popc(equals(i));
    if (lane == 0) count[warp] = own;
    if (threadIdx.x == 0) answer = 0;
    __syncthreads();
    int left = static_cast<int>(nth);
    for (int w = 0; w < warp; ++w) left -= count[w];
    for (int i = 0; i < share && left > 0 && left <= own; i += 32) {
      unsigned found = equals(i);
      left -= __popc(found);
      if (left > 0) continue;
      for (int above = -left; above > 0; --above) found &= ~(1u << (31 - __clz(found)));
      if (lane == 0) answer = begin + i + 31 - __clz(found);
      break;
    }
    __syncthreads();
    return answer;
  }
};

template <class Real>
__device__ int drawn(Logits<Real> x, const Settings& s, double chance) {
  __shared__ Weight bins[kBins];
  float low = INFINITY, high = -INFINITY;
  Weight all = 0;
  x.each({-3.4e38f, 3.4e38f}, [&](float logit) {
    low = fminf(low, logit);
    high = fmaxf(high, logit);
    ++all;
  });
  const Cut range{reduced(low, [](float a, float b) { return fminf(a, b); }),
                  reduced(high, [](float a, float b) { return fmaxf(a, b); })};
  x.most = range.high;
  if (s.rate == 0) return x.number(range.high, 1);

  const auto weight = [&](float logit) { return x.weight(logit); };
  const auto last = [&](Met m, Weight target) {  // which of its equals
    const Weight each = weight(m.logit);
    return each == 0 ? Weight{1} : (target - m.before + each - 1) / each;
  };
  Weight kept = 0;
  bool filled = false;
  if (s.top_k > 0 && static_cast<Weight>(s.top_k) < sum(all)) {
    const Weight k = static_cast<Weight>(s.top_k);
    const Met m = x.meet(bins, false, range, k, [](float) { return Weight{1}; });
    x.each(range, [&](float logit) { kept += logit > m.logit ? weight(logit) : 0; });
    kept = sum(kept) + (k - m.before) * weight(m.logit);
  } else {
    x.fill(bins, range, weight);
    kept = sum(bins[threadIdx.x]);
    filled = range.low < range.high;
  }
  if (s.top_p < 1) {
    const auto part = static_cast<Weight>(ceil(s.top_p * static_cast<double>(kept)));
    const Weight target = max(Weight{1}, min(kept, part));
    const Met m = x.meet(bins, filled, range, target, weight);
    kept = m.before + last(m, target) * weight(m.logit);
    filled = false;
  }
  const Weight target = min(kept, static_cast<Weight>(chance * static_cast<double>(kept)) + 1);
  const Met m = x.meet(bins, filled, range, target, weight);
  return x.number(m.logit, last(m, target));
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    draw(const Real* logits, int n, const Settings s, const double* chances, int count, int* place,
         int first, int* token) {
  const int index = min(max(*place - first, 0), count - 1);
  const int found = drawn(Logits<Real>{logits, n, s.rate, 0}, s, chances[index]);
  if (threadIdx.x != 0) return;
  *token = found;
  *place += 1;
}

}  // namespace

void cuda_draw_token(const Tensor& logits_in, const Sampling& s, const Tensor& chances,
                     const Tensor& place, int64_t first, const Tensor& token) {
  const Tensor logits = s.drawable(logits_in).contiguous();
  require(logits.numel() > 0 && logits.numel() < (1 << 22), "a token drawn from ", logits.numel(),
          " logits, expected 1 to 2^22 - 1");
  const Settings settings{s.temperature > 0 ? 1 / s.temperature : 0, s.top_k, s.top_p};
  for_cuda_dtype(logits.dtype(), [&]<class Real>() {
    draw<<<1, kThreads, 0, cuda_stream(logits.device())>>>(
        dptr<const Real>(logits), static_cast<int>(logits.numel()), settings,
        dptr<const double>(chances), static_cast<int>(chances.numel()), dptr<int>(place),
        static_cast<int>(first), dptr<int>(token));
  });
  place.mark_written();
  token.mark_written();
  check_launch("draw_token");
}

}  // namespace weft::kernels
