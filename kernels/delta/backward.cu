// The delta rule on a GPU, backward: a scan from the last piece to the first that carries the gradient of
// the state (R and dV come of it), then all pieces by themselves (token_gradients): dq, dk, dbeta, dg.
//
// With U what was written, S before the piece, dS after it, P and M masked and decayed by Gamma:
//   dP = scale (dO U') Gamma      dL = -(R U') Gamma, below the diagonal      dM = beta dL
//   dQ = scale e^G dO S' + dP K
//   E  = -e^G R S' + dL K         so that beta E is the gradient of k where it erases
//   W  = e^{G_last - G} U dS' + dP' Q + dM' K
//   dK = beta E + W               dbeta = R . V + K . E
//   dG = Q . dQ + K . beta E - K . W, without the terms of one token with itself
// So the triangular system is not met again, and nothing is divided by beta.
#include "kernels/delta/chunks.cuh"

namespace weft::kernels {
namespace delta {
namespace {

template <class T>
struct Gradients {
  Grid grid;
  int K, V, group;
  float scale;
  Heads<const T> q, k, v, dout;
  const T *written, *erased;                  // U, R: [B, T, H, V]
  const T *states, *dstates;                  // [B, chunks - 1, H, V, K]
  const float *initial_state, *dfinal_state;  // [N, H, K, V] or null
  const Gate* gates;
  const double* sums;
  T *dq, *dk;                // [B, T, H, K] where every head has its key, or null
  float *dq_part, *dk_part;  // the same, a head each, where they share
  float *dbeta, *dg;         // [B, T, H] or null
};

// Three groups of four warps, for dQ, E and W; a warp has 16 tokens.
inline constexpr int kGradientThreads = 384;

template <class T, int kKeyColumns>
struct GradientTiles {
  static constexpr int kKeys = kKeyColumns;                // columns of K at a time
  static constexpr int kSlice = sizeof(T) == 2 ? 64 : 32;  // and of V
  Smem<T, kChunk, kKeys> q, k;
  Smem<T, kChunk, kSlice> dout, written, erased;
  Smem<T, kSlice, kKeys> state, dstate;
  Smem<float, kChunk, kKeys> erase;  // in the place of the states
  Smem<T, kChunk, kChunk> dP, dL, dM;
  Gate* gates;     // [64]
  double* sum;     // [64]
  float* own;      // [64]: dP of a token with itself
  float* dots;     // [5][64]
  float* closing;  // [4]: of dS . S, a warp each
  __host__ __device__ explicit GradientTiles(Arena& arena) {
    q = arena.carve<Smem<T, kChunk, kKeys>>();
    k = arena.carve<Smem<T, kChunk, kKeys>>();
    dout = arena.carve<Smem<T, kChunk, kSlice>>();
    written = arena.carve<Smem<T, kChunk, kSlice>>();
    erased = arena.carve<Smem<T, kChunk, kSlice>>();
    state = arena.carve<Smem<T, kSlice, kKeys>>();
    dstate = arena.carve<Smem<T, kSlice, kKeys>>();
    erase.data = reinterpret_cast<float*>(state.data);
    static_assert(2 * Smem<T, kSlice, kKeys>::bytes == Smem<float, kChunk, kKeys>::bytes);
    dP = arena.carve<Smem<T, kChunk, kChunk>>();
    dL = arena.carve<Smem<T, kChunk, kChunk>>();
    dM = arena.carve<Smem<T, kChunk, kChunk>>();
    gates = arena.carve<Gate>(kChunk);
    sum = arena.carve<double>(kChunk);
    own = arena.carve<float>(kChunk);
    dots = arena.carve<float>(5 * kChunk);
    closing = arena.carve<float>(4);
  }
};

// A slice of a state, [V, K] in `kept`, or transposed from [K, V] fp32, or zeros.
template <class T, int R, int C>
__device__ void load_slice(Smem<T, R, C> tile, const T* kept, const float* wide, int K, int V,
                           int v0, int k0) {
  if (kept) {
    load_tile_async(tile, kept + int64_t{v0} * K + k0, K, V - v0, K - k0);
    return;
  }
  for (int at = static_cast<int>(threadIdx.x); at < R * C; at += static_cast<int>(blockDim.x)) {
    const int r = at % R, c = at / R;
    const bool valid = wide && v0 + r < V && k0 + c < K;
    tile.at(r, c) = from_float<T>(valid ? wide[int64_t{k0 + c} * V + v0 + r] : 0.f);
  }
}

// sum over columns of a * tile(row0 + row, column), for this lane's two rows.
template <class T, int N, int R, int C>
__device__ __forceinline__ Rows row_dots(const Acc<N>& a, Smem<T, R, C> tile, int row0) {
  Acc<N> b;
  acc_from_smem(b, tile, row0, 0);
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) b.x[j][i] *= a.x[j][i];
  }
  return row_sum(b);
}
// to[row] (+)= sums, by one lane of each quad.
__device__ __forceinline__ void put_rows(float* to, const Rows& sums, bool add) {
  if (lane_index() % 4) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float& x = to[lane_index() / 4 + 8 * i];
    x = add ? x + sums.x[i] : sums.x[i];
  }
}

