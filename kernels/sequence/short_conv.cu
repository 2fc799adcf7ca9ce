// A thread owns some neighbouring channels and walks kWalk tokens of a row, with the last W - 1
// inputs in registers; a document's first token takes them from its state. Backward walks forward
// as well: it makes the sum before the activation again, keeps the gradients dp of the last W - 1
// of them, and so knows dx of the token W - 1 back; to complete its last tokens it walks on into
// its neighbour's. W is a template argument of 2, 4, 8 or 16: fewer taps get zeros before them
// (`pad` of them). The gradients of the taps are summed over a thread's tokens, then over a block's
// walks, and the blocks' sums by a second kernel, always in the same order.
#include "kernels/rows/functions.cuh"
#include "kernels/sequence/short_conv.h"
#include "kernels/tile/vectors.cuh"
#include "kernels/tokens/documents.cuh"

namespace weft::kernels {
namespace {

constexpr int kLanes = 32, kWalks = 8;  // a block: channels across, token ranges down
constexpr int kWalk = 32;               // tokens of a thread
constexpr int kBlockTokens = kWalks * kWalk;
constexpr int kMostTaps = 16;
constexpr int kThreads = kLanes * kWalks;

// A state tensor [N, D, W - 1], or null. const float or float.
template <class Real>
struct States {
  Real* data = nullptr;
  int64_t document = 0, channel = 0, column = 0;
  __device__ Real* at(int64_t n, int64_t d, int64_t j) const {
    return data + n * document + d * channel + j * column;
  }
};

template <class Real>
struct Conv {
  const Real* x;  // [B, T, D], channels are neighbours
  int64_t x_row, x_token;
  const Real* w;  // [D, W - pad] contiguous
  const Real* bias;
  States<const float> initial;
  const int32_t* cu;  // [N + 1] or null
  int N, pad;
  int T_;
  int64_t D;
  bool silu;
};

// The document of a token, its first token and its end.
struct Document {
  int n, begin, end;
};
template <class Real>
__device__ __forceinline__ Document document_of(const Conv<Real>& c, int row, int t) {
  if (!c.cu) return {row, 0, c.T_};
  const int n = document_at(c.cu, c.N, t);
  return {n, c.cu[n], c.cu[n + 1]};
}

// The channels of a thread: N of them from d, of which n exist; all of them if kAligned.
template <int N, bool kAligned>
struct Channels {
  int64_t d;
  int n;

  template <class Real>
  __device__ __forceinline__ Packed<Real, N> get(const Real* from) const {
    if (kAligned) return fetch<N>(from);
    float some[N];
    load_some(from, n, some);
    return packed<Real>(some);
  }
  template <class Real>
  __device__ __forceinline__ void put(Real* to, const float (&from)[N]) const {
    if (kAligned)
      store(to, from);
    else
      store_some(to, n, from);
  }
};
template <class Ch, int N, class Real>
__device__ __forceinline__ Ch channels_of(const Conv<Real>& c) {
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * kLanes + threadIdx.x) * N;
  return {d, static_cast<int>(max(int64_t{0}, min(static_cast<int64_t>(N), c.D - d)))};
}

template <int W, int N, class Ch, class Real>
__device__ __forceinline__ void load_taps(const Conv<Real>& c, const Ch& ch, float (&w)[W][N],
                                          float (&bias)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const int64_t at = (ch.d + i) * (W - c.pad) + j - c.pad;
      w[j][i] = i < ch.n && j >= c.pad ? to_float(c.w[at]) : 0.0f;
    }
    bias[i] = c.bias && i < ch.n ? to_float(c.bias[ch.d + i]) : 0.0f;
  }
}

// seen[0 .. W - 2] = the inputs before token t of a document, the newest last.
template <int W, int N, class Ch, class Real>
__device__ __forceinline__ void load_seen(const Conv<Real>& c, const Ch& ch, const Real* x,
                                          const Document& doc, int t, float (&seen)[W][N]) {
#pragma unroll
  for (int j = 0; j < W - 1; ++j) {
    const int before = t - (W - 1) + j - doc.begin, column = before + W - 1 - c.pad;
    if (before >= 0)
      unpack(ch.get(x + (doc.begin + before) * c.x_token), seen[j]);
    else if (c.initial.data && column >= 0)
      load_some(c.initial.at(doc.n, ch.d, column), ch.n, seen[j], c.initial.channel);
    else
#pragma unroll
      for (int i = 0; i < N; ++i) seen[j][i] = 0;
  }
}

