// Forward pass on a GPU: README.md, "CUDA". Warps are independent; each reads the inputs of the next
// step while it walks the present one. With more than one block of 16 states the blocks' shares of
// C . h are kept, and a second kernel adds them up.
#include "kernels/selective_scan/scan.cuh"

namespace weft::kernels {
namespace {

using namespace scan;

template <class T>
struct Results {
  Plane<T> o;
  float* shares;  // [blocks, B, T, E] instead of o, or null
  States<float> final_state;
  float* kept;  // see Problem::kept, or null
};

// What a lane has read of a step.
template <class T, int N>
struct Read {
  Packed<T, N> x, dt, z;
  Packed<T, 4> B, C;
};

template <class T, int C>
struct Walk {
  static constexpr int N = 2 * C;
  static constexpr bool kExact = sizeof(T) == 4;

  const Problem<T>& p;
  const Results<T>& out;
  Lane<C> lane;
  Inputs8<C>& inputs;
  Shared8<T>& shared;
  float A[C][4], h[C][4], bias[N], D[N];
  Document doc;

  __device__ __forceinline__ Read<T, N> read(int t0) const {
    const int t = t0 + lane.g, here = t < p.tokens ? lane.n : 0;
    const int states = t < p.tokens ? lane.states : 0;
    Read<T, N> r;
    r.x = p.x.template get<N>(lane.row, t, lane.column, here);
    r.dt = p.dt.template get<N>(lane.row, t, lane.column, here);
    if (p.z.data) r.z = p.z.template get<N>(lane.row, t, lane.column, here);
    r.B = p.B.template get<4>(lane.row, t, lane.state, states);
    r.C = p.C.template get<4>(lane.row, t, lane.state, states);
    return r;
  }

  // Puts a step where the walk finds it.
  __device__ __forceinline__ void stage(const Read<T, N>& r, float (&x)[N]) {
    float step[N], in[N];
    unpack(r.x, x);
    unpack(r.dt, step);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      step[i] = softplus(step[i] + bias[i]);
      in[i] = step[i] * x[i];
    }
    inputs.put(lane.g, lane, step, in);
    shared.put(lane.g, lane.q, r.B, r.C);
  }

  // Token j of the step; its C . h goes to the lanes of the token.
  __device__ __forceinline__ void token(int j, float (&sums)[4]) {
    float step[C], in[C], Bs[4], Cs[4], a[C][4], y[2] = {};
    inputs.get(j, lane, step, in);
    shared.get(j, lane.q, Bs, Cs);
    advance<C>(A, step, in, Bs, h, a, h);
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int s = 0; s < 4; ++s) y[c] = fmaf(h[c][s], Cs[s], y[c]);
    sum_states<kExact>(sums, lane.g == j ? 1.0f : 0.0f, y[0], y[1]);
  }

  __device__ __forceinline__ void begin_document() { load_states(p.initial, doc.n, lane, p, h); }
  // After the token before t: goes on to the next document if this one is over.
  __device__ __forceinline__ void pass(int t) {
    if (t < doc.end) return;
    store_states(out.final_state, doc.n, lane, p, h);
    if (t >= p.tokens) return;
    doc = {doc.n + 1, doc.end, p.cu[doc.n + 2]};
    begin_document();
  }