// Rows of a gradient of q or k, whole or a head's part.
template <class T, int N>
__device__ __forceinline__ void store_gradient(const Acc<N>& acc, T* whole, float* part,
                                               int64_t place, int64_t stride, int rows, int cols) {
  if (whole) store_acc(acc, whole + place, stride, rows, cols);
  if (part) store_acc(acc, part + place, stride, rows, cols);
}

enum Dots { kOfQuery, kOfErase, kOfWrite, kOfEnd, kOfValue };

template <class T, int kKeys>
__global__ void __launch_bounds__(kGradientThreads)
    token_gradients(const __grid_constant__ Gradients<T> a) {
  using Tiles = GradientTiles<T, kKeys>;
  constexpr int kSlice = Tiles::kSlice;
  Arena arena(dynamic_memory());
  const Tiles x(arena);
  const int h = static_cast<int>(blockIdx.x) % a.grid.H;
  const int chunk = static_cast<int>(blockIdx.x) / a.grid.H % a.grid.chunks;
  const int b = static_cast<int>(blockIdx.x) / a.grid.H / a.grid.chunks;
  const int role = warp_index() / 4, top = warp_index() % 4 * 16,
            at = static_cast<int>(threadIdx.x);
  const int64_t state_size = int64_t{a.K} * a.V;

  a.grid.for_spans(b, chunk, [&](const Span& s) {
    const int64_t token = a.grid.token(b, h, s.begin), hk = h / a.group;
    const int64_t value = ((b * a.grid.T + s.begin) * a.grid.H + h) * a.V;
    const int64_t values = int64_t{a.grid.H} * a.V, keys = int64_t{a.grid.H} * a.K;
    const int64_t of_document = (int64_t{s.document} * a.grid.H + h) * state_size;
    const T* const before =
        s.first ? nullptr : a.states + a.grid.kept(b, chunk - 1, h) * state_size;
    const T* const after = s.last ? nullptr : a.dstates + a.grid.kept(b, chunk, h) * state_size;
    const float* const initial = a.initial_state ? a.initial_state + of_document : nullptr;
    const float* const dfinal = a.dfinal_state ? a.dfinal_state + of_document : nullptr;
    __syncthreads();  // the piece before is done
    if (at < kChunk) {
      const bool valid = at < s.n;
      x.gates[at] = valid ? a.gates[token + at] : Gate{};
      x.sum[at] = a.sums[token + min(at, s.n - 1)];  // so that no difference is positive
    }
    float closing = 0;
    for (int k0 = 0; k0 < a.K; k0 += kKeys) {
      if (k0 > 0) __syncthreads();
      load_tile_async(x.q, a.q.at(b, s.begin, hk) + k0, a.q.token, s.n, a.K - k0);
      load_tile_async(x.k, a.k.at(b, s.begin, hk) + k0, a.k.token, s.n, a.K - k0);
      Acc<kKeys> grad;     // of this group: dQ, E or W
      Acc<kChunk> scores;  // the first two: dP or dL
      fill(grad, 0.f);
      fill(scores, 0.f);
      float value_dots[2] = {0, 0};
      for (int v0 = 0; v0 < a.V; v0 += kSlice) {
        if (v0 > 0) __syncthreads();
        load_tile_async(x.dout, a.dout.at(b, s.begin, h) + v0, a.dout.token, s.n, a.V - v0);
        load_tile_async(x.written, a.written + value + v0, values, s.n, a.V - v0);
        load_tile_async(x.erased, a.erased + value + v0, values, s.n, a.V - v0);
        load_slice(x.state, before, initial, a.K, a.V, v0, k0);
        load_slice(x.dstate, after, dfinal, a.K, a.V, v0, k0);
        async_commit();
        async_wait<0>();
        __syncthreads();
        if (role == 2) {
          mma_ab<kSlice>(grad, x.written, top, 0, x.dstate, 0, 0);
          for (int i = at % 128; i < kSlice * kKeys / 2; i += 128) {
            const int r = i / (kKeys / 2), c = i % (kKeys / 2) * 2;
            const float2 S = load_pair(x.state.ptr(r, c)), dS = load_pair(x.dstate.ptr(r, c));
            closing = fmaf(S.x, dS.x, fmaf(S.y, dS.y, closing));
          }
          if (k0 == 0) {
            Acc<kSlice> V;
            load_acc(V, a.v.at(b, s.begin + top, h) + v0, a.v.token, s.n - top, a.V - v0);
            const Rows dots = row_dots(V, x.erased, top);
            value_dots[0] += dots.x[0], value_dots[1] += dots.x[1];
          }
        } else {
          const auto left = load_frag<T, kSlice>(role == 0 ? x.dout : x.erased, top, 0);
          mma_ab(grad, left, x.state, 0, 0);
          if (k0 == 0) mma_abt(scores, left, x.written, 0, 0);
        }
      }
      if (k0 == 0 && role < 2) {
        each(scores, [&](int row, int c, float& d) {
          const int r = top + row;
          const float gamma = c <= r ? ex2(static_cast<float>(x.sum[r] - x.sum[c])) : 0.f;
          d *= role == 0 ? a.scale * gamma : -gamma;
          if (role == 0 && c == r) x.own[r] = d;
          if (c >= r) d = 0;
        });
        acc_to_smem(scores, role == 0 ? x.dP : x.dL, top, 0);
        if (role == 1) {
          each(scores, [&](int row, int, float& d) { d *= x.gates[top + row].beta; });
          acc_to_smem(scores, x.dM, top, 0);
        }
      } else if (k0 == 0) {
        put_rows(x.dots + kOfValue * kChunk + top, {value_dots[0], value_dots[1]}, false);
      }
      __syncthreads();

      const int64_t place = ((b * a.grid.T + s.begin + top) * a.grid.H + h) * a.K + k0;
      float* const dots = x.dots + top;
      Rows factor;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Gate& gate = x.gates[top + acc_row(2 * i)];
        factor.x[i] = role == 0 ? a.scale * gate.up : role == 1 ? -gate.up : gate.down;
      }
      scale_rows(grad, factor);
      if (role == 0) {
        mma_ab<kChunk>(grad, x.dP, top, 0, x.k, 0, 0);
        put_rows(dots + kOfQuery * kChunk, row_dots(grad, x.q, top), k0 > 0);
        each(grad, [&](int row, int c, float& d) {
          d += x.own[top + row] * to_float(x.k.at(top + row, c));
        });
        store_gradient(grad, a.dq, a.dq_part, place, keys, s.n - top, a.K - k0);
      } else if (role == 1) {
        mma_ab<kChunk>(grad, x.dL, top, 0, x.k, 0, 0);
        put_rows(dots + kOfErase * kChunk, row_dots(grad, x.k, top), k0 > 0);
        each(grad, [&](int row, int, float& d) { d *= x.gates[top + row].beta; });
        acc_to_smem(grad, x.erase, top, 0);
      } else {
        put_rows(dots + kOfEnd * kChunk, row_dots(grad, x.k, top), k0 > 0);
        Acc<kKeys> within;
        fill(within, 0.f);
        mma_atb<kChunk>(within, x.dP, 0, top, x.q, 0, 0);
        mma_atb<kChunk>(within, x.dM, 0, top, x.k, 0, 0);
        put_rows(dots + kOfWrite * kChunk, row_dots(within, x.k, top), k0 > 0);
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) grad.x[j][i] += within.x[j][i];
        }
      }
      __syncthreads();
      if (role == 2) {
        each(grad, [&](int row, int c, float& d) {
          const int r = top + row;
          d += x.erase.at(r, c) + x.own[r] * to_float(x.q.at(r, c));
        });
        store_gradient(grad, a.dk, a.dk_part, place, keys, s.n - top, a.K - k0);
      }
    }
    if (role == 2) {
      closing = warp_sum(closing);
      if (lane_index() == 0) x.closing[top / 16] = closing;
    }
    __syncthreads();
    // dg_t: what is read from t on, within and through S, and what was written before t to last.
    if (warp_index() == 0) {
      const float total = x.gates[s.n - 1].up;
      float inner[2], end[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = 2 * lane_index() + i;
        const float erase = x.dots[kOfErase * kChunk + t];
        inner[i] =
            x.dots[kOfQuery * kChunk + t] + x.gates[t].beta * erase - x.dots[kOfWrite * kChunk + t];
        end[i] = x.dots[kOfEnd * kChunk + t];
        if (a.dbeta && t < s.n) {
          a.dbeta[(b * a.grid.T + s.begin + t) * a.grid.H + h] =
              x.dots[kOfValue * kChunk + t] + erase;
        }
      }
      const float end_before = warp_prefix_sum(end[0] + end[1]) - (end[0] + end[1]);
      float from = inner[0] + inner[1];  // of this lane's tokens and all later ones
#pragma unroll
      for (int m = 1; m < 32; m <<= 1) {
        const float later = __shfl_down_sync(~0u, from, m);
        if (lane_index() + m < 32) from += later;
      }
      const float state = total * ((x.closing[0] + x.closing[1]) + (x.closing[2] + x.closing[3]));
#pragma unroll
      for (int i = 0; i < 2 && a.dg; ++i) {
        const int t = 2 * lane_index() + i;
        const float dg = state + end_before + (i ? end[0] : 0.f) + from - (i ? inner[0] : 0.f);
        // Before a document's first token there is nothing to forget: the sum leaves rounding.
        const bool none = t == 0 && s.first && !initial;
        if (t < s.n) a.dg[(b * a.grid.T + s.begin + t) * a.grid.H + h] = none ? 0.f : dg;
      }
    }
  });
}

}  // namespace
}  // namespace delta

