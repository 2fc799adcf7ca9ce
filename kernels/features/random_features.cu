// A block takes kRows rows of one head and walks the features in tiles of kFeatures. The products
// w.u are sums of f32 on plain cores: an exponent that was rounded to bf16 would be wrong by some
// percent. A thread has 2 rows and 4 features; each sum has one order.
#include "kernels/features/random_features.h"

#include <cmath>

#include "core/cuda.cuh"
#include "kernels/tokens/pieces.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kRows = 32, kFeatures = 64, kDepth = 32;
constexpr int kOfRows = 2, kOfFeatures = 4;  // of a thread: rows ty + 16 i, features tx + 16 j

// Row r of a head is token (r / T, r % T). All strides in elements.
template <class Real>
struct Problem {
  const Real* x;
  int64_t by_row, by_token, by_head, by_column;
  int64_t T, rows;
  const float* w;  // [H, M, K]
  int H, K, M;
  float scale;
  const float* shift;  // [B, T, H], or null
  bool waves;

  __device__ const Real* at(int64_t r, int h) const {
    return x + r / T * by_row + r % T * by_token + h * by_head;
  }
  __device__ float down(int64_t r, int h) const { return shift ? shift[r * H + h] : 0.0f; }
};

struct Tiles {
  float x[kDepth][kRows + 1];
  float w[kDepth][kFeatures + 1];
  float half[kRows];  // |u|^2 / 2
};

// The columns [depth, depth + kDepth) of kFeatures rows of the projection; zeros past its end.
template <class Real>
__device__ void load_weights(const Problem<Real>& p, int h, int first, int depth, Tiles& s) {
  for (int i = threadIdx.x; i < kFeatures * kDepth; i += kThreads) {
    const int f = i / kDepth, d = i % kDepth;
    const bool there = first + f < p.M && depth + d < p.K;
    s.w[d][f] = there ? p.w[(static_cast<int64_t>(h) * p.M + first + f) * p.K + depth + d] : 0.0f;
  }
}

template <class Real>
__device__ void load_rows(const Problem<Real>& p, int h, int64_t row, int depth, Tiles& s) {
  for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
    const int r = i / kDepth, d = i % kDepth;
    const bool there = row + r < p.rows && depth + d < p.K;
    s.x[d][r] = there ? to_float(p.at(row + r, h)[(depth + d) * p.by_column]) : 0.0f;
  }
}

// Half the square of each row's length; a warp takes a row at a time.
template <class Real>
__device__ void half_squares(const Problem<Real>& p, int h, int64_t row, Tiles& s) {
  for (int r = threadIdx.x / 32; r < kRows; r += kThreads / 32) {
    float sum = 0;
    for (int d = threadIdx.x % 32; d < p.K && row + r < p.rows; d += 32) {
      const float v = to_float(p.at(row + r, h)[d * p.by_column]);
      sum += v * v;
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) s.half[r] = 0.5f * p.scale * p.scale * sum;
  }
  __syncthreads();
}

// e = w.u for this thread's rows and the features from `first`.
template <class Real>
__device__ void products(const Problem<Real>& p, int h, int64_t row, int first, Tiles& s,
                         float (&e)[kOfRows][kOfFeatures]) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  for (auto& line : e)
    for (float& v : line) v = 0;
  for (int depth = 0; depth < p.K; depth += kDepth) {
    load_rows(p, h, row, depth, s);
    load_weights(p, h, first, depth, s);
    __syncthreads();
    for (int d = 0; d < kDepth; ++d)
#pragma unroll
      for (int i = 0; i < kOfRows; ++i)
#pragma unroll
        for (int j = 0; j < kOfFeatures; ++j) e[i][j] += s.x[d][ty + 16 * i] * s.w[d][tx + 16 * j];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kOfRows; ++i)
#pragma unroll
    for (int j = 0; j < kOfFeatures; ++j) e[i][j] *= p.scale;
}

