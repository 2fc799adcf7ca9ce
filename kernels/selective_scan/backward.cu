// Backward pass on a GPU: README.md, "On a GPU". The chunks of a row are walked last to first, by
// the four warps of a block in step. Of each chunk, a first walk forward from the kept state notes
// the state every 4 tokens; then, 4 tokens at a time and last to first, states and decays are made
// again in registers and the gradients flow back through them.
//
// dB and dC are sums over channels: a warp adds up its own in shared memory, the block its warps',
// and a second kernel the blocks'. A_log, D and dt_bias get sums over tokens: each lane's own, then
// the lanes', then (second kernel) the rows'. All in a fixed order.
#include "kernels/selective_scan/scan.cuh"

namespace weft::kernels {
namespace {

using namespace selective_scan;

constexpr int kPart = 4, kParts = kChunk / kPart;  // tokens whose states are in registers together

// Each may be absent (null) but dout, parts and rates.
template <class Real>
struct Gradients {
  Plane<const Real> dout;
  States<const float> final_state;
  Plane<Real> x, dt, z;
  States<float> initial;
  const float* kept;  // see Problem::kept
  float* parts;       // [groups, B, T, blocks, 2, 16]: dB and dC of a block's channels
  float* rates;       // [B, E, 16 blocks]: the gradient of A
  float* weights;     // [B, 2, E]: those of D and dt_bias
  float* shares;      // [3, blocks, B, T, E]: dh . B, w . A, C . h for more than one block
};

// Of a warp.
template <int C>
struct Memory {
  Inputs8<C> inputs[kChunk / kStep];
  float flow[kChunk][8 * C];  // gradient of C . h + D x
  // The state before each part; once it is walked, dB and dC of its tokens [kPart, 2, 4], summed
  // over the warp's channels. The last is for sums of what is not there.
  float4 border[kParts + 1][C][32];
  float4 products[2][kPart][2][32 + 4];  // dh s x and g h of each lane; gaps against conflicts

  __device__ __forceinline__ float4* sums(int part) { return &border[part][0][0]; }
  __device__ __forceinline__ const float4* sums(int part) const { return &border[part][0][0]; }
};
template <class Real, int C>
struct BlockMemory {
  Memory<C> of_warp[kWarps];
  Shared8<Real> shared[kChunk / kStep];
};

// kPlain as in forward.cu.
template <class Real, int C, bool kPlain>
struct WalkBack {
  static constexpr int N = 2 * C;
  static constexpr bool kExact = sizeof(Real) == 4;

  const Problem<Real>& p;
  const Gradients<Real>& d;
  Lane<C> lane;
  Memory<C>& m;
  Shared8<Real>* shared;
  float A[C][4], dh[C][4], dA[C][4];
  float bias[N], D[N], dD[N], dbias[N];
  Document doc;
  int t0;  // of the chunk

  // B and C of the chunk for the whole block: thread 4 t + q takes 4 states of token t.
  __device__ __forceinline__ void stage_shared() const {
    const int i = static_cast<int>(threadIdx.x) / 4, t = t0 + i;
    const int states = t < p.tokens ? lane.states : 0;
    shared[i / kStep].put(i % kStep, lane.q, p.B.template get<4>(lane.row, t, lane.state, states),
                          p.C.template get<4>(lane.row, t, lane.state, states));
  }

  __device__ __forceinline__ Packed<Real, N> get_channels(const Plane<const Real>& from,
                                                          int t) const {
    if constexpr (kPlain)
      return t < p.tokens ? fetch<N>(from.at(lane.row, t, lane.column)) : Packed<Real, N>{};
    else
      return from.template get<N>(lane.row, t, lane.column, t < p.tokens ? lane.n : 0);
  }
  __device__ __forceinline__ void stage_channels() const {
    constexpr int kSteps = kChunk / kStep;
    Packed<Real, N> x[kSteps], dt[kSteps], z[kSteps], dout[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int t = t0 + i * kStep + lane.g;
      x[i] = get_channels(p.x, t);
      dt[i] = get_channels(p.dt, t);
      if (p.z.data) z[i] = get_channels(p.z, t);
      dout[i] = get_channels(d.dout, t);
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      float step[N], in[N], gate[N], flow[N];
      unpack(x[i], in);
      unpack(dt[i], step);
      unpack(z[i], gate);
      unpack(dout[i], flow);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        step[k] = softplus(step[k] + bias[k]);
        in[k] *= step[k];
        if (p.z.data) flow[k] *= gate[k] * tile::sigmoid(gate[k]);
      }
      m.inputs[i].put(lane.g, lane, step, in);
      store(&m.flow[i * kStep + lane.g][lane.q * N], flow);
    }
  }

