// A block takes kTokens tokens of a row: their cosines and sines into shared memory, once for all
// heads, then the turns. The angle is reduced to a part of a full turn in fp64, so that far
// positions are as good as near ones; the rest is fp32.
#include "kernels/sequence/rotary.h"

#include <cmath>

#include "kernels/tile/vectors.cuh"
#include "kernels/tokens/documents.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kTokens = 8;

template <class Real>
struct Heads {
  const Real* x;  // [B, T, H, K] with strides
  int64_t x_row, x_token, x_head;
  Real* y;  // contiguous
  int64_t tokens;
  int H, K, pairs;
};

struct Angles {
  double log2_base, offset;
  float sign;
  const int32_t* cu;  // [N + 1] or null
  int N;
  const int32_t* position;  // [1] or null
  double factor, ramp_begin, ramp_end;
  bool ramp_by_rate;
  float magnitude;
};

// The part of its rate r that pair i keeps.
__device__ __forceinline__ double kept_rate(const Angles& a, int i, double r) {
  if (a.factor == 1) return 1;
  const double s = a.ramp_by_rate ? r : i, length = a.ramp_end - a.ramp_begin;
  const double m = length == 0 ? 1 : fmin(fmax((s - a.ramp_begin) / length, 0.0), 1.0);
  return 1 - m + m / a.factor;
}

// The first token of the document that holds token t.
__device__ __forceinline__ int64_t document_begin(const Angles& a, int64_t t) {
  return a.N ? a.cu[document_at(a.cu, a.N, t)] : 0;
}

// table [n, pairs] = (cos, sin) of the n tokens from `first` of a row. A thread keeps to one pair.
__device__ __forceinline__ void make_table(const Angles& a, int width, int pairs, int64_t first,
                                           int n, float2* table) {
  const double offset = a.offset + (a.position ? *a.position : 0);
  const int lanes = min(pairs, kThreads), groups = kThreads / lanes;
  const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  for (int i = lane; i < pairs && group < groups; i += lanes) {
    const double r = exp2(-2.0 * i / width * a.log2_base);
    const double rate = r / 6.283185307179586 * kept_rate(a, i, r);  // turns a token
    for (int j = group; j < n; j += groups) {
      const int64_t t = first + j;
      const double turns = (offset + static_cast<double>(t - document_begin(a, t))) * rate;
      float sine, cosine;
      sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine, &cosine);
      table[j * pairs + i] = make_float2(a.magnitude * cosine, a.magnitude * a.sign * sine);
    }
  }
}

template <int N, class Real>
__device__ __forceinline__ void get(const Real* from, float* to) {
  if constexpr (N == 1)
    *to = to_float(*from);
  else
    load(from, reinterpret_cast<float(&)[N]>(*to));
}
template <int N, class Real>
__device__ __forceinline__ void put(Real* to, const float* from) {
  if constexpr (N == 1)
    *to = from_float<Real>(*from);
  else
    store(to, reinterpret_cast<const float(&)[N]>(*from));
}

// N neighbouring pairs of a head, the first being pair i.
template <bool kInterleaved, int N, class Real>
__device__ __forceinline__ void turn_pairs(const Real* x, Real* y, const float2* angle, int i,
                                           int pairs) {
  const int first = kInterleaved ? 2 * i : i, second = kInterleaved ? 2 * i + N : i + pairs;
  float w[2 * N];
  get<N>(x + first, w);
  get<N>(x + second, w + N);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int p = kInterleaved ? 2 * j : j, q = kInterleaved ? 2 * j + 1 : j + N;
    const float2 turn = angle[i + j];
    const float u = w[p], v = w[q];
    w[p] = u * turn.x - v * turn.y;
    w[q] = u * turn.y + v * turn.x;
  }
  put<N>(y + first, w);
  put<N>(y + second, w + N);
}