// Grid: blocks of rows, heads.
template <class Real>
__global__ void __launch_bounds__(kThreads) features(Problem<Real> p, Real* y) {
  __shared__ Tiles s;
  const int h = blockIdx.y, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows, width = p.waves ? 2 * p.M : p.M;
  const float by = rsqrtf(static_cast<float>(p.M));
  half_squares(p, h, row, s);
  for (int first = 0; first < p.M; first += kFeatures) {
    float e[kOfRows][kOfFeatures];
    products(p, h, row, first, s, e);
    for (int i = 0; i < kOfRows; ++i) {
      const int64_t r = row + ty + 16 * i;
      if (r >= p.rows) continue;
      const float half = s.half[ty + 16 * i], down = p.down(r, h);
      const float size = p.waves ? by * expf(half - down) : by;
      for (int j = 0; j < kOfFeatures; ++j) {
        const int f = first + tx + 16 * j;
        if (f >= p.M) continue;
        Real* const to = y + (r * p.H + h) * width + f;
        if (p.waves) {
          float sine, cosine;
          sincosf(e[i][j], &sine, &cosine);
          to[0] = from_float<Real>(size * cosine);
          to[p.M] = from_float<Real>(size * sine);
        } else {
          to[0] = from_float<Real>(size * expf(e[i][j] - half - down));
        }
      }
    }
  }
}

// t = the flow into each exponent, where this thread's features are; sum gets the flow into the
// exponent that a row's features share.
template <class Real>
__device__ void flows(const Problem<Real>& p, int h, int64_t row, int first, const Tiles& s,
                      const Real* dy, float (&t)[kOfRows][kOfFeatures], float (&sum)[kOfRows]) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t width = p.waves ? 2 * p.M : p.M;
  const float by = rsqrtf(static_cast<float>(p.M));
  for (int i = 0; i < kOfRows; ++i) {
    const int64_t r = row + ty + 16 * i;
    const float half = s.half[ty + 16 * i], down = r < p.rows ? p.down(r, h) : 0.0f;
    const float size = p.waves ? by * expf(half - down) : by;
    for (int j = 0; j < kOfFeatures; ++j) {
      const int f = first + tx + 16 * j;
      const bool there = r < p.rows && f < p.M;
      const Real* const flow = dy + (r * p.H + h) * width + f;
      if (!there) {
        t[i][j] = 0;
      } else if (p.waves) {
        float sine, cosine;
        sincosf(t[i][j], &sine, &cosine);
        const float a = size * to_float(flow[0]), b = size * to_float(flow[p.M]);
        sum[i] += a * cosine + b * sine;
        t[i][j] = b * cosine - a * sine;
      } else {
        t[i][j] = size * to_float(flow[0]) * expf(t[i][j] - half - down);
        sum[i] += t[i][j];
      }
    }
  }
}

