// Forward pass on a GPU: README.md, "On a GPU". Warps are independent. A turn of the loop walks one
// step, prepares the inputs of the next and finishes the outputs of the one before, so that there
// is always something to do while one of them waits; copies from memory run two steps ahead.
// With more than one block of 16 states the blocks' shares of C . h are kept, and a second kernel
// adds them up.
#include "kernels/selective_scan/scan.cuh"
#include "kernels/tile/tile_memory.cuh"

namespace weft::kernels {
namespace {

using namespace selective_scan;

constexpr int kSlots = 4;  // steps in shared memory: the one before, this one, the next two

template <class Real>
struct Results {
  Plane<Real> o;
  float* shares;  // [blocks, B, T, E] instead of o, or null
  States<float> final_state;
  float* kept;  // see Problem::kept, or null
};

// A step as the lanes read it: lane 4 j + q has token j.
template <class Real, int C>
struct Slot {
  Packed<Real, 2 * C> x[32], dt[32], z[32];
  Packed<Real, 4> B[32], C_[32];
};
template <class Real, int C>
struct Memory {
  Slot<Real, C> slots[kSlots];
  Inputs8<C> inputs[2];
};

// kPlain: all rows are aligned, no lane is without channels or states, and there are 16 states.
template <class Real, int C, bool kPlain>
struct Walk {
  static constexpr int N = 2 * C;
  static constexpr bool kExact = sizeof(Real) == 4;

  const Problem<Real>& p;
  const Results<Real>& out;
  Lane<C> lane;
  Memory<Real, C>& m;
  int me;
  float A[C][4], h[C][4], bias[N], D[N];
  Document doc;
  const Real *x, *dt, *z, *B, *C_;  // what is read next

  // Reads of step t0 / kStep begin.
  __device__ __forceinline__ void read(int t0) {
    Slot<Real, C>& s = m.slots[t0 / kStep % kSlots];
    const int t = t0 + lane.g;
    const bool there = t < p.tokens;
    if constexpr (kPlain) {
      fetch_async(&s.x[me], x, there);
      fetch_async(&s.dt[me], dt, there);
      if (p.z.data) fetch_async(&s.z[me], z, there);
      fetch_async(&s.B[me], B, there);
      fetch_async(&s.C_[me], C_, there);
      x += kStep * p.x.token;
      dt += kStep * p.dt.token;
      z += kStep * p.z.token;
      B += kStep * p.B.token;
      C_ += kStep * p.C.token;
    } else {
      const int n = there ? lane.n : 0, states = there ? lane.states : 0;
      s.x[me] = p.x.template get<N>(lane.row, t, lane.column, n);
      s.dt[me] = p.dt.template get<N>(lane.row, t, lane.column, n);
      if (p.z.data) s.z[me] = p.z.template get<N>(lane.row, t, lane.column, n);
      s.B[me] = p.B.template get<4>(lane.row, t, lane.state, states);
      s.C_[me] = p.C.template get<4>(lane.row, t, lane.state, states);
    }
    tile::async_commit();
  }

  // Puts a step where the walk finds it.
  __device__ __forceinline__ void prepare(int t0) const {
    const Slot<Real, C>& s = m.slots[t0 / kStep % kSlots];
    float step[N], in[N];
    unpack(s.x[me], in);
    unpack(s.dt[me], step);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      step[i] = softplus(step[i] + bias[i]);
      in[i] *= step[i];
    }
    m.inputs[t0 / kStep % 2].put(lane.g, lane, step, in);
  }

