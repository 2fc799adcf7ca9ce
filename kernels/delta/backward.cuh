// The delta rule on a GPU, backward: a scan from the last piece to the first that carries the
// gradient of the state (R and dV come of it), then all pieces by themselves (token_gradients): dq,
// dk, dbeta, dg.
//
// With U what was written, S before the piece, dS after it, P and M masked and decayed by Gamma:
//   dP = scale (dO U') Gamma      dL = -(R U') Gamma, below the diagonal      dM = beta dL
//   dQ = scale e^G dO S' + dP K
//   E  = -e^G R S' + dL K         so that beta E is the gradient of k where it erases
//   W  = e^{G_last - G} U dS' + dP' Q + dM' K
//   dK = beta E + W               dbeta = R . V + K . E
//   dG = Q . dQ + K . beta E - K . W, without the terms of one token with itself
// So the triangular system is not met again, and nothing is divided by beta.
#pragma once

#include "kernels/delta/chunks.cuh"

namespace weft::kernels::delta {

template <class Real>
struct TokenGradients : Gradients<Real> {
  const GateSum* sums;
};

// Three warpgroups, for dQ, E and W.
template <class Real, int kKeyColumns>
struct GradientTiles {
  static constexpr int kKeys = kKeyColumns;  // columns of K at a time
  using Operands = Slices<Real, kKeys, sizeof(Real) == 2 ? 64 : 32>;
  using Square = Smem<Real, kChunk, kChunk>;
  Smem<Real, kChunk, kKeys> q, k;
  Operands slices;
  Smem<Real, kChunk, kKeys> query,
      key;                           // dQ and dK on their way out, in the place of dout, written
  Smem<float, kChunk, kKeys> erase;  // beta E, in the place of the states
  Square dP, dL, dM;
  Gate* gates;     // [64]
  GateSum* sum;    // [64]
  float* own;      // [64]: dP of a token with itself
  float* dots;     // [6][64]
  float* closing;  // [4]: of dS . S, a warp each
  __host__ __device__ explicit GradientTiles(Arena& arena) {
    q = arena.carve<Smem<Real, kChunk, kKeys>>();
    k = arena.carve<Smem<Real, kChunk, kKeys>>();
    slices = Operands(arena);
    query.data = slices.dout.data;
    key.data = slices.written.data;
    erase.data = reinterpret_cast<float*>(slices.state.data);
    static_assert(query.bytes <= 2 * Operands::Rows::bytes &&
                  erase.bytes <= 2 * Operands::State::bytes);
    dP = arena.carve<Square>();
    dL = arena.carve<Square>();
    dM = arena.carve<Square>();
    gates = arena.carve<Gate>(kChunk);
    sum = arena.carve<GateSum>(kChunk);
    own = arena.carve<float>(kChunk);
    dots = arena.carve<float>(6 * kChunk);
    closing = arena.carve<float>(4);
  }
};

// sum over columns of acc * tile(row0 + row, column) to to[row0 + row], or added to it.
template <class Real, int N, int R, int C>
__device__ __forceinline__ void put_dots(float* to, const Acc<N>& acc, Smem<Real, R, C> tile,
                                         int row0, bool add) {
  float sum[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 pair = load_pair(tile.ptr(row0 + acc_row(2 * r), acc_col(j, 0)));
      sum[r] = fmaf(acc.x[j][2 * r], pair.x, fmaf(acc.x[j][2 * r + 1], pair.y, sum[r]));
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float whole = quad_sum(sum[r]);
    float& x = to[row0 + acc_row(2 * r)];
    if (lane_index() % 4 == 0) x = add ? x + whole : whole;
  }
}
// acc += factor[row] * tile(row0 + row, column).
template <class Real, int N, int R, int C>
__device__ __forceinline__ void add_rows(Acc<N>& acc, const float* factor, Smem<Real, R, C> tile,
                                         int row0) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float by = factor[row0 + acc_row(2 * r)];
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const float2 pair = load_pair(tile.ptr(row0 + acc_row(2 * r), acc_col(j, 0)));
      acc.x[j][2 * r] = fmaf(by, pair.x, acc.x[j][2 * r]);
      acc.x[j][2 * r + 1] = fmaf(by, pair.y, acc.x[j][2 * r + 1]);
    }
  }
}