// Shared memory behind the tiles: t [kRows, kFeatures + 1], then du [kRows, K].
template <class Real>
__global__ void __launch_bounds__(kThreads)
    gradients(Problem<Real> p, const Real* dy, Real* dx, float* dshift) {
  extern __shared__ float dynamic[];
  __shared__ Tiles s;
  constexpr int kPitch = kFeatures + 1;
  float* const flow = dynamic;
  float* const du = dynamic + kRows * kPitch;
  const int h = blockIdx.y, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows;
  float sum[kOfRows] = {};
  for (int i = threadIdx.x; i < kRows * p.K; i += kThreads) du[i] = 0;
  half_squares(p, h, row, s);
  for (int first = 0; first < p.M; first += kFeatures) {
    float t[kOfRows][kOfFeatures];
    products(p, h, row, first, s, t);
    flows(p, h, row, first, s, dy, t, sum);
    for (int i = 0; i < kOfRows; ++i)
      for (int j = 0; j < kOfFeatures; ++j) flow[(ty + 16 * i) * kPitch + tx + 16 * j] = t[i][j];
    for (int depth = 0; dx && depth < p.K; depth += kDepth) {
      load_weights(p, h, first, depth, s);
      __syncthreads();
      for (int i = threadIdx.x; i < kRows * kDepth; i += kThreads) {
        const int r = i / kDepth, d = i % kDepth;
        if (depth + d >= p.K) continue;
        float add = 0;
#pragma unroll 8
        for (int f = 0; f < kFeatures; ++f) add += flow[r * kPitch + f] * s.w[d][f];
        du[r * p.K + depth + d] += add;
      }
      __syncthreads();
    }
  }
  for (int i = 0; i < kOfRows; ++i) {
    for (int step = 8; step > 0; step /= 2)
      sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);  // the 16 threads of a row
    const int64_t r = row + ty + 16 * i;
    if (tx == 0) flow[ty + 16 * i] = sum[i];
    if (tx == 0 && dshift && r < p.rows) dshift[r * p.H + h] = -sum[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; dx && i < kRows * p.K; i += kThreads) {
    const int r = i / p.K, d = i % p.K;
    if (row + r >= p.rows) continue;
    const float u = p.scale * to_float(p.at(row + r, h)[d * p.by_column]);
    const float own = (p.waves ? flow[r] : -flow[r]) * u;
    dx[((row + r) * p.H + h) * p.K + d] = from_float<Real>(p.scale * (du[i] + own));
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads) largest(Problem<Real> p, float* to) {
  __shared__ Tiles s;
  const int h = blockIdx.y, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows;
  float most[kOfRows] = {-INFINITY, -INFINITY};
  half_squares(p, h, row, s);
  for (int first = 0; first < p.M; first += kFeatures) {
    float e[kOfRows][kOfFeatures];
    products(p, h, row, first, s, e);
    for (int i = 0; i < kOfRows; ++i)
      for (int j = 0; j < kOfFeatures; ++j)
        if (first + tx + 16 * j < p.M) most[i] = fmaxf(most[i], e[i][j]);
  }
  for (int i = 0; i < kOfRows; ++i) {
    for (int step = 8; step > 0; step /= 2)
      most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], step));
    const int64_t r = row + ty + 16 * i;
    if (tx == 0 && r < p.rows) to[r * p.H + h] = most[i] - s.half[ty + 16 * i];
  }
}

// A warp walks a head of a document, 32 tokens at a time.
struct Walk {
  const float *exponents, *initial;  // [B, T, H]; [N, H] or null
  const int32_t* cu;                 // [N + 1], or null: documents are rows
  int64_t T, N;
  int H, group;
  float *shift, *g, *last;
};
__global__ void __launch_bounds__(32) running(Walk w) {
  const int64_t n = blockIdx.x, lane = threadIdx.x;
  const int h = blockIdx.y;
  const int64_t begin = w.cu ? w.cu[n] : n * w.T, end = w.cu ? w.cu[n + 1] : begin + w.T;
  if (begin == end) return;
  float before = w.initial ? w.initial[n * w.H + h] : w.exponents[begin * w.H + h];
  for (int64_t t0 = begin; t0 < end; t0 += 32) {
    const int64_t t = t0 + lane;
    float most = t < end ? w.exponents[t * w.H + h] : -INFINITY;
    for (int step = 1; step < 32; step *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, most, step);
      if (lane >= step) most = fmaxf(most, other);
    }
    most = fmaxf(most, before);
    const float left = __shfl_up_sync(0xffffffffu, most, 1);
    if (t < end) {
      w.shift[t * w.H + h] = most;
      for (int j = 0; j < w.group; ++j)
        w.g[(t * w.H + h) * w.group + j] = (lane > 0 ? left : before) - most;
    }
    before = __shfl_sync(0xffffffffu, most, 31);
  }
  if (lane == 0) w.last[n * w.H + h] = before;
}

