// The head and its loss on the GPU. Logits exist for one chunk of rows at a time, in fp32; one
// block turns a row of them into its log-sum-exp and, in the same pass over memory, into the
// gradient of the loss, which is a product's operand and so of x's dtype.
//
// The forward pass makes the gradients at once where one is going to be asked for: logits are then
// made once, by three products in all and not four. What the loss is multiplied with afterwards,
// and the share of a labelled row, are scalars on the device; the backward pass multiplies by them.
// Only where z has a gradient too, whose weight relative to the loss's cannot be known before, are
// logits made again.
#include "kernels/products/cross_entropy.h"

#include "kernels/rows/column_sums.cuh"
#include "kernels/rows/matrix.h"
#include "kernels/rows/rows.cuh"
#include "kernels/tile/gemm.h"
#include "kernels/tile/warp.cuh"

namespace weft::kernels {
namespace {

constexpr int64_t kLogits = int64_t{1} << 28;  // that exist at a time, at most
constexpr int kThreads = 1024;
constexpr int kPack = 8;                // neighbouring logits of a thread
constexpr size_t kShared = 208 * 1024;  // bytes of a row that are kept on the chip

struct Statistics {
  float *lse, *loss, *z;  // [R], zero for rows without a label
};

template <class Real>
struct RowsOfLogits {
  float* logits;
  Real* gradient;  // may be the same memory, may be null
  bool exact;      // put the gradient, unrounded, in the place of the logits too
  int64_t stride, gradient_stride;
  int V;
  const Real* bias;  // may be null
  const int32_t* targets;
  float softcap;
  // Factors of the gradient, on the device: of loss and z, and what each labelled row has of the
  // mean. Null: 1, 0, 1.
  const float *dloss, *dz, *share;
  Statistics row;
};

__device__ __forceinline__ float exponential(float x) { return tile::ex2(tile::kLog2e * x); }

// The largest number seen and the sum of exponentials relative to it.
struct Running {
  float most = -INFINITY, sum = 0;

  __device__ __forceinline__ void add(const Running& other) {
    const float top = fmaxf(most, other.most);
    if (top == -INFINITY) return;
    sum = sum * exponential(most - top) + other.sum * exponential(other.most - top);
    most = top;
  }
};

__device__ __forceinline__ Running of_block(Running mine) {
  __shared__ Running warps[kThreads / 32];
#pragma unroll
  for (int m = 16; m > 0; m /= 2)
    mine.add({__shfl_xor_sync(~0u, mine.most, m), __shfl_xor_sync(~0u, mine.sum, m)});
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = warps[threadIdx.x % 32];
#pragma unroll
  for (int m = 16; m > 0; m /= 2)
    mine.add({__shfl_xor_sync(~0u, mine.most, m), __shfl_xor_sync(~0u, mine.sum, m)});
  return mine;
}

// One block a row. kKept: the row stays in shared memory between its two passes.
template <bool kKept, class Real>
__global__ void __launch_bounds__(kThreads) softmax_rows(const RowsOfLogits<Real> a) {
  extern __shared__ __align__(16) float kept[];
  __shared__ float at_target;
  const int64_t r = blockIdx.x;
  const int target = a.targets[r];
  float* const logits = a.logits + r * a.stride;
  Real* const gradient = a.gradient + r * a.gradient_stride;

  if (target == CrossEntropy::kIgnored) {
    if (threadIdx.x == 0) a.row.lse[r] = a.row.loss[r] = a.row.z[r] = 0;
    if (!a.gradient) return;
    for (int v = threadIdx.x * kPack; v < a.V; v += kThreads * kPack) {
      Pack<Real, kPack> none;
#pragma unroll
      for (int k = 0; k < kPack; ++k) none.at[k] = from_float<Real>(0);
      store(gradient + v, none);
      const float zeros[kPack] = {};
      if (a.exact) store_floats(logits + v, zeros);
    }
    return;
  }

  // Eight logits, biased and capped; -inf beyond the vocabulary. The memory of a row goes on so
  // far.
  const auto read = [&](int v) {
    Pack<float, kPack> l;
    *reinterpret_cast<float4*>(l.at) = *reinterpret_cast<const float4*>(logits + v);
    *reinterpret_cast<float4*>(l.at + 4) = *reinterpret_cast<const float4*>(logits + v + 4);
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      if (v + k >= a.V) {
        l.at[k] = -INFINITY;
        continue;
      }
      if (a.bias) l.at[k] += to_float(a.bias[v + k]);
      if (a.softcap > 0) l.at[k] = a.softcap * tanhf(l.at[k] / a.softcap);
    }
    return l;
  };

