// A warp takes a row of one head. The angle is reduced to a part of a full turn in fp64, so that
// far positions are as good as near ones; the rest is fp32.
#include "kernels/features/cosine_features.h"

#include "kernels/rows/column_sums.cuh"
#include "kernels/tokens/pieces.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTokens = 128;  // of a block, one head

template <class Real>
struct Problem {
  const Real* x;
  int64_t by_row, by_token, by_head, by_column;
  int64_t T, tokens;  // of a row, of all rows
  int H, K;
  const float* frequency;   // [H]
  const int32_t* cu;        // [N + 1] or null
  const int32_t* position;  // [1] or null
  int N;
  double offset;

  __device__ const Real* at(int64_t token, int h) const {
    return x + token / T * by_row + token % T * by_token + h * by_head;
  }
  __device__ double place(int64_t token) const {
    const int64_t t = token % T, begin = cu ? cu[document_at(cu, N, t)] : 0;
    return offset + (position ? *position : 0) + static_cast<double>(t - begin);
  }
};

__device__ __forceinline__ void turn(double place, float frequency, float& cosine, float& sine) {
  const double turns = place * static_cast<double>(frequency) / 6.283185307179586;
  sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine, &cosine);
}

// Grid: blocks of tokens, heads.
template <class Real>
__global__ void __launch_bounds__(kThreads) features(Problem<Real> p, Real* y) {
  const int h = blockIdx.y, lane = threadIdx.x % 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTokens;
  for (int i = threadIdx.x / 32; i < kTokens && first + i < p.tokens; i += kWarps) {
    const int64_t token = first + i;
    float cosine, sine;
    turn(p.place(token), p.frequency[h], cosine, sine);
    const Real* const x = p.at(token, h);
    Real* const to = y + (token * p.H + h) * 2 * p.K;
    for (int d = lane; d < p.K; d += 32) {
      const float v = to_float(x[d * p.by_column]), u = v <= 0 ? 0.0f : v;
      to[d] = from_float<Real>(u * cosine);
      to[p.K + d] = from_float<Real>(u * sine);
    }
  }
}

// parts [blocks, H]: the gradient of the frequency from each block of tokens, or null.
template <class Real>
__global__ void __launch_bounds__(kThreads)
    gradients(Problem<Real> p, const Real* dy, Real* dx, float* parts) {
  __shared__ float sums[kWarps];
  const int h = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTokens;
  float sum = 0;
  for (int i = warp; i < kTokens && first + i < p.tokens; i += kWarps) {
    const int64_t token = first + i;
    const double place = p.place(token);
    float cosine, sine, theta = 0;
    turn(place, p.frequency[h], cosine, sine);
    const Real* const x = p.at(token, h);
    const Real* const flow = dy + (token * p.H + h) * 2 * p.K;
    for (int d = lane; d < p.K; d += 32) {
      const float v = to_float(x[d * p.by_column]);
      const float a = to_float(flow[d]), b = to_float(flow[p.K + d]);
      const bool on = v > 0;
      if (dx) dx[(token * p.H + h) * p.K + d] = from_float<Real>(on ? a * cosine + b * sine : 0.0f);
      if (on) theta += v * (b * cosine - a * sine);
    }
    sum += theta * static_cast<float>(place);
  }
  if (!parts) return;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += sums[w];
  parts[static_cast<int64_t>(blockIdx.x) * p.H + h] = sum;
}

template <class Real>
Problem<Real> problem_of(const CosineFeatures::Inputs<Tensor>& in, const CosineFeatures::Options& o,
                         const Tensor& frequency, const Tensor& cu) {
  const Tensor& x = in.x;
  return {dptr<const Real>(x),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3),
          x.size(1),
          x.size(0) * x.size(1),
          static_cast<int>(x.size(2)),
          static_cast<int>(x.size(3)),
          dptr<const float>(frequency),
          dptr<const int32_t>(cu),
          dptr<const int32_t>(o.position),
          cu ? static_cast<int>(cu.size(0) - 1) : 0,
          static_cast<double>(o.offset)};
}

dim3 grid_of(const Tensor& x) {
  require(x.size(2) < 65536, "cosine_features: ", x.size(2), " heads, expected at most 65535");
  return {static_cast<unsigned>(ceil_div(x.size(0) * x.size(1), kTokens)),
          static_cast<unsigned>(x.size(2))};
}

}  // namespace

void CosineFeatures::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                  Saved*) {
  const Tensor frequency = x.frequency.contiguous();
  const Tensor cu = on_device(o.cu_seqlens, x.x.device());
  const dim3 grid = grid_of(x.x);
  if (x.x.is_meta() || x.x.numel() == 0) return;
  for_cuda_dtype(x.x.dtype(), [&]<class Real>() {
    features<<<grid, kThreads, 0, cuda_stream()>>>(problem_of<Real>(x, o, frequency, cu),
                                                   dptr<Real>(y.y));
  });
  check_launch("cosine_features forward");
}

void CosineFeatures::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                   const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor frequency = x.frequency.contiguous(), flow = dy.y.contiguous();
  const Tensor cu = on_device(o.cu_seqlens, x.x.device());
  const dim3 grid = grid_of(x.x);
  Tensor parts;
  if (dx.frequency) parts = empty({grid.x, x.x.size(2)}, Dtype::f32, x.x.device());
  if (x.x.is_meta()) return;
  if (x.x.numel() == 0) {
    if (dx.frequency) dx.frequency.zero();
    return;
  }
  for_cuda_dtype(x.x.dtype(), [&]<class Real>() {
    gradients<<<grid, kThreads, 0, cuda_stream()>>>(problem_of<Real>(x, o, frequency, cu),
                                                    dptr<const Real>(flow), dptr<Real>(dx.x),
                                                    dptr<float>(parts));
  });
  if (dx.frequency)
    sum_columns(dptr<const float>(parts), grid.x, x.x.size(2), dptr<float>(dx.frequency),
                x.x.device());
  check_launch("cosine_features backward");
}

}  // namespace weft::kernels