template <class Real>
Problem<Real> problem_of(const Tensor& x, const Tensor& w, double scale, const Tensor& shift,
                         bool waves) {
  return {dptr<const Real>(x),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3),
          x.size(1),
          x.size(0) * x.size(1),
          dptr<const float>(w),
          static_cast<int>(x.size(2)),
          static_cast<int>(x.size(3)),
          static_cast<int>(w.size(1)),
          static_cast<float>(scale),
          dptr<const float>(shift),
          waves};
}

dim3 grid_of(const Tensor& x) {
  require(x.size(2) < 65536, "random_features: ", x.size(2), " heads, expected at most 65535");
  return {static_cast<unsigned>(ceil_div(x.size(0) * x.size(1), kRows)),
          static_cast<unsigned>(x.size(2))};
}

}  // namespace

void RandomFeatures::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                  Saved*) {
  const Tensor w = o.projection.to(Dtype::f32).contiguous();
  const Tensor shift = x.shift ? x.shift.contiguous() : x.shift;
  const dim3 grid = grid_of(x.x);
  if (x.x.is_meta() || x.x.numel() == 0) return;
  for_cuda_dtype(x.x.dtype(), [&]<class Real>() {
    features<<<grid, kThreads, 0, cuda_stream()>>>(
        problem_of<Real>(x.x, w, scale_of(o, x.x.size(3)), shift, trigonometric(o)),
        dptr<Real>(y.y));
  });
  check_launch("random_features forward");
}

void RandomFeatures::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved&,
                                   const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Tensor w = o.projection.to(Dtype::f32).contiguous();
  const Tensor shift = x.shift ? x.shift.contiguous() : x.shift, flow = dy.y.contiguous();
  const dim3 grid = grid_of(x.x);
  const int64_t bytes = kRows * (kFeatures + 1 + x.x.size(3)) * int64_t{sizeof(float)};
  require(x.x.size(3) <= 1024, "random_features: K = ", x.x.size(3),
          ", expected at most 1024 on a GPU");
  if (x.x.is_meta() || x.x.numel() == 0) return;
  for_cuda_dtype(x.x.dtype(), [&]<class Real>() {
    if (bytes > 24 * 1024) allow_shared_memory(gradients<Real>, bytes);
    gradients<<<grid, kThreads, static_cast<size_t>(bytes), cuda_stream()>>>(
        problem_of<Real>(x.x, w, scale_of(o, x.x.size(3)), shift, trigonometric(o)),
        dptr<const Real>(flow), dptr<Real>(dx.x), dptr<float>(dx.shift));
  });
  check_launch("random_features backward");
}

void cuda_largest_exponents(const Tensor& x, const Tensor& projection, double scale,
                            const Tensor& to) {
  const Tensor w = projection.to(Dtype::f32).contiguous();
  const dim3 grid = grid_of(x);
  if (x.is_meta() || x.numel() == 0) return;
  for_cuda_dtype(x.dtype(), [&]<class Real>() {
    largest<<<grid, kThreads, 0, cuda_stream()>>>(problem_of<Real>(x, w, scale, {}, false),
                                                  dptr<float>(to));
  });
  check_launch("random_features largest exponents");
}

void cuda_running_shift(const Tensor& exponents, const Tensor& initial, const Tensor& cu_seqlens,
                        int64_t group, const RunningShift& out) {
  const Tensor cu = on_device(cu_seqlens, exponents.device());
  const int64_t N = out.last.size(0), H = out.last.size(1);
  require(H < 65536, "running_shift: ", H, " heads, expected at most 65535");
  if (exponents.is_meta() || exponents.numel() == 0) return;
  const Walk walk{dptr<const float>(exponents),
                  dptr<const float>(initial),
                  dptr<const int32_t>(cu),
                  exponents.size(1),
                  N,
                  static_cast<int>(H),
                  static_cast<int>(group),
                  dptr<float>(out.shift),
                  dptr<float>(out.g),
                  dptr<float>(out.last)};
  running<<<dim3(static_cast<unsigned>(N), static_cast<unsigned>(H)), 32, 0, cuda_stream()>>>(walk);
  check_launch("random_features running shift");
}

}  // namespace weft::kernels