void Delta::cuda_backward(const Inputs<Tensor>& in, const Options& o, const Saved& saved,
                          const Outputs<Tensor>& dy, Inputs<Tensor>& dx) {
  using namespace delta;
  for_cuda_dtype(in.v.dtype(), [&]<class T>() {
    const int64_t B = in.v.size(0), L = in.v.size(1), H = in.v.size(2);
    const int64_t K = in.k.size(3), V = in.v.size(3);
    const Dtype dtype = in.v.dtype();
    const Device device = in.v.device();
    for_key_width(name, K, V, [&]<int KP>() {
      Problem<T> p(in, o);
      const Tensor dout = with_rows(dy.o);
      const Tensor dfinal = dy.final_state ? dy.final_state.contiguous() : dy.final_state;
      const Tensor erased = empty(in.v.shape(), dtype, device);
      const bool shared = p.group > 1;
      Tensor dstates, dq_part, dk_part;
      if (p.grid.chunks > 1) dstates = empty({B, p.grid.chunks - 1, H, V, K}, dtype, device);
      if (shared && dx.q) dq_part = empty({B, L, H, K}, Dtype::f32, device);
      if (shared && dx.k) dk_part = empty({B, L, H, K}, Dtype::f32, device);
      if (in.v.is_meta()) return;
      const auto wide = [](const Tensor& t) { return t ? dptr<float>(t) : nullptr; };
      const auto narrow = [](const Tensor& t) { return t ? dptr<T>(t) : nullptr; };

      p.template prepare_chunks<KP>();
      p.scan.dout = heads<const T>(dout);
      p.scan.erased = dptr<T>(erased);
      p.scan.dv = narrow(dx.v);
      p.scan.dstates = narrow(dstates);
      p.scan.dfinal_state = wide(dfinal);
      p.scan.dinitial_state = wide(dx.initial_state);
      using Scans = ScanTiles<T, KP, false>;
      launch(scan_backward<T, KP, false>, p.columns(), 128, Scans::kStages * Scans::kBytes, p.scan);

      if (!dx.q && !dx.k && !dx.beta && !dx.g) return;
      const Gradients<T> gradients{p.grid,
                                   p.K,
                                   p.V,
                                   p.group,
                                   p.scale,
                                   p.chunks.q,
                                   p.chunks.k,
                                   p.scan.v,
                                   p.scan.dout,
                                   dptr<T>(saved.written),
                                   dptr<T>(erased),
                                   narrow(saved.states),
                                   narrow(dstates),
                                   p.scan.initial_state,
                                   p.scan.dfinal_state,
                                   p.chunks.gates,
                                   p.chunks.sums,
                                   shared ? nullptr : narrow(dx.q),
                                   shared ? nullptr : narrow(dx.k),
                                   wide(dq_part),
                                   wide(dk_part),
                                   wide(dx.beta),
                                   wide(dx.g)};
      Arena count;
      constexpr int kKeys = std::min(KP, 128);
      (void)GradientTiles<T, kKeys>(count);
      launch(token_gradients<T, kKeys>, p.chunk_heads(), kGradientThreads, count.used(), gradients);
      for (const auto& [part, d] : {std::pair{dq_part, dx.q}, std::pair{dk_part, dx.k}})
        if (part)
          launch(sum_groups<T>, ceil_div(d.numel(), 256), 256, 0, dptr<float>(part), dptr<T>(d),
                 d.numel(), p.group, p.K);
    });
  });
  if (!in.v.is_meta()) check_launch("delta backward");
}

}  // namespace weft::kernels