  // What the walks read of token i of the chunk.
  __device__ __forceinline__ void get(int i, float (&step)[C], float (&in)[C], float (&B)[4],
                                      float (&Cs)[4]) const {
    m.inputs[i / kStep].get(i % kStep, lane, step, in);
    shared[i / kStep].get(i % kStep, lane.q, B, Cs);
  }
  __device__ __forceinline__ void go(int i, float (&a)[C][4], const float (&before)[C][4],
                                     float (&h)[C][4]) const {
    float step[C], in[C], B[4], Cs[4];
    get(i, step, in, B, Cs);
    advance<C>(A, step, in, B, before, a, h);
  }
  __device__ __forceinline__ void get_border(int part, float (&h)[C][4]) const {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const float4 v = m.border[part][c][tile::lane_index()];
      h[c][0] = v.x, h[c][1] = v.y, h[c][2] = v.z, h[c][3] = v.w;
    }
  }

  // Notes the state before each part of a chunk of n tokens.
  __device__ __forceinline__ void note_borders(int n) const {
    float h[C][4], a[C][4];
    Document at = document_of(p, lane.row, t0);
    if (t0 == 0) {
      load_states(p.initial, at.n, lane, p, h);
    } else {
#pragma unroll
      for (int c = 0; c < C; ++c)
        load_some(d.kept + p.kept(lane.row, t0 / kChunk, lane.channel + c) + lane.state,
                  lane.channel + c < p.E ? 4 : 0, h[c]);
      if (at.begin == t0) load_states(p.initial, at.n, lane, p, h);
    }
    const auto pass = [&](int t) {  // a document ends before token t, which is in this row
      if (t < at.end || t >= p.tokens) return;
      at = {at.n + 1, at.end, p.cu[at.n + 2]};
      load_states(p.initial, at.n, lane, p, h);
    };
#pragma unroll 1
    for (int part = 0;; ++part) {
#pragma unroll
      for (int c = 0; c < C; ++c)
        m.border[part][c][tile::lane_index()] = make_float4(h[c][0], h[c][1], h[c][2], h[c][3]);
      const int first = part * kPart, next = first + kPart;
      if (next >= n) return;
      if (t0 + next < at.end) {
#pragma unroll
        for (int j = 0; j < kPart; ++j) go(first + j, a, h, h);
      } else {
        for (int j = 0; j < kPart; ++j) {
          go(first + j, a, h, h);
          pass(t0 + first + j + 1);
        }
      }
    }
  }