  Running seen;
#pragma unroll 2
  for (int v = threadIdx.x * kPack; v < a.V; v += kThreads * kPack) {
    const auto l = read(v);
    float top = l.at[0];
#pragma unroll
    for (int k = 1; k < kPack; ++k) top = fmaxf(top, l.at[k]);
    if (top > seen.most) {
      seen.sum *= exponential(seen.most - top);
      seen.most = top;
    }
#pragma unroll
    for (int k = 0; k < kPack; ++k) seen.sum += exponential(l.at[k] - seen.most);
    if (target >= v && target < v + kPack)
#pragma unroll
      for (int k = 0; k < kPack; ++k)
        if (target == v + k) at_target = l.at[k];
    if (kKept) {
      *reinterpret_cast<float4*>(kept + v) = *reinterpret_cast<const float4*>(l.at);
      *reinterpret_cast<float4*>(kept + v + 4) = *reinterpret_cast<const float4*>(l.at + 4);
    }
  }
  seen = of_block(seen);
  const float lse = seen.most + tile::kLn2 * log2f(seen.sum);
  if (threadIdx.x == 0) {
    a.row.lse[r] = lse;
    a.row.loss[r] = lse - at_target;
    a.row.z[r] = lse * lse;
  }
  if (!a.gradient) return;

  const float share = a.share ? *a.share : 1;
  const float dloss = a.dloss ? *a.dloss * share : 1;
  const float factor = dloss + (a.dz ? 2 * *a.dz * share * lse : 0);
#pragma unroll 2
  for (int v = threadIdx.x * kPack; v < a.V; v += kThreads * kPack) {
    Pack<float, kPack> l;
    if (kKept) {
      *reinterpret_cast<float4*>(l.at) = *reinterpret_cast<const float4*>(kept + v);
      *reinterpret_cast<float4*>(l.at + 4) = *reinterpret_cast<const float4*>(kept + v + 4);
    } else {
      l = read(v);
    }
    float exact[kPack];
    Pack<Real, kPack> out;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      float d = factor * exponential(l.at[k] - lse);
      if (v + k == target) d -= dloss;
      if (a.softcap > 0 && v + k < a.V) {
        const float t = l.at[k] / a.softcap;
        d *= 1 - t * t;
      }
      exact[k] = d;
      out.at[k] = from_float<Real>(d);
    }
    store(gradient + v, out);
    if (a.exact) store_floats(logits + v, exact);
  }
}

// Of all rows: loss, z, and share = 1 / how many are labelled. One block.
__global__ void __launch_bounds__(kThreads) means(const Statistics row, const int32_t* targets,
                                                  int64_t R, float* loss, float* z, float* share) {
  float sums[3] = {0, 0, 0};
#pragma unroll 4
  for (int64_t r = threadIdx.x; r < R; r += kThreads) {
    sums[0] += row.loss[r];
    sums[1] += row.z[r];
    sums[2] += targets[r] == CrossEntropy::kIgnored ? 0 : 1;
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) sums[i] = tile::block_sum(sums[i]);
  if (threadIdx.x > 0) return;
  const float inverse = 1 / fmaxf(1, sums[2]);
  *loss = sums[0] * inverse;
  *z = sums[1] * inverse;
  if (share) *share = inverse;
}