// acc += tile(row0 + row, column).
template <int N, int R, int C>
__device__ __forceinline__ void add_tile(Acc<N>& acc, Smem<float, R, C> tile, int row0) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float2 pair = load_pair(tile.ptr(row0 + acc_row(i), acc_col(j, 0)));
      acc.x[j][i] += pair.x;
      acc.x[j][i + 1] += pair.y;
    }
  }
}

// A gradient of q or k, whole or a head's part, through `tile`: a warp its 16 rows.
template <class Real, int N>
__device__ __forceinline__ void store_gradient(const Acc<N>& acc, Smem<Real, kChunk, N> tile,
                                               Real* whole, float* part, int64_t stride, int n,
                                               int cols) {
  if (part) store_acc(acc, part + stripe() * stride, stride, n - stripe(), cols);
  if (!whole) return;
  acc_to_smem(acc, tile, stripe(), 0);
  __syncwarp();
  store_rows(tile, whole, stride, n, cols);
}

enum Dots { kOfQuery, kOfErase, kOfWrite, kOfEnd, kOfValue };  // the last one in two halves

// dbeta and dg of a piece, by one warp: dg_t is what is read from t on, within and through S, and
// what was written before t to last.
template <class Real, class Tiles>
__device__ __forceinline__ void gate_gradients(const TokenGradients<Real>& a, const Tiles& x,
                                               const Span& s, int b, int h, bool has_initial) {
  const float total = x.gates[s.n - 1].up;
  float inner[2], end[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane_index() + i;
    const float erase = x.dots[kOfErase * kChunk + t];
    end[i] = x.dots[kOfEnd * kChunk + t];  // which the dots of W hold as well
    inner[i] = x.dots[kOfQuery * kChunk + t] + x.gates[t].beta * erase -
               (x.dots[kOfWrite * kChunk + t] - end[i]);
    if (a.dbeta && t < s.n) {
      a.dbeta[(b * a.grid.T + s.begin + t) * a.grid.H + h] =
          x.dots[kOfValue * kChunk + t] + x.dots[(kOfValue + 1) * kChunk + t] + erase;
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
    // Where there is nothing to forget, before a document's first token, and where all is
    // forgotten, the sum leaves rounding.
    const float kept = t > 0 ? decay_between(x.sum[t], x.sum[t - 1]) : x.gates[0].up;
    const bool none = (t == 0 && s.first && !has_initial) || kept == 0.f;
    if (t < s.n) a.dg[(b * a.grid.T + s.begin + t) * a.grid.H + h] = none ? 0.f : dg;
  }
}

template <class Real, int kKeys>
__global__ void __launch_bounds__(kGradientThreads, 1)
    token_gradients(const __grid_constant__ TokenGradients<Real> a) {
  using Tiles = GradientTiles<Real, kKeys>;
  Arena arena(dynamic_memory());
  const Tiles x(arena);
  const int role = warpgroup_index(), top = stripe(), rank = static_cast<int>(threadIdx.x) % 128;

  a.grid.for_pieces([&](const Span& s, int b, int h) {
    const int64_t token = a.grid.token(b, h, s.begin), hk = h / a.group;
    const int64_t row = (b * a.grid.T + s.begin) * a.grid.H + h;
    const int64_t keys = int64_t{a.grid.H} * a.K;
    const PieceProducts<Real, typename Tiles::Operands> products(a, x.slices, s, b, h);
    __syncthreads();  // the piece before is done
    if (role == 0 && rank < kChunk) {
      x.gates[rank] = rank < s.n ? a.gates[token + rank] : Gate{0.f, 0.f, 0.f, 0.f};
      x.sum[rank] = a.sums[token + min(rank, s.n - 1)];  // so that no difference is positive
    }
    float closing = 0;
#pragma unroll 1
    for (int k0 = 0; k0 < a.K; k0 += kKeys) {
      if (k0 > 0) __syncthreads();
      const auto load_keys = [&] {
        if (role == 1) {
          load_rows<128>(x.q, a.q.at(b, s.begin, hk) + k0, a.q.token, s.n, a.K - k0, rank);
        } else if (role == 2) {
          load_rows<128>(x.k, a.k.at(b, s.begin, hk) + k0, a.k.token, s.n, a.K - k0, rank);
        }
      };
      const auto close = [&](auto state, auto dstate) {
        // Both lie alike, so the place of a number does not matter.
        using State = decltype(state);
        for (int i = rank; i < State::bytes / 16; i += 128) {
          const Real* const one = state.data + i * State::unit_cols;
          const Real* const other = dstate.data + i * State::unit_cols;
#pragma unroll
          for (int c = 0; c < State::unit_cols; c += 2) {
            const float2 S = load_pair(one + c), dS = load_pair(other + c);
            closing = fmaf(S.x, dS.x, fmaf(S.y, dS.y, closing));
          }
        }
      };
      Acc<kKeys> grad;     // of this group: dQ, E or W
      Acc<kChunk> scores;  // the first two: dP or dL
      const float value_dot = products.run(k0, grad, scores, load_keys, close);
      if (k0 == 0 && role < 2) {
        each(scores, [&](int row, int c, float& d) {
          const int r = top + row;
          const float gamma = c <= r ? decay_between(x.sum[r], x.sum[c]) : 0.f;
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
        x.dots[kOfValue * kChunk + rank] = value_dot;
      }
      if constexpr (kWide<Real>) publish();
      __syncthreads();

      Rows factor;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Gate& gate = x.gates[top + acc_row(2 * i)];
        factor.x[i] = role == 0 ? a.scale * gate.up : role == 1 ? -gate.up : gate.down;
      }
      scale_rows(grad, factor);
      const int64_t place = row * a.K + k0;
      if (role == 0) {
        rows_ab<kChunk>(grad, x.dP, x.k);
        put_dots(x.dots + kOfQuery * kChunk, grad, x.q, top, k0 > 0);
        add_rows(grad, x.own, x.k, top);
        store_gradient(grad, x.query, a.dq ? a.dq + place : nullptr,
                       a.dq_part ? a.dq_part + place : nullptr, keys, s.n, a.K - k0);
      } else if (role == 1) {
        rows_ab<kChunk>(grad, x.dL, x.k);
        put_dots(x.dots + kOfErase * kChunk, grad, x.k, top, k0 > 0);
        each(grad, [&](int row, int, float& d) { d *= x.gates[top + row].beta; });
        acc_to_smem(grad, x.erase, top, 0);
      } else {
        put_dots(x.dots + kOfEnd * kChunk, grad, x.k, top, k0 > 0);
        rows_atb<kChunk>(grad, x.dP, x.q);
        rows_atb<kChunk>(grad, x.dM, x.k);
        put_dots(x.dots + kOfWrite * kChunk, grad, x.k, top, k0 > 0);
      }
      __syncthreads();
      if (role == 2) {
        add_tile(grad, x.erase, top);
        add_rows(grad, x.own, x.q, top);
        store_gradient(grad, x.key, a.dk ? a.dk + place : nullptr,
                       a.dk_part ? a.dk_part + place : nullptr, keys, s.n, a.K - k0);
      }
    }
    if (role == 2) {
      closing = warp_sum(closing);
      if (lane_index() == 0) x.closing[top / 16] = closing;
    }
    __syncthreads();
    if (threadIdx.x < 32) gate_gradients(a, x, s, b, h, products.initial != nullptr);
  });
}

template <class Real>
void backward_form(const Delta::Inputs<Tensor>& in, const Delta::Options& o,
                   const Delta::Saved& saved, const Delta::Outputs<Tensor>& dy,
                   Delta::Inputs<Tensor>& dx) {
  const auto run = [](const Problem<Real>& p, const Gradients<Real>& gradients) {
    const auto of = [&]<int kKeys>(std::integral_constant<int, kKeys>) {
      Arena count;
      (void)GradientTiles<Real, kKeys>(count);
      launch(token_gradients<Real, kKeys>, p.chunk_heads(), kGradientThreads, count.used(),
             TokenGradients<Real>{gradients, p.chunks.sums});
    };
    if constexpr (sizeof(Real) == 2) {
      if (p.K > 64) return of(std::integral_constant<int, 128>{});
    }
    of(std::integral_constant<int, 64>{});
  };
  delta_rule::backward_form<Problem<Real>, Delta>(in, o, saved, dy, dx, run);
}

}  // namespace weft::kernels::delta