  // The gradients of token i of the chunk, token j of its part; h is the state after it, before and
  // a are as in `advance`. The sums over states go to the lanes of the token.
  __device__ __forceinline__ void token_back(int i, int j, const float (&before)[C][4],
                                             const float (&a)[C][4], const float (&h)[C][4],
                                             float (&of_states)[C][4], float (&of_y)[4]) {
    float step[C], in[C], B[4], Cs[4], to_B[4] = {}, to_C[4] = {}, y[2] = {};
    get(i, step, in, B, Cs);
    const float mine = lane.g == i % kStep ? 1.0f : 0.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const float flow = m.flow[i][lane.g * C + c];
      float read = 0, rate = 0;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        y[c] = fmaf(h[c][s], Cs[s], y[c]);
        to_C[s] = fmaf(flow, h[c][s], to_C[s]);
        const float g = fmaf(flow, Cs[s], dh[c][s]);
        to_B[s] = fmaf(g, in[c], to_B[s]);
        read = fmaf(g, B[s], read);
        dh[c][s] = g * a[c][s];
        const float w = dh[c][s] * before[c][s];
        rate = fmaf(w, A[c][s], rate);
        dA[c][s] = fmaf(w, step[c], dA[c][s]);
      }
      sum_states<true>(of_states[c], mine, read, rate);  // ddt_bias is f32
    }
    sum_states<kExact>(of_y, mine, y[0], y[1]);
    float4(&products)[2][32 + 4] = m.products[i / kPart % 2][j];
    products[0][tile::lane_index()] = make_float4(to_B[0], to_B[1], to_B[2], to_B[3]);
    products[1][tile::lane_index()] = make_float4(to_C[0], to_C[1], to_C[2], to_C[3]);
  }

  // Lane 8 j + 4 b + q adds up what the lane groups have of token j: of dB (b = 0) or dC, states 4
  // q ..
  __device__ __forceinline__ void sum_products(int part) const {
    const int me = tile::lane_index(), j = me / 8, b = me / 4 % 2;
    const float4* const from = &m.products[part % 2][j][b][lane.q];
    float4 sum = from[0], other = from[4];
#pragma unroll
    for (int g = 2; g < 8; g += 2) {
      const float4 v = from[4 * g], w = from[4 * g + 4];
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      other.x += w.x, other.y += w.y, other.z += w.z, other.w += w.w;
    }
    m.sums(part)[me] =
        make_float4(sum.x + other.x, sum.y + other.y, sum.z + other.z, sum.w + other.w);
  }

  // Before its last token is walked: the gradient of a document's last state.
  __device__ __forceinline__ void enter() { load_states(d.final_state, doc.n, lane, p, dh); }
  // After token t: goes on to the document before if t was the first of this one.
  __device__ __forceinline__ void leave(int t) {
    if (t > doc.begin) return;
    store_states(d.initial, doc.n, lane, p, dh);
    if (t == 0) return;
    doc = {doc.n - 1, p.cu[doc.n - 1], doc.begin};
    enter();
  }

  // Tokens `first` to first + kPart of the chunk, which one document holds.
  __device__ __forceinline__ void whole_part(int part, float (&of_states)[C][4], float (&of_y)[4]) {
    const int first = part * kPart;
    float before[C][4], a[kPart][C][4], h[kPart][C][4];
    get_border(part, before);
#pragma unroll
    for (int j = 0; j < kPart; ++j) go(first + j, a[j], j ? h[j - 1] : before, h[j]);
#pragma unroll
    for (int j = kPart - 1; j >= 0; --j)
      token_back(first + j, j, j ? h[j - 1] : before, a[j], h[j], of_states, of_y);
  }
  // The same in a step where a document ends or begins: each token from the border or its
  // document's start, with sums of its own, since a product with the zeros of other tokens would
  // hand them a NaN.
  __device__ __forceinline__ void cut_part(int part, int n, float (&of_states)[C][4],
                                           float (&of_y)[4]) {
    const int first = part * kPart;
#pragma unroll 1
    for (int j = min(kPart, n - first) - 1; j >= 0; --j) {
      float before[C][4], a[C][4], h[C][4];
      int i = first;
      if (t0 + i > doc.begin) {
        get_border(part, before);
      } else {
        i = doc.begin - t0;
        load_states(p.initial, doc.n, lane, p, before);
      }
#pragma unroll 1
      for (; i < first + j; ++i) go(i, a, before, before);
      go(i, a, before, h);
      float own_states[C][4] = {}, own_y[4] = {};
      token_back(i, j, before, a, h, own_states, own_y);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const bool mine = lane.g == i % kStep;
#pragma unroll
        for (int c = 0; c < C; ++c) of_states[c][k] = mine ? own_states[c][k] : of_states[c][k];
        of_y[k] = mine ? own_y[k] : of_y[k];
      }
      leave(t0 + i);
    }
  }

  // What a lane has at t, or at the row's end if that is before.
  __device__ __forceinline__ void reread(const Plane<const Real>& from, int t,
                                         float (&to)[N]) const {
    t = min(t, p.tokens - 1);
    if constexpr (kPlain)
      load(from.at(lane.row, t, lane.column), to);
    else
      unpack(from.template get<N>(lane.row, t, lane.column, lane.n), to);
  }
  __device__ __forceinline__ void write(const Plane<Real>& to, int t, bool there,
                                        const float (&from)[N]) const {
    if (!to.data || !there) return;
    if constexpr (kPlain)
      store(to.at(lane.row, t, lane.column), from);
    else
      to.put(lane.row, t, lane.column, lane.n, from);
  }

  // The gradients of x, dt and z of step `at` of a chunk of n tokens, from the sums over states; of
  // no step if `at` is beyond them.
  __device__ __forceinline__ void finish(int at, int n, const float (&of_states)[C][4],
                                         const float (&of_y)[4]) {
    const int i = at * kStep + lane.g, t = t0 + i;
    const bool there = i < n;
    float read[N], rate[N], y[N], x[N], dt[N], z[N], dout[N], flow[N];
    channels_of<C>(of_y, y);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      read[c] = of_states[c][0], read[C + c] = of_states[c][1];
      rate[c] = of_states[c][2], rate[C + c] = of_states[c][3];
    }
    if constexpr (!kPlain) {
      if (d.shares) {
        if (!there) return;
        const int64_t plane = static_cast<int64_t>(p.rows) * p.tokens * p.E * p.blocks;
        float* const to =
            d.shares +
            ((static_cast<int64_t>(lane.block) * p.rows + lane.row) * p.tokens + t) * p.E +
            lane.column;
        store_some(to, lane.n, read);
        store_some(to + plane, lane.n, rate);
        store_some(to + 2 * plane, lane.n, y);
        return;
      }
    }
    reread(p.x, t, x);
    reread(p.dt, t, dt);
    reread(p.z.data ? p.z : p.x, t, z);
    reread(d.dout, t, dout);
    load(&m.flow[min(i, kChunk - 1)][lane.q * N], flow);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float raw = dt[k] + bias[k], step = softplus(raw), open = tile::sigmoid(z[k]);
      z[k] = dout[k] * fmaf(D[k], x[k], y[k]) * open * fmaf(z[k], 1.0f - open, 1.0f);
      const float draw = fmaf(x[k], read[k], tile::kLn2 * rate[k]) * tile::sigmoid(raw);
      dD[k] += there ? flow[k] * x[k] : 0.0f;
      dbias[k] += there ? draw : 0.0f;
      x[k] = fmaf(step, read[k], D[k] * flow[k]);
      dt[k] = draw;
    }
    write(d.x, t, there, x);
    write(d.dt, t, there, dt);
    write(d.z, t, there, z);
  }

  // A turn of the loop walks the two parts of a step; what it finds is summed up and finished while
  // the parts after it are walked.
  __device__ __forceinline__ void chunk_back(int n) {
    note_borders(n);
    float states_after[C][4] = {}, y_after[4] = {};
    int at = (n - 1) / kStep;
#pragma unroll 1
    for (; at >= 0; --at) {
      float of_states[C][4] = {}, of_y[4] = {};
#pragma unroll
      for (int k = 1; k >= 0; --k) {
        const int part = 2 * at + k, t = t0 + part * kPart, step = t0 + at * kStep;
        __syncwarp();
        if (step >= doc.begin && step + kStep <= doc.end) {
          whole_part(part, of_states, of_y);
          sum_products(part + 1);
          if (k == 1) finish(at + 1, n, states_after, y_after);
          leave(t);
        } else {
          cut_part(part, n, of_states, of_y);
          sum_products(part + 1);
          if (k == 1) finish(at + 1, n, states_after, y_after);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int c = 0; c < C; ++c) states_after[c][i] = of_states[c][i];
        y_after[i] = of_y[i];
      }
    }
    __syncwarp();
    sum_products(0);
    finish(0, n, states_after, y_after);
  }

  // The sums of the block's warps, token by token.
  __device__ __forceinline__ void store_parts(const Memory<C>* warps, int n) const {
    constexpr int kRow = 2 * kStates / 4;  // float4 of a token
    const int64_t from = static_cast<int64_t>(lane.group) * p.rows + lane.row;
    for (int i = threadIdx.x; i < n * kRow; i += 32 * kWarps) {
      const int token = i / kRow, k = i % kRow, in = token % kPart * kRow + k;
      float4 sum = warps[0].sums(token / kPart)[in];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) {
        const float4 v = warps[w].sums(token / kPart)[in];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      const int64_t to = ((from * p.tokens + t0 + token) * p.blocks + lane.block) * kRow + k;
      reinterpret_cast<float4*>(d.parts)[to] = sum;
    }
  }

  __device__ __forceinline__ void store_weights() const {
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (lane.channel + c < p.E)
        store(d.rates +
                  (static_cast<int64_t>(lane.row) * p.E + lane.channel + c) * p.blocks * kStates +
                  lane.state,
              dA[c]);
    if (d.shares) return;
    float sums[2][N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      sums[0][k] = dD[k], sums[1][k] = dbias[k];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        for (int by = 4; by < 32; by *= 2) sums[i][k] += __shfl_xor_sync(~0u, sums[i][k], by);
    }
    if (lane.g > 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      store_some(d.weights + (static_cast<int64_t>(lane.row) * 2 + i) * p.E + lane.column, lane.n,
                 sums[i]);
  }

  __device__ __forceinline__ void run(const Memory<C>* warps) {
    load_rates(p, lane, A);
    load_weights(p.bias, lane, p, bias);
    load_weights(p.D, lane, p, D);
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int s = 0; s < 4; ++s) dA[c][s] = 0;
#pragma unroll
    for (int k = 0; k < N; ++k) dD[k] = dbias[k] = 0;
    doc = document_of(p, lane.row, p.tokens - 1);
    enter();
    for (t0 = (p.tokens - 1) / kChunk * kChunk; t0 >= 0; t0 -= kChunk) {
      const int n = min(kChunk, p.tokens - t0);
      stage_shared();
      stage_channels();
      __syncthreads();
      chunk_back(n);
      __syncthreads();
      store_parts(warps, n);
    }
    store_weights();
  }
};

