// The passes of gated_linear backward that make states alone: forwards those at the starts of
// chunks again, backwards their gradients at the ends. A block has 64 x 64 of a state, which know
// nothing of the rest, and walks one document; blocks of both directions run beside each other.
#pragma once

#include "kernels/gated_linear/prepare.cuh"

namespace weft::kernels::gated_linear {

using tile::Acc;
using tile::Arena;
using tile::Smem;

template <class Real>
struct Gradients {
  TokenRows<const Real> dout;
  const float* dfinal_state;
  Real *states,
      *dstates;  // [B, chunks - 1, H, K, V]: at the starts of chunks 1, 2, ..; at the ends
  TokenRows<Real> dq, dk, dv;
  TokenRows<float> dg;
  TokenRows<float> dq_sum, dk_sum;  // [B, T, Hk, K], over the heads that share a key
  float* dinitial_state;
  int chunks;

  // The place of a state after chunk c, or of its gradient, in states, dstates.
  __device__ int64_t place(int b, int c, int h, int H) const {
    return (int64_t{b} * (chunks - 1) + c) * H + h;
  }
};

inline constexpr int kPart = 64;           // channels and columns of V of a block
inline constexpr int kStateThreads = 128;  // 16 channels for each warp

template <class Real>
struct StateTiles {
  Smem<Real, kTokens, kPart> x, y;  // two of each
  Smem<float, 8, kPart> total;      // two

  __host__ __device__ explicit StateTiles(Arena& arena)
      : x(arena.carve<Smem<Real, kTokens, kPart>>()) {
    arena.carve<Smem<Real, kTokens, kPart>>();
    y = arena.carve<Smem<Real, kTokens, kPart>>();
    arena.carve<Smem<Real, kTokens, kPart>>();
    total = arena.carve<Smem<float, 8, kPart>>();
    arena.carve<Smem<float, 8, kPart>>();
  }
};

// By sub-chunks. Forwards:  S  <- total . S  + (down . K)' V
// Backwards:                dS <- total . dS + (scale up . Q)' dout
template <bool kBackwards, class Real>
__device__ void walk_states(const CudaProblem<Real>& p, const Prepared<Real>& x,
                            const Gradients<Real>& f, int parts_k, int parts_v, int index) {
  Arena arena(tile::dynamic_memory());
  const StateTiles<Real> w(arena);
  const int warp = tile::warp_index();
  const int v0 = index % parts_v * kPart, k0 = index / parts_v % parts_k * kPart;
  index /= parts_v * parts_k;
  const int h = index % p.H, n = index / p.H;
  const int b = p.documents.row(n), begin = p.documents.begin(n), end = p.documents.end(n);

  const auto after = [&](const GridPiece& piece) {
    return kBackwards ? p.documents.up_to(begin, end, piece.begin)
                      : p.documents.from(begin, end, piece.end);
  };
  const auto is_final = [&](const GridPiece& piece) {
    return kBackwards ? piece.first : piece.last;
  };
  const auto fetch = [&](const GridPiece& piece, int stage) {
    const int t = piece.begin, size = piece.size();
    const Real* const left = kBackwards ? x.q_up.at(b, t, h) : x.k_down.at(b, t, h);
    load_rows_async<kStateThreads>(stage_of(w.x, stage), left + k0, x.q_up.by_token, size,
                                   p.K - k0);
    const TokenRows<const Real>& right = kBackwards ? f.dout : p.v;
    load_rows_async<kStateThreads>(stage_of(w.y, stage), right.at(b, t, h) + v0, right.by_token,
                                   size, p.V - v0);
    const int subs = (size + kSub - 1) / kSub;
    load_rows_async<kStateThreads>(stage_of(w.total, stage), x.total.at(b, x.cell(t), h) + k0,
                                   x.total.by_token, piece.last ? subs - 1 : subs, p.K - k0);
    tile::async_commit();
  };

  Acc<kPart> s;
  const int rows = p.K - k0 - 16 * warp, columns = p.V - v0;
  const int64_t at_head = ((int64_t{n} * p.H + h) * p.K + k0 + 16 * warp) * p.V + v0;
  const float* const from = kBackwards ? f.dfinal_state : p.initial_state;
  fill(s, 0.f);
  if (from) load_acc(s, from + at_head, p.V, rows, columns);
  const auto keep = [&](int c) {
    const int64_t at = (f.place(b, c, h, p.H) * p.K + k0 + 16 * warp) * p.V + v0;
    store_acc(s, (kBackwards ? f.dstates : f.states) + at, p.V, rows, columns);
  };
  const bool to_the_end = kBackwards && f.dinitial_state;

  GridPiece piece =
      kBackwards ? p.documents.up_to(begin, end, end) : p.documents.from(begin, end, begin);
  if (is_final(piece) && !to_the_end) return;
  fetch(piece, 0);
  for (int turn = 0;; ++turn) {
    const int stage = turn & 1;
    if (kBackwards && !piece.last) keep(piece.chunk);
    if (is_final(piece) && !to_the_end) break;
    tile::async_wait<0>();
    __syncthreads();
    if (!is_final(piece)) fetch(after(piece), 1 - stage);
    const auto total = stage_of(w.total, stage);
    const int subs = (piece.size() + kSub - 1) / kSub;
    if (kBackwards && piece.last && from) {
      const int d = threadIdx.x, start = piece.begin + kSub * (subs - 1);
      if (d < kPart && k0 + d < p.K)
        total.at(subs - 1, d) = decay_over(p, b, h, start, piece.end, k0 + d);
      __syncthreads();
    }
    for (int i = 0; i < subs; ++i) {
      const int sub = kBackwards ? subs - 1 - i : i;
      tile::Rows factor;
#pragma unroll
      for (int r = 0; r < 2; ++r) factor.x[r] = total.at(sub, 16 * warp + tile::acc_row(2 * r));
      scale_rows(s, factor);
      mma_ab(s, tile::load_frag_t<Real, kSub>(stage_of(w.x, stage), kSub * sub, 16 * warp),
             stage_of(w.y, stage), kSub * sub, 0);
    }
    if (is_final(piece)) break;
    if (!kBackwards) keep(piece.chunk);
    piece = after(piece);
    if (!kBackwards && piece.last) break;
  }
  if (kBackwards && f.dinitial_state) store_acc(s, f.dinitial_state + at_head, p.V, rows, columns);
}

template <class Real>
__global__ void __launch_bounds__(kStateThreads, 4)
    chunk_states(const CudaProblem<Real> p, const Prepared<Real> x, const Gradients<Real> f,
                 const int parts_k, const int parts_v, const int of_gradients) {
  const int index = static_cast<int>(blockIdx.x);
  if (index < of_gradients)
    walk_states<true>(p, x, f, parts_k, parts_v, index);
  else
    walk_states<false>(p, x, f, parts_k, parts_v, index - of_gradients);
}

}  // namespace weft::kernels::gated_linear