  // What the walk reads of a token, and its decays.
  struct Token {
    float step[C], in[C], a[C][4];
    Packed<Real, 4> B, C_;
  };
  __device__ __forceinline__ void get(int t0, int j, Token& k) const {
    const Slot<Real, C>& slot = m.slots[t0 / kStep % kSlots];
    m.inputs[t0 / kStep % 2].get(j, lane, k.step, k.in);
    k.B = slot.B[4 * j + lane.q];
    k.C_ = slot.C_[4 * j + lane.q];
  }
  __device__ __forceinline__ void decay(Token& k) const {
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int s = 0; s < 4; ++s) k.a[c][s] = tile::ex2(k.step[c] * A[c][s]);
  }
  // Token j of the step; its C . h goes to the lanes of the token.
  __device__ __forceinline__ void walk(const Token& k, int j, float (&sums)[4]) {
    float Bs[4], Cs[4], y[2] = {};
    unpack(k.B, Bs);
    unpack(k.C_, Cs);
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        h[c][s] = fmaf(k.a[c][s], h[c][s], k.in[c] * Bs[s]);
        y[c] = fmaf(h[c][s], Cs[s], y[c]);
      }
    sum_states<kExact>(sums, lane.g == j ? 1.0f : 0.0f, y[0], y[1]);
  }
  __device__ __forceinline__ void token(int t0, int j, float (&sums)[4]) {
    Token k;
    get(t0, j, k);
    decay(k);
    walk(k, j, sums);
  }
  // All tokens of a step. Reads and decays are ahead of their use.
  __device__ __forceinline__ void whole_step(int t0, float (&sums)[4]) {
    constexpr int kAhead = 2;
    Token k[kStep];
#pragma unroll
    for (int j = 0; j < 2 * kAhead; ++j) get(t0, j, k[j]);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) decay(k[j]);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      if (j + 2 * kAhead < kStep) get(t0, j + 2 * kAhead, k[j + 2 * kAhead]);
      if (j + kAhead < kStep) decay(k[j + kAhead]);
      walk(k[j], j, sums);
    }
  }

  // After the token before t: goes on to the next document if this one is over.
  __device__ __forceinline__ void pass(int t) {
    if (t < doc.end) return;
    store_states(out.final_state, doc.n, lane, p, h);
    if (t >= p.tokens) return;
    doc = {doc.n + 1, doc.end, p.cu[doc.n + 2]};
    load_states(p.initial, doc.n, lane, p, h);
  }

  // The outputs of a step from the sums over states. t0 is -kStep before there is one.
  __device__ __forceinline__ void finish(int t0, const float (&sums)[4]) const {
    const Slot<Real, C>& s = m.slots[(t0 + kStep * kSlots) / kStep % kSlots];
    const int t = t0 + lane.g;
    const bool there = t0 >= 0 && t < p.tokens;
    float y[N], x[N], z[N];
    channels_of<C>(sums, y);
    if constexpr (!kPlain) {
      if (out.shares) {
        if (!there) return;
        const int64_t at = (static_cast<int64_t>(lane.block) * p.rows + lane.row) * p.tokens + t;
        store_some(out.shares + at * p.E + lane.column, lane.n, y);
        return;
      }
    }
    unpack(s.x[me], x);
    unpack(s.z[me], z);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float gate = z[i] * tile::sigmoid(z[i]);
      y[i] = fmaf(D[i], x[i], y[i]);
      if (p.z.data) y[i] *= gate;
    }
    if constexpr (kPlain) {
      if (there) store(out.o.at(lane.row, t, lane.column), y);
    } else {
      if (there) out.o.put(lane.row, t, lane.column, lane.n, y);
    }
  }

  __device__ __forceinline__ void keep(int chunk) const {
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (kPlain || lane.channel + c < p.E)
        store(out.kept + p.kept(lane.row, chunk, lane.channel + c) + lane.state, h[c]);
  }

  __device__ __forceinline__ void run() {
    load_rates(p, lane, A);
    load_weights(p.bias, lane, p, bias);
    load_weights(p.D, lane, p, D);
    doc = document_of(p, lane.row, 0);
    load_states(p.initial, doc.n, lane, p, h);
    x = p.x.at(lane.row, lane.g, lane.column);
    dt = p.dt.at(lane.row, lane.g, lane.column);
    z = p.z.at(lane.row, lane.g, lane.column);
    B = p.B.at(lane.row, lane.g, lane.state);
    C_ = p.C.at(lane.row, lane.g, lane.state);
    read(0);
    read(kStep);
    tile::async_wait<1>();
    prepare(0);
    __syncwarp();
    float before[4] = {};
    int t0 = 0;
    for (; t0 < p.tokens; t0 += kStep) {
      float sums[4] = {};
      read(t0 + 2 * kStep);
      tile::async_wait<1>();
      if (out.kept && t0 > 0 && t0 % kChunk == 0) keep(t0 / kChunk);
      if (t0 + kStep <= doc.end) {
        prepare(t0 + kStep);
        whole_step(t0, sums);
        finish(t0 - kStep, before);
        pass(t0 + kStep);
      } else {
        prepare(t0 + kStep);
#pragma unroll 1
        for (int j = 0; j < min(kStep, p.tokens - t0); ++j) {
          // Sums of its own: a product with the zeros of other tokens would hand them a NaN.
          float own[4] = {};
          token(t0, j, own);
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i] = lane.g == j ? own[i] : sums[i];
          pass(t0 + j + 1);
        }
        finish(t0 - kStep, before);
      }
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 4; ++i) before[i] = sums[i];
    }
    finish(t0 - kStep, before);
  }
};

// Grid: see Lane.
template <class Real, int C, bool kPlain>
__global__ void __launch_bounds__(32 * kWarps) scan_forward(Problem<Real> p, Results<Real> out) {
  extern __shared__ uint4 shared[];
  auto* const memory = reinterpret_cast<Memory<Real, C>*>(shared);
  const Lane<C> lane(p);
  if ((lane.group * kWarps + lane.warp) * 8 * C >= p.E) return;
  Walk<Real, C, kPlain>{p, out, lane, memory[lane.warp], tile::lane_index()}.run();
}

// o from the blocks' shares of C . h, [blocks, B, T, E].
template <class Real>
__global__ void add_shares(Problem<Real> p, const float* shares, Real* o) {
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
  o[i] = from_float<Real>(y);
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
  for_lanes(x, [&]<class Real, int C>() {
    const Problem<Real> p = x.problem<Real>();
    const Results<Real> out{x.channel_plane<Real>(y.o), Operands::pointer(shares),
                            Operands::states<float>(y.final_state),
                            keep ? dptr<float>(saved->states) : nullptr};
    const auto kernel =
        x.plain(p) && out.o.vectors ? scan_forward<Real, C, true> : scan_forward<Real, C, false>;
    constexpr int kBytes = sizeof(Memory<Real, C>) * kWarps;
    allow_shared_memory(kernel, kBytes);
    kernel<<<x.grid(), 32 * kWarps, kBytes, cuda_stream()>>>(p, out);
    if (shares)
      add_shares<Real>
          <<<static_cast<unsigned>(ceil_div(y.o.numel(), 256)), 256, 0, cuda_stream()>>>(
              p, dptr<float>(shares), dptr<Real>(y.o));
  });
  check_launch("selective_scan forward");
}

}  // namespace weft::kernels