// Grid: see Lane.
template <class Real, int C, bool kPlain>
__global__ void __launch_bounds__(32 * kWarps, C == 2 ? 2 : 3)
    scan_backward(Problem<Real> p, Gradients<Real> d) {
  extern __shared__ float4 memory[];
  auto& block = *reinterpret_cast<BlockMemory<Real, C>*>(memory);
  const Lane<C> lane(p);
  WalkBack<Real, C, kPlain>{p, d, lane, block.of_warp[lane.warp], block.shared}.run(block.of_warp);
}

// The gradients of x, dt and z from the blocks' shares, a thread a channel and kSpan tokens;
// weights is [B * spans, 2, E].
constexpr int kSpan = 64;
template <class Real>
__global__ void add_shares(Problem<Real> p, Gradients<Real> d, int spans) {
  const int e = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (e >= p.E) return;
  const int row = blockIdx.x / spans, first = (blockIdx.x - row * spans) * kSpan;
  const float bias = p.bias ? p.bias[e] : 0.0f, D = p.D ? p.D[e] : 0.0f;
  const int64_t n = static_cast<int64_t>(p.rows) * p.tokens * p.E;
  float dD = 0, dbias = 0;
  for (int t = first; t < min(p.tokens, first + kSpan); ++t) {
    const float* from = d.shares + (static_cast<int64_t>(row) * p.tokens + t) * p.E + e;
    float read = 0, rate = 0, y = 0;
    for (int b = 0; b < p.blocks; ++b, from += n) {
      read += from[0];
      rate += from[p.blocks * n];
      y += from[2 * p.blocks * n];
    }
    const float x = to_float(*p.x.at(row, t, e)), raw = to_float(*p.dt.at(row, t, e)) + bias;
    float flow = to_float(*d.dout.at(row, t, e));
    if (p.z.data) {
      const float z = to_float(*p.z.at(row, t, e)), open = tile::sigmoid(z);
      const float dz = flow * fmaf(D, x, y) * open * fmaf(z, 1.0f - open, 1.0f);
      if (d.z.data) *d.z.at(row, t, e) = from_float<Real>(dz);
      flow *= z * open;
    }
    dD = fmaf(flow, x, dD);
    const float draw = fmaf(x, read, tile::kLn2 * rate) * tile::sigmoid(raw);
    dbias += draw;
    if (d.x.data) *d.x.at(row, t, e) = from_float<Real>(fmaf(softplus(raw), read, D * flow));
    if (d.dt.data) *d.dt.at(row, t, e) = from_float<Real>(draw);
  }
  float* const to = d.weights + static_cast<int64_t>(blockIdx.x) * 2 * p.E + e;
  to[0] = dD;
  to[p.E] = dbias;
}