// to = from * a * b, the factors on the device; four at a time where `vectors`.
template <class Real>
__global__ void __launch_bounds__(256)
    scaled(const float* from, int64_t n, const float* a, const float* b, Real* to) {
  const float factor = *a * *b;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * 4;
  if (i + 4 <= n) {
    const auto in = load<4>(from + i);
    Pack<Real, 4> out;
#pragma unroll
    for (int k = 0; k < 4; ++k) out.at[k] = from_float<Real>(factor * in.at[k]);
    store(to + i, out);
  } else {
    for (int64_t k = i; k < n; ++k) to[k] = from_float<Real>(factor * from[k]);
  }
}

void scale_into(const Tensor& from, const Tensor& a, const Tensor& b, const Tensor& to) {
  const int64_t n = to.numel();
  if (n == 0) return;
  for_cuda_dtype(to.dtype(), [&]<class Real>() {
    scaled<<<static_cast<unsigned>(ceil_div(n, 1024)), 256, 0, cuda_stream(to.device())>>>(
        dptr<float>(from), n, dptr<float>(a), dptr<float>(b), dptr<Real>(to));
  });
}

// Rows of a chunk: a power of two.
int64_t rows_of_chunk(int64_t R, int64_t V) {
  int64_t rows = 64;
  while (rows * 2 * V <= kLogits) rows *= 2;
  return std::min(rows, R);
}

// What of the gradients is wanted, in fp32 or, of x, in any dtype; and what they are multiplied
// with.
struct Gradients {
  Tensor x, w, bias_parts;  // [R, D], [V, D], [chunks, V]
  Tensor dloss, dz, share;  // [1]
  explicit operator bool() const { return x || w || bias_parts; }
};

struct Head {
  Head(const Inputs<CrossEntropy>& in, const CrossEntropy::Options& o, bool gradients)
      : x(with_rows(in.x)),
        w(in.w),
        bias(in.bias ? in.bias.contiguous() : Tensor()),
        targets(o.targets.to(in.x.device()).contiguous()),
        softcap(static_cast<float>(o.softcap)),
        R(x.size(0)),
        V(w.size(0)),
        chunk(rows_of_chunk(R, V)),
        chunks(chunk > 0 ? ceil_div(R, chunk) : 0),
        statistics(empty({3, R}, Dtype::f32, x.device())) {
    const int64_t columns = ceil_div(V, kPack) * kPack;
    logits = empty({chunk, columns}, Dtype::f32, x.device());
    if (gradients)
      flow = x.dtype() == Dtype::f32 ? logits : empty({chunk, columns}, x.dtype(), x.device());
  }

  Statistics rows(int64_t first) const {
    auto* const at = dptr<float>(statistics) + first;
    return {at, at + R, at + 2 * R};
  }