// The sum before the activation: seen[W - 1] is the current input.
template <int W, int N>
__device__ __forceinline__ void sum_taps(const float (&w)[W][N], const float (&bias)[N],
                                         const float (&seen)[W][N], float (&sum)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    sum[i] = bias[i];
#pragma unroll
    for (int j = 0; j < W; ++j) sum[i] = fmaf(w[j][i], seen[j][i], sum[i]);
  }
}

template <int W, int N>
__device__ __forceinline__ void shift(float (&rows)[W][N]) {
#pragma unroll
  for (int j = 0; j + 1 < W; ++j)
#pragma unroll
    for (int i = 0; i < N; ++i) rows[j][i] = rows[j + 1][i];
}

// Grid: blocks of kBlockTokens tokens of all rows, channels / (kLanes N).
template <int W, int N, bool kAligned, class Real>
__global__ void __launch_bounds__(kThreads, W <= 4 ? 2 : 1)
    conv(Conv<Real> c, Real* __restrict__ y, States<float> final_state, int blocks) {
  const auto ch = channels_of<Channels<N, kAligned>, N>(c);
  const int row = blockIdx.x / blocks;
  const int from = (blockIdx.x - row * blocks) * kBlockTokens + threadIdx.y * kWalk;
  const int stop = min(c.T_, from + kWalk);
  if (ch.n == 0 || from >= stop) return;
  float w[W][N], bias[N], seen[W][N];
  load_taps(c, ch, w, bias);
  const Real* const x = c.x + row * c.x_row + ch.d;
  Real* const out = y + static_cast<int64_t>(row) * c.T_ * c.D + ch.d;
  for (int t = from; t < stop;) {
    const Document doc = document_of(c, row, t);
    load_seen(c, ch, x, doc, t, seen);
    const int end = min(stop, doc.end);
    constexpr int kAhead = sizeof(Real) == 4 ? 2 : 4;  // tokens read while as many are walked
    Packed<Real, N> next[kAhead];
    const auto read = [&](int first) {
#pragma unroll
      for (int k = 0; k < kAhead; ++k)
        if (first + k < end) next[k] = ch.get(x + (first + k) * c.x_token);
    };
    read(t);
    for (; t < end; t += kAhead) {
      Packed<Real, N> now[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) now[k] = next[k];
      read(t + kAhead);
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (t + k >= end) break;
        unpack(now[k], seen[W - 1]);
        float sum[N];
        sum_taps(w, bias, seen, sum);
        if (c.silu) {
#pragma unroll
          for (int i = 0; i < N; ++i) sum[i] = device::Silu::value(sum[i]);
        }
        ch.put(out + (t + k) * c.D, sum);
        shift(seen);
      }
    }
    t = end;
    if (end == doc.end && final_state.data) {
#pragma unroll
      for (int j = 0; j < W - 1; ++j)
        if (j >= c.pad)
          store_some(final_state.at(doc.n, ch.d, j - c.pad), ch.n, seen[j], final_state.channel);
    }
  }
}

template <class Real>
struct Gradients {
  const Real* dy;  // [B, T, D]
  int64_t dy_row, dy_token;
  States<const float> final_state;
  Real* dx;  // contiguous or null
  States<float> initial_state;
  float* parts;  // [blocks of tokens, W - pad + 1, D] or null
};