// dB and dC [B T, K] from parts [groups, B T, blocks, 2, 16].
template <class Real>
__global__ void sum_parts(const float* __restrict__ parts, int groups, int64_t tokens, int blocks,
                          int K, Real* dB, Real* dC) {
  const int64_t width = 2 * kStates * blocks, n = tokens * width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float sum = 0;
#pragma unroll 8
  for (int g = 0; g < groups; ++g) sum += parts[g * n + i];
  const int64_t t = i / width;
  const int in = static_cast<int>(i - t * width), of = in / kStates;
  const int k = of / 2 * kStates + in % kStates;
  Real* const to = of % 2 ? dC : dB;
  if (to && k < K) to[t * K + k] = from_float<Real>(sum);
}

// dA_log, dD and ddt_bias: thread e * (K + 2) + k, k being a state, D or dt_bias.
template <class Real>
__global__ void sum_weights(Problem<Real> p, const float* rates, const float* weights, int spans,
                            float* dA_log, float* dD, float* dbias) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int e = i / (p.K + 2), k = i - e * (p.K + 2), wide = p.blocks * kStates;
  if (e >= p.E) return;
  float sum = 0;
  if (k < p.K) {  // A is its own derivative by A_log
    for (int row = 0; row < p.rows; ++row)
      sum += rates[(static_cast<int64_t>(row) * p.E + e) * wide + k];
    if (dA_log)
      dA_log[static_cast<int64_t>(e) * p.K + k] =
          -pace(p.A_log[e * p.A_channel + k * p.A_state]) * sum;
    return;
  }
  float* const to = k == p.K ? dD : dbias;
  if (!to) return;
  for (int row = 0; row < p.rows * spans; ++row)
    sum += weights[(static_cast<int64_t>(row) * 2 + k - p.K) * p.E + e];
  to[e] = sum;
}

}  // namespace