  // Walks the chunks; fills `statistics` and what there is of g.
  void run(const Gradients& g) const {
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = i * chunk, count = std::min(chunk, R - first);
      const Tensor rows_x = x.slice(0, first, first + count);
      const Tensor made = logits.slice(0, 0, count).slice(1, 0, V);
      cuda_gemm(rows_x, w.transpose(0, 1), made);
      softmax(g, first, count);
      if (!g) continue;
      const Tensor d = flow.slice(0, 0, count).slice(1, 0, V);
      if (g.x) cuda_gemm(d, w, g.x.slice(0, first, first + count));
      if (g.w) cuda_gemm(d.transpose(0, 1), rows_x, g.w, {1, i > 0 ? 1.0f : 0.0f, {}});
      if (g.bias_parts) cuda_column_sums(made, g.bias_parts.select(0, i));
    }
    if (chunks == 0 && g.w && !x.is_meta()) g.w.zero();
  }

  Tensor x, w, bias, targets;
  float softcap;
  int64_t R, V, chunk, chunks;
  Tensor statistics;    // f32 [3, R]
  Tensor logits, flow;  // [chunk, V and a few more]

 private:
  void softmax(const Gradients& g, int64_t first, int64_t count) const {
    if (x.is_meta()) return;
    for_cuda_dtype(x.dtype(), [&]<class Real>() {
      const RowsOfLogits<Real> a{.logits = dptr<float>(logits),
                                 .gradient = g ? dptr<Real>(flow) : nullptr,
                                 .exact = g.bias_parts.defined(),
                                 .stride = logits.stride(0),
                                 .gradient_stride = logits.stride(0),
                                 .V = static_cast<int>(V),
                                 .bias = dptr<Real>(bias),
                                 .targets = dptr<int32_t>(targets) + first,
                                 .softcap = softcap,
                                 .dloss = dptr<float>(g.dloss),
                                 .dz = dptr<float>(g.dz),
                                 .share = dptr<float>(g.share),
                                 .row = rows(first)};
      const size_t bytes = logits.stride(0) * sizeof(float);
      const auto blocks = static_cast<unsigned>(count);
      const cudaStream_t stream = cuda_stream(x.device());
      if (g && bytes <= kShared) {
        void (*const kernel)(RowsOfLogits<Real>) = softmax_rows<true, Real>;
        allow_shared_memory(kernel, bytes);
        kernel<<<blocks, kThreads, bytes, stream>>>(a);
      } else {
        softmax_rows<false><<<blocks, kThreads, 0, stream>>>(a);
      }
    });
    check_launch("cross_entropy");
  }
};

}  // namespace

void CrossEntropy::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                                Saved* saved) {
  const Device device = x.x.device();
  const Head head(x, o, saved != nullptr);
  Gradients g;
  if (saved) {
    g.x = empty(x.x.shape(), Dtype::f32, device);
    g.w = empty(x.w.shape(), Dtype::f32, device);
    if (x.bias) g.bias_parts = empty({head.chunks, head.V}, Dtype::f32, device);
    *saved = {
        .lse = {}, .dx = g.x, .dw = g.w, .dbias = {}, .share = empty({1}, Dtype::f32, device)};
    if (x.bias) saved->dbias = empty({head.V}, Dtype::f32, device);
  }
  head.run(g);
  if (device.is_meta()) return;
  means<<<1, kThreads, 0, cuda_stream(device)>>>(head.rows(0), dptr<int32_t>(head.targets), head.R,
                                                 dptr<float>(y.loss), dptr<float>(y.z),
                                                 saved ? dptr<float>(saved->share) : nullptr);
  if (g.bias_parts)
    sum_columns(dptr<float>(g.bias_parts), head.chunks, head.V, dptr<float>(saved->dbias), device);
  check_launch("cross_entropy forward");
}

void CrossEntropy::cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                                 const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Device device = x.x.device();
  if (!dy.z) {
    if (device.is_meta()) return;
    if (dx.x) scale_into(saved.dx, dy.loss, saved.share, dx.x);
    if (dx.w) scale_into(saved.dw, dy.loss, saved.share, dx.w);
    if (dx.bias) scale_into(saved.dbias, dy.loss, saved.share, dx.bias);
    check_launch("cross_entropy backward");
    return;
  }
  const Head head(x, o, true);
  Gradients g;
  g.x = dx.x;
  if (dx.w) g.w = dx.w.dtype() == Dtype::f32 ? dx.w : empty(x.w.shape(), Dtype::f32, device);
  if (dx.bias) g.bias_parts = empty({head.chunks, head.V}, Dtype::f32, device);
  g.dloss = dy.loss.contiguous();
  g.dz = dy.z.contiguous();
  g.share = saved.share;
  if (g) head.run(g);
  if (device.is_meta()) return;
  if (dx.w && !dx.w.same_view(g.w)) dx.w.copy_from(g.w);
  if (dx.bias)
    for_cuda_dtype(dx.bias.dtype(), [&]<class Real>() {
      sum_columns(dptr<float>(g.bias_parts), head.chunks, head.V, dptr<Real>(dx.bias), device);
    });
  check_launch("cross_entropy backward");
}

}  // namespace weft::kernels