// Sums of the walks of a block, by the first of them; in order.
template <int W, int N, class Real>
__device__ __forceinline__ void add_walks(const Conv<Real>& c, const float (&dw)[W + 1][N],
                                          float* parts) {
  __shared__ float sums[kWalks][kLanes][N];
#pragma unroll
  for (int j = 0; j <= W; ++j) {
    if (j < c.pad) continue;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; ++i) sums[threadIdx.y][threadIdx.x][i] = dw[j][i];
    __syncthreads();
    const int at = threadIdx.y * kLanes + threadIdx.x;
    const int64_t d = static_cast<int64_t>(blockIdx.y) * kLanes * N + at;
    if (at >= kLanes * N || d >= c.D) continue;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kWalks; ++i) sum += (&sums[i][0][0])[at];
    const int64_t part = static_cast<int64_t>(blockIdx.x) * (W - c.pad + 1) + j - c.pad;
    parts[part * c.D + d] = sum;
  }
}

template <int W, int N, bool kAligned, class Real>
struct WalkBack {
  const Conv<Real>& c;
  const Gradients<Real>& g;
  Channels<N, kAligned> ch;
  int row, from, stop;  // the tokens of this walk
  float w[W][N], bias[N], seen[W][N], dp[W][N], dw[W + 1][N];

  // The gradient of input u of a document, from dp of u .. u + W - 1: a token or a column of its
  // state. `column` of the final state is where it lives on, or none (-1).
  __device__ __forceinline__ void emit(const Document& doc, int u, int column) {
    float sum[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum[i] = 0;
#pragma unroll
      for (int j = 0; j < W; ++j) sum[i] = fmaf(w[j][i], dp[W - 1 - j][i], sum[i]);
    }
    const bool state = u < doc.begin;
    if (state ? !g.initial_state.data || doc.begin < from || doc.begin >= stop
              : !g.dx || u < from || u >= stop)
      return;
    if (column >= 0 && g.final_state.data) {
      float more[N];
      load_some(g.final_state.at(doc.n, ch.d, column), ch.n, more, g.final_state.channel);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += more[i];
    }
    const int of_state = u - doc.begin + W - 1 - c.pad;
    if (state && of_state >= 0)
      store_some(g.initial_state.at(doc.n, ch.d, of_state), ch.n, sum, g.initial_state.channel);
    else if (!state)
      ch.put(g.dx + (static_cast<int64_t>(row) * c.T_ + u) * c.D + ch.d, sum);
  }

  __device__ __forceinline__ void token(const Document& doc, int t, const Packed<Real, N>& x,
                                        const Packed<Real, N>& dy) {
    unpack(x, seen[W - 1]);
    unpack(dy, dp[W - 1]);
    if (c.silu) {
      float sum[N];
      sum_taps(w, bias, seen, sum);
#pragma unroll
      for (int i = 0; i < N; ++i) dp[W - 1][i] *= device::Silu::slope(sum[i]);
    }
    if (t < stop) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int j = 0; j < W; ++j) dw[j][i] = fmaf(dp[W - 1][i], seen[j][i], dw[j][i]);
        dw[W][i] += dp[W - 1][i];
      }
    }
    emit(doc, t - W + 1, -1);
    shift(seen);
    shift(dp);
  }

  __device__ __forceinline__ void walk() {
    const Real* const x = c.x + row * c.x_row + ch.d;
    const Real* const dy = g.dy + row * g.dy_row + ch.d;
    for (int t = from; t < stop;) {
      const Document doc = document_of(c, row, t);
      load_seen(c, ch, x, doc, t, seen);
#pragma unroll
      for (int j = 0; j < W; ++j)
#pragma unroll
        for (int i = 0; i < N; ++i) dp[j][i] = 0;
      const int end = min(doc.end, stop + W - 1);
      constexpr int kAhead = sizeof(Real) == 4 || W > 4 ? 1 : 2;  // as in `conv`
      Packed<Real, N> next_x[kAhead], next_dy[kAhead];
      const auto read = [&](int first) {
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (first + k < end) {
            next_x[k] = ch.get(x + (first + k) * c.x_token);
            next_dy[k] = ch.get(dy + (first + k) * g.dy_token);
          }
      };
      read(t);
      for (; t < end; t += kAhead) {
        Packed<Real, N> now_x[kAhead], now_dy[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) now_x[k] = next_x[k], now_dy[k] = next_dy[k];
        read(t + kAhead);
#pragma unroll
        for (int k = 0; k < kAhead; ++k)
          if (t + k < end) token(doc, t + k, now_x[k], now_dy[k]);
      }
      t = end;
      if (end < doc.end) continue;
      for (int j = 0; j < W - 1; ++j) {  // no tokens after the document's last
#pragma unroll
        for (int i = 0; i < N; ++i) dp[W - 1][i] = 0;
        emit(doc, doc.end - W + 1 + j, j - c.pad);
        shift(dp);
      }
    }
  }
};