void SelectiveScan::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved& saved,
                                  const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  const Operands x(in, o);
  const Tensor dout = Operands::with_rows(dy.o);
  const auto scratch = [&](const Shape& shape) { return empty(shape, Dtype::f32, in.x.device()); };
  const int64_t spans = x.blocks > 1 ? ceil_div(x.tokens, kSpan) : 1;
  const Tensor parts = scratch({x.groups, x.rows, x.tokens, x.blocks, 2 * kStates});
  const Tensor rates = scratch({x.rows, x.E, x.blocks * kStates});
  const Tensor weights = scratch({x.rows * spans, 2, x.E});
  const Tensor shares = x.blocks > 1 ? scratch({3, x.blocks, x.rows, x.tokens, x.E}) : Tensor();
  if (in.x.is_meta()) return;
  const auto blocks_for = [](int64_t n) { return static_cast<unsigned>(ceil_div(n, 256)); };
  for_lanes(x, [&]<class Real, int C>() {
    const Problem<Real> p = x.problem<Real>();
    const Gradients<Real> d{x.channel_plane<const Real>(dout),
                            Operands::states<const float>(dy.final_state),
                            x.channel_plane<Real>(dx.x),
                            x.channel_plane<Real>(dx.dt),
                            x.channel_plane<Real>(dx.z),
                            Operands::states<float>(dx.initial_state),
                            saved.states.numel() > 0 ? dptr<float>(saved.states) : nullptr,
                            dptr<float>(parts),
                            dptr<float>(rates),
                            dptr<float>(weights),
                            Operands::pointer(shares)};
    constexpr int kBytes = sizeof(BlockMemory<Real, C>);
    const bool plain = x.plain(p) && d.dout.vectors && (!dx.x || d.x.vectors) &&
                       (!dx.dt || d.dt.vectors) && (!dx.z || d.z.vectors);
    const auto kernel = plain ? scan_backward<Real, C, true> : scan_backward<Real, C, false>;
    allow_shared_memory(kernel, kBytes);
    kernel<<<x.grid(), 32 * kWarps, kBytes, cuda_stream()>>>(p, d);
    if (shares)
      add_shares<Real>
          <<<dim3(static_cast<unsigned>(x.rows * spans), blocks_for(x.E)), 256, 0, cuda_stream()>>>(
              p, d, static_cast<int>(spans));
    if (dx.B || dx.C)
      sum_parts<Real><<<blocks_for(parts.numel() / x.groups), 256, 0, cuda_stream()>>>(
          dptr<float>(parts), static_cast<int>(x.groups), x.rows * x.tokens, p.blocks, p.K,
          dx.B ? dptr<Real>(dx.B) : nullptr, dx.C ? dptr<Real>(dx.C) : nullptr);
    if (dx.A_log || dx.D || dx.dt_bias)
      sum_weights<Real><<<blocks_for(x.E * (x.K + 2)), 256, 0, cuda_stream()>>>(
          p, dptr<float>(rates), dptr<float>(weights), static_cast<int>(spans),
          Operands::pointer(dx.A_log), Operands::pointer(dx.D), Operands::pointer(dx.dt_bias));
  });
  check_launch("selective_scan backward");
}

}  // namespace weft::kernels