// Grid: B times the blocks of a row. Shared memory: [kTokens, pairs] of float2.
template <bool kInterleaved, int N, class Real>
__global__ void __launch_bounds__(kThreads)
    turn(Heads<Real> h, Angles a, int width, unsigned blocks) {
  extern __shared__ float2 table[];
  const unsigned b = blockIdx.x / blocks;
  const int64_t first = static_cast<int64_t>(blockIdx.x - b * blocks) * kTokens;
  const int n = static_cast<int>(min(static_cast<int64_t>(kTokens), h.tokens - first));
  make_table(a, width, h.pairs, first, n, table);
  __syncthreads();
  const int turns = h.pairs / N, rest = (h.K - 2 * h.pairs) / N, across = turns + rest;
  const Real* const x = h.x + b * h.x_row + first * h.x_token;
  Real* const y = h.y + (b * h.tokens + first) * h.H * h.K;
  for (int i = threadIdx.x; i < n * h.H * across; i += kThreads) {
    const int row = i / across, part = i - row * across;
    const int token = row / h.H, head = row - token * h.H;
    const Real* const from = x + token * h.x_token + head * h.x_head;
    Real* const to = y + static_cast<int64_t>(row) * h.K;
    if (part < turns) {
      turn_pairs<kInterleaved, N>(from, to, table + token * h.pairs, part * N, h.pairs);
    } else {  // columns that stay
      const int column = 2 * h.pairs + (part - turns) * N;
      float same[N];
      get<N>(from + column, same);
      put<N>(to + column, same);
    }
  }
}

// y = x turned by the angles of its positions, forward (sign 1) or back (-1).
void turn_all(const Tensor& given, const Rotary::Options& o, float sign, const Tensor& y) {
  const Tensor x = given.stride(3) == 1 || given.size(3) == 1 ? given : given.contiguous();
  const int64_t B = x.size(0), T = x.size(1), H = x.size(2), K = x.size(3);
  const int64_t width = o.width ? o.width : K, pairs = width / 2;
  require(pairs * kTokens * 8 <= 48 * 1024, "rotary: width = ", width,
          ", expected at most 1536 on a GPU");
  if (x.is_meta() || x.numel() == 0) return;
  const Tensor cu = o.cu_seqlens ? o.cu_seqlens.to(x.device()) : Tensor();
  const Angles angles{std::log2(o.base),
                      static_cast<double>(o.offset),
                      sign,
                      cu ? dptr<int32_t>(cu) : nullptr,
                      cu ? static_cast<int>(cu.size(0) - 1) : 0,
                      dptr<const int32_t>(o.position),
                      o.factor,
                      o.ramp_begin,
                      o.ramp_end,
                      o.ramp_by_rate,
                      static_cast<float>(o.magnitude)};
  const auto blocks = static_cast<unsigned>(ceil_div(T, kTokens)), rows = static_cast<unsigned>(B);
  const size_t shared = static_cast<size_t>(pairs) * kTokens * sizeof(float2);
  for_cuda_dtype(x.dtype(), [&]<class E>() {
    const Heads<E> heads{dptr<E>(x),          x.stride(0),         x.stride(1),
                         x.stride(2),         dptr<E>(y),          T,
                         static_cast<int>(H), static_cast<int>(K), static_cast<int>(pairs)};
    const auto launch = [&](auto kernel) {
      kernel<<<blocks * rows, kThreads, shared, cuda_stream()>>>(heads, angles,
                                                                 static_cast<int>(width), blocks);
    };
    constexpr int N = kVector<E>;
    const bool vectors = pairs % N == 0 && K % N == 0 && vector_rows(x, N) && vector_rows(y, N);
    if (o.interleaved)
      launch(vectors ? turn<true, N, E> : turn<true, 1, E>);
    else
      launch(vectors ? turn<false, N, E> : turn<false, 1, E>);
  });
  check_launch("rotary");
}

}  // namespace

void Rotary::cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y, Saved*) {
  turn_all(x.x, o, 1, y.y);
}

void Rotary::cuda_backward(const Inputs<Tensor>&, const Options& o, const Saved&,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  if (dx.x) turn_all(dy.y, o, -1, dx.x);
}

}  // namespace weft::kernels