template <int W, int N, bool kAligned, class Real>
__global__ void __launch_bounds__(kThreads, W <= 4 ? 2 : 1)
    conv_back(Conv<Real> c, Gradients<Real> g, int blocks) {
  const auto ch = channels_of<Channels<N, kAligned>, N>(c);
  const int row = blockIdx.x / blocks;
  const int from = (blockIdx.x - row * blocks) * kBlockTokens + threadIdx.y * kWalk;
  WalkBack<W, N, kAligned, Real> walk{c, g, ch, row, from, min(c.T_, from + kWalk)};
#pragma unroll
  for (int j = 0; j <= W; ++j)
#pragma unroll
    for (int i = 0; i < N; ++i) walk.dw[j][i] = 0;
  if (ch.n > 0 && from < walk.stop) {
    load_taps(c, ch, walk.w, walk.bias);
    walk.walk();
  }
  if (g.parts) add_walks<W>(c, walk.dw, g.parts);
}

// dw [D, W] and dbias [D] from parts [count, W + 1, D]: a warp's lanes are channels, the block's
// rows share the parts, and their sums are added in order.
template <class Real>
__global__ void __launch_bounds__(kThreads)
    sum_parts(const float* __restrict__ parts, int64_t count, int W, int64_t D, Real* dw,
              Real* dbias) {
  __shared__ float sums[kWalks][kLanes];
  const int64_t d = static_cast<int64_t>(blockIdx.y) * kLanes + threadIdx.x;
  const int j = blockIdx.x;
  float sum = 0;
  if (d < D) {
#pragma unroll 4
    for (int64_t p = threadIdx.y; p < count; p += kWalks) sum += parts[(p * (W + 1) + j) * D + d];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || d >= D) return;
  for (int i = 1; i < kWalks; ++i) sum += sums[i][threadIdx.x];
  if (j < W && dw) dw[d * W + j] = from_float<Real>(sum);
  if (j == W && dbias) dbias[d] = from_float<Real>(sum);
}

template <class Real>
States<Real> states(const Tensor& t) {
  if (!t || t.numel() == 0) return {};
  return {dptr<std::remove_const_t<Real>>(t), t.stride(0), t.stride(1), t.stride(2)};
}

// The inputs as the kernels take them; holds the copies that this needs.
struct Operands {
  Operands(const Inputs<ShortConv>& in, const ShortConv::Options& o)
      : x(in.x.stride(2) == 1 || in.x.size(2) == 1 ? in.x : in.x.contiguous()),
        w(in.w.contiguous()),
        bias(in.bias ? in.bias.contiguous() : Tensor()),
        initial(in.initial_state),
        B(x.size(0)),
        T(x.size(1)),
        D(x.size(2)),
        W(in.w.size(1)),
        blocks(ceil_div(T, kBlockTokens)),
        silu(o.silu) {
    require(T < int64_t{1} << 30, "short_conv: ", T, " tokens, expected fewer than 2^30");
    require(W <= kMostTaps, "short_conv: w has ", W, " taps, expected at most ", kMostTaps,
            " on a GPU");
    if (o.cu_seqlens && !x.is_meta()) cu = o.cu_seqlens.to(x.device());
  }

  template <class E>
  Conv<E> conv(int taps) const {
    return {dptr<E>(x),
            x.stride(0),
            x.stride(1),
            dptr<E>(w),
            bias ? dptr<E>(bias) : nullptr,
            states<const float>(initial),
            cu ? dptr<int32_t>(cu) : nullptr,
            cu ? static_cast<int>(cu.size(0) - 1) : 0,
            taps - static_cast<int>(W),
            static_cast<int>(T),
            D,
            silu};
  }
  dim3 grid(int N) const {
    return dim3(static_cast<unsigned>(B * blocks), static_cast<unsigned>(ceil_div(D, kLanes * N)));
  }

