// What token_gradients, the last step backward, is in delta and kda alike: the products of a
// piece's rows with the state before it, S, and the gradient of the state after, dS. Three
// warpgroups, and the columns of V by slices that come two ahead:
//   group 0   dO S'    dO U'
//   group 1   R S'     R U'
//   group 2   U dS'    R . V, and dS . S as the rule sums it up
#pragma once

#include "kernels/delta_rule/delta_rule.cuh"

namespace weft::kernels::delta_rule {

// What the gradients of a piece's tokens are made of, and where they go.
template <class Real>
struct Gradients {
  Grid grid;
  int K, V, group, state_pitch, row_pitch;
  float scale;
  Heads<const Real> q, k, v, dout;
  const Real *written, *erased;               // U, R: [B, T, H, row_pitch]
  const Real *states, *dstates;               // [B, chunks - 1, H, V, state_pitch]
  const float *initial_state, *dfinal_state;  // [N, H, K, V] or null
  const Gate* gates;
  Real *dq, *dk;             // [B, T, H, K] where every head has its key, or null
  float *dq_part, *dk_part;  // the same, a head each, where they share
  float *dbeta, *dg;         // [B, T, H], dg as g; or null
};

inline constexpr int kGradientThreads = 384;

// The operands of those products: kSliceColumns of V, kKeyColumns of K. An even slice lies in the
// tiles named here, an odd one after each.
template <class Real, int kKeyColumns, int kSliceColumns>
struct Slices {
  static constexpr int kKeys = kKeyColumns, kSlice = kSliceColumns;
  using Rows = Smem<Real, kChunk, kSlice>;
  using State = Smem<Real, kSlice, kKeys>;
  Rows dout, written, erased, value;
  State state, dstate;

  Slices() = default;
  __host__ __device__ explicit Slices(Arena& arena) {
    dout = arena.carve<Rows>();  // one by one: whose address is taken ends up in local memory
    (void)arena.carve<Rows>();
    written = arena.carve<Rows>();
    (void)arena.carve<Rows>();
    erased = arena.carve<Rows>();
    (void)arena.carve<Rows>();
    value = arena.carve<Rows>();
    (void)arena.carve<Rows>();
    state = arena.carve<State>();
    (void)arena.carve<State>();
    dstate = arena.carve<State>();
    (void)arena.carve<State>();
  }
  template <class Tile>
  __device__ static Tile of(Tile even, int slice) {
    return {even.data + slice % 2 * (Tile::bytes / static_cast<int>(sizeof(Real)))};
  }
};

// A slice of a state by one warpgroup: [V, pitch] in `kept`, or transposed from [K, V] fp32, or
// zeros.
template <class Real, int R, int C>
__device__ __forceinline__ void load_slice(Smem<Real, R, C> tile, const Real* kept, int width,
                                           const float* wide, int K, int V, int v0, int k0,
                                           int rank) {
  if (kept) {
    load_rows<128>(tile, kept + int64_t{v0} * width + k0, width, V - v0, K - k0, rank);
    return;
  }
#pragma unroll 1
  for (int at = rank; at < R * C; at += 128) {
    const int r = at % R, c = at / R;
    const bool valid = wide && v0 + r < V && k0 + c < K;
    tile.at(r, c) = from_float<Real>(valid ? wide[int64_t{k0 + c} * V + v0 + r] : 0.f);
  }
}

// The products of one piece.
template <class Real, class X>
struct PieceProducts {
  const Gradients<Real>& a;
  const X& x;  // Slices
  Span s;
  int b, h;
  const Real *before,
      *after;  // S and dS where they are kept, else null: then they are those of the document
  const float *initial, *dfinal;

  __device__ PieceProducts(const Gradients<Real>& all, const X& slices, const Span& span, int row,
                           int head)
      : a(all), x(slices), s(span), b(row), h(head) {
    const int64_t of_document = (int64_t{s.document} * a.grid.H + h) * a.K * a.V;
    const int64_t size = int64_t{a.V} * a.state_pitch;
    before = s.first ? nullptr : a.states + a.grid.kept(b, s.chunk - 1, h) * size;
    after = s.last ? nullptr : a.dstates + a.grid.kept(b, s.chunk, h) * size;
    initial = a.initial_state ? a.initial_state + of_document : nullptr;
    dfinal = a.dfinal_state ? a.dfinal_state + of_document : nullptr;
  }