  __device__ __forceinline__ void finish(int t0, const float (&sums)[4], const float (&x)[N],
                                         const Packed<T, N>& packed_z) const {
    const int t = t0 + lane.g;
    if (t >= p.tokens) return;
    float y[N], z[N];
    channels_of<C>(sums, y);
    if (out.shares) {
      const int64_t at = ((static_cast<int64_t>(lane.block) * p.rows + lane.row) * p.tokens + t);
      store_some(out.shares + at * p.E + lane.column, lane.n, y);
      return;
    }
    unpack(packed_z, z);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      y[i] = fmaf(D[i], x[i], y[i]);
      if (p.z.data) y[i] *= z[i] * tile::sigmoid(z[i]);
    }
    out.o.put(lane.row, t, lane.column, lane.n, y);
  }

  __device__ __forceinline__ void keep(int chunk) const {
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (lane.channel + c < p.E)
        store(out.kept + p.kept(lane.row, chunk, lane.channel + c) + lane.state, h[c]);
  }

  __device__ __forceinline__ void run() {
    load_rates(p, lane, A);
    load_weights(p.bias, lane, p, bias);
    load_weights(p.D, lane, p, D);
    doc = document_of(p, lane.row, 0);
    begin_document();
    Read<T, N> next = read(0);
    for (int t0 = 0; t0 < p.tokens; t0 += kStep) {
      float x[N], sums[4] = {};
      __syncwarp();
      stage(next, x);
      __syncwarp();
      const Packed<T, N> z = next.z;
      next = read(t0 + kStep);
      if (out.kept && t0 > 0 && t0 % kChunk == 0) keep(t0 / kChunk);
      if (t0 + kStep <= doc.end) {
#pragma unroll
        for (int j = 0; j < kStep; ++j) token(j, sums);
        pass(t0 + kStep);
      } else {
        const int end = min(kStep, p.tokens - t0);
#pragma unroll 1
        for (int j = 0; j < end; ++j) {
          token(j, sums);
          pass(t0 + j + 1);
        }
      }
      finish(t0, sums, x, z);
    }
  }
};

// Grid: see Lane.
template <class T, int C>
__global__ void __launch_bounds__(32 * kWarps) scan_forward(Problem<T> p, Results<T> out) {
  __shared__ Inputs8<C> inputs[kWarps];
  __shared__ Shared8<T> shared[kWarps];
  const Lane<C> lane(p);
  if ((lane.group * kWarps + lane.warp) * 8 * C >= p.E) return;
  Walk<T, C>{p, out, lane, inputs[lane.warp], shared[lane.warp]}.run();
}

// o from the blocks' shares of C . h, [blocks, B, T, E].
template <class T>
__global__ void add_shares(Problem<T> p, const float* shares, T* o) {
  const int64_t n = static_cast<int64_t>(p.rows) * p.tokens * p.E;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int64_t token = i / p.E;
  const auto e = static_cast<int>(i - token * p.E);
  const auto row = static_cast<int>(token / p.tokens), t = static_cast<int>(token % p.tokens);
  float y = p.D ? p.D[e] * to_float(*p.x.at(row, t, e)) : 0.0f;
  for (int b = 0; b < p.blocks; ++b) y += shares[b * n + i];
  if (p.z.data) {
    const float z = to_float(*p.z.at(row, t, e));
    y *= z * tile::sigmoid(z);
  }
  o[i] = from_float<T>(y);
}

}  // namespace

void SelectiveScan::cuda_forward(const Inputs<Tensor>& in, const Options& o, Outputs<Tensor>& y,
                                 Saved* saved) {
  const Operands x(in, o);
  const Device device = in.x.device();
  Tensor shares;
  if (x.blocks > 1) shares = empty({x.blocks, x.rows, x.tokens, x.E}, Dtype::f32, device);
  if (saved)
    saved->states = empty({x.rows, ceil_div(x.tokens, kChunk) - 1, x.E, x.blocks * kStates},
                          Dtype::f32, device);
  if (in.x.is_meta()) return;
  const bool keep = saved && saved->states.numel() > 0;
  for_lanes(x, [&]<class T, int C>() {
    const Problem<T> p = x.problem<T>();
    scan_forward<T, C><<<x.grid(), 32 * kWarps, 0, cuda_stream()>>>(
        p, {x.channel_plane<T>(y.o), Operands::pointer(shares),
            Operands::states<float>(y.final_state), keep ? dptr<float>(saved->states) : nullptr});
    if (shares)
      add_shares<T><<<static_cast<unsigned>(ceil_div(y.o.numel(), 256)), 256, 0, cuda_stream()>>>(
          p, dptr<float>(shares), dptr<T>(y.o));
  });
  check_launch("selective_scan forward");
}

}  // namespace weft::kernels