  Tensor x, w, bias, initial, cu;
  int64_t B, T, D, W, blocks;
  bool silu;
};

// Calls f.template operator()<W, aligned>() with the number of taps or the next that there are
// kernels for.
template <class F>
void for_taps(int64_t taps, bool aligned, const F& f) {
  const auto call = [&]<int W>() {
    if (aligned)
      f.template operator()<W, true>();
    else
      f.template operator()<W, false>();
  };
  if (taps <= 2)
    call.template operator()<2>();
  else if (taps <= 4)
    call.template operator()<4>();
  else if (taps <= 8)
    call.template operator()<8>();
  else
    call.template operator()<kMostTaps>();
}

// Channels of a thread.
template <int W, bool kAligned>
constexpr int kChannels = W <= 4 && kAligned ? 4 : 2;

}  // namespace

void ShortConv::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                             Saved*) {
  const Operands x(in, o);
  if (x.x.is_meta()) return;
  if (x.T == 0 && y.final_state) {  // the state goes through
    if (x.initial)
      y.final_state.copy_from(x.initial);
    else
      y.final_state.zero();
  }
  if (x.x.numel() == 0) return;
  for_cuda_dtype(x.x.dtype(), [&]<class E>() {
    const bool aligned = x.D % 4 == 0 && vector_rows(x.x, 4) && vector_rows(y.y, 4);
    for_taps(x.W, aligned, [&]<int W, bool kAligned>() {
      constexpr int N = kChannels<W, kAligned>;
      conv<W, N, kAligned, E><<<x.grid(N), dim3(kLanes, kWalks), 0, cuda_stream()>>>(
          x.conv<E>(W), dptr<E>(y.y), states<float>(y.final_state), static_cast<int>(x.blocks));
    });
  });
  check_launch("short_conv forward");
}

void ShortConv::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved&,
                              const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Operands x(in, o);
  const Tensor d = dy.y.stride(2) == 1 || x.D == 1 ? dy.y : dy.y.contiguous();
  const int64_t count = x.B * x.blocks;
  const bool weights = dx.w || dx.bias;
  const Tensor parts = weights ? empty({count, x.W + 1, x.D}, Dtype::f32, x.x.device()) : Tensor();
  if (x.x.is_meta()) return;
  if (x.T == 0 && dx.initial_state) {
    if (dy.final_state)
      dx.initial_state.copy_from(dy.final_state);
    else
      dx.initial_state.zero();
  }
  if (x.x.numel() == 0) {
    if (dx.w) dx.w.zero();
    if (dx.bias) dx.bias.zero();
    return;
  }
  for_cuda_dtype(x.x.dtype(), [&]<class E>() {
    const bool aligned =
        x.D % 4 == 0 && vector_rows(x.x, 4) && vector_rows(d, 4) && vector_rows(dx.x, 4);
    for_taps(x.W, aligned, [&]<int W, bool kAligned>() {
      constexpr int N = kChannels<W, kAligned>;
      const Gradients<E> g{dptr<E>(d),
                           d.stride(0),
                           d.stride(1),
                           states<const float>(dy.final_state),
                           dx.x ? dptr<E>(dx.x) : nullptr,
                           states<float>(dx.initial_state),
                           parts ? dptr<float>(parts) : nullptr};
      conv_back<W, N, kAligned, E><<<x.grid(N), dim3(kLanes, kWalks), 0, cuda_stream()>>>(
          x.conv<E>(W), g, static_cast<int>(x.blocks));
    });
    if (weights)
      sum_parts<E>
          <<<dim3(static_cast<unsigned>(x.W + 1), static_cast<unsigned>(ceil_div(x.D, kLanes))),
             dim3(kLanes, kWalks), 0, cuda_stream()>>>(
              dptr<float>(parts), count, static_cast<int>(x.W), x.D, dx.w ? dptr<E>(dx.w) : nullptr,
              dx.bias ? dptr<E>(dx.bias) : nullptr);
  });
  check_launch("short_conv backward");
}

}  // namespace weft::kernels