  __device__ __forceinline__ void load(int slice, int k0) const {
    const int role = warpgroup_index(), rank = static_cast<int>(threadIdx.x) % 128;
    const int v0 = slice * X::kSlice;
    if (v0 >= a.V) return;
    if (role == 0) {
      load_rows<128>(x.of(x.dout, slice), a.dout.at(b, s.begin, h) + v0, a.dout.token, s.n,
                     a.V - v0, rank);
      load_slice(x.of(x.state, slice), before, a.state_pitch, initial, a.K, a.V, v0, k0, rank);
    } else if (role == 1) {
      const int64_t place = ((b * a.grid.T + s.begin) * a.grid.H + h) * a.row_pitch + v0;
      const int64_t stride = int64_t{a.grid.H} * a.row_pitch;
      load_rows<128>(x.of(x.erased, slice), a.erased + place, stride, s.n, a.V - v0, rank);
      load_rows<128>(x.of(x.written, slice), a.written + place, stride, s.n, a.V - v0, rank);
      if (k0 > 0) return;
      load_rows<128>(x.of(x.value, slice), a.v.at(b, s.begin, h) + v0, a.v.token, s.n, a.V - v0,
                     rank);
    } else {
      load_slice(x.of(x.dstate, slice), after, a.state_pitch, dfinal, a.K, a.V, v0, k0, rank);
    }
  }

  // For columns k0 .. of K: `grad` is this group's product with a state, and where k0 = 0 `scores`,
  // of the first two groups, that with U. more() loads what else the piece needs, close(S, dS) is
  // group 2's to add up dS . S. Returns, in group 2, R . V of row rank % 64 over a half of each
  // slice. Nothing is waited for at the end.
  template <class More, class Close>
  __device__ __forceinline__ float run(int k0, Acc<X::kKeys>& grad, Acc<kChunk>& scores,
                                       More&& more, Close&& close) const {
    constexpr int kSlice = X::kSlice;
    const int role = warpgroup_index(), rank = static_cast<int>(threadIdx.x) % 128;
    load(0, k0);
    async_commit();
    load(1, k0);
    more();
    async_commit();
    fill(grad, 0.f);
    fill(scores, 0.f);
    float value_dot = 0;
#pragma unroll 1
    for (int slice = 0; slice * kSlice < a.V; ++slice) {
      async_wait<1>();
      if constexpr (kWide<Real>) publish();
      __syncthreads();
      const auto state = x.of(x.state, slice), dstate = x.of(x.dstate, slice);
      const auto written = x.of(x.written, slice), erased = x.of(x.erased, slice);
      if (role == 2) {
        rows_ab<kSlice>(grad, written, dstate);
        close(state, dstate);
        if (k0 == 0) {
          const auto value = x.of(x.value, slice);
          const int r = rank % kChunk, first = rank / kChunk * (kSlice / 2);
#pragma unroll 8
          for (int c = first; c < first + kSlice / 2; c += 2) {
            const float2 R = load_pair(erased.ptr(r, c)), V = load_pair(value.ptr(r, c));
            value_dot = fmaf(R.x, V.x, fmaf(R.y, V.y, value_dot));
          }
        }
      } else {
        rows_ab<kSlice>(grad, role == 0 ? x.of(x.dout, slice) : erased, state);
        if (k0 == 0) rows_abt<kSlice>(scores, role == 0 ? x.of(x.dout, slice) : erased, written);
      }
      if ((slice + 2) * kSlice < a.V) {
        __syncthreads();
        load(slice + 2, k0);
      }
      async_commit();
    }
    async_wait<0>();
    return value_dot;
  }
};

}  // namespace weft::kernels::delta_rule
