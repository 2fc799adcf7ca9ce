// The backward loops of softmax attention. P is computed again from lse in the same tiles:
//   delta_i = dout_i . o_i - dlse_i
//   p_ij = exp(x_ij - lse_i)    d_ij = p_ij (dout_i.v_j - delta_i)
//   dv_j = sum_i p_ij dout_i    dk_j = scale sum_i d_ij q_i    dq_i = scale sum_j d_ij k_j
// Two kernels, so that no sum crosses blocks and every bit is the same on each run: one owns a tile
// of keys and walks its rows, heads of a group one after the other; one owns a tile of rows and
// walks its keys. Both hold their product's left side as a warp's stripe of 16 rows; nothing of
// size T x T.
#pragma once

#include "kernels/softmax/softmax.cuh"
#include "kernels/tile/vectors.cuh"

namespace weft::kernels::softmax {

// Eight lanes a row of [B, T, H], each with pieces of eight numbers. `vectors`: every row and the
// width are whole pieces.
template <class E>
__global__ void __launch_bounds__(256)
    row_deltas(const Heads<const E> o, const Heads<const E> dout, const float* dlse, float* delta,
               int64_t rows, int T, int H, bool vectors) {
  constexpr int kLanes = 8, kPiece = 8;
  const int64_t row = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / kLanes;
  const int64_t safe = row < rows ? row : 0;
  const int h = static_cast<int>(safe % H), t = static_cast<int>(safe / H % T);
  const int b = static_cast<int>(safe / H / T);
  const E *const y = o.at(b, t, h), *const dy = dout.at(b, t, h);
  float sum = 0;
  for (int c = static_cast<int>(threadIdx.x) % kLanes * kPiece; c < o.width; c += kLanes * kPiece) {
    float left[kPiece], right[kPiece];
    if (vectors) {
      load(y + c, left);
      load(dy + c, right);
    } else {
      load_some(y + c, o.width - c, left);
      load_some(dy + c, o.width - c, right);
    }
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sum += left[i] * right[i];
  }
#pragma unroll
  for (int m = kLanes / 2; m > 0; m /= 2) sum += __shfl_xor_sync(~0u, sum, m);
  const int64_t at = (int64_t{b} * H + h) * T + t;  // [B, H, T]
  if (row < rows && threadIdx.x % kLanes == 0) delta[at] = dlse != nullptr ? sum - dlse[at] : sum;
}

// dsink[h] = -sum over b, t of exp(sink[h] - lse) delta. A block a head.
static __global__ void __launch_bounds__(1024)
    sink_gradient(const float* sink, const float* lse, const float* delta, float* dsink, int B,
                  int T, int H) {
  const int h = static_cast<int>(blockIdx.x);
  float sum = 0;
  for (int b = 0; b < B; ++b) {
    const int64_t row = (int64_t{b} * H + h) * T;
    for (int t = static_cast<int>(threadIdx.x); t < T; t += static_cast<int>(blockDim.x))
      sum += tile::ex2(tile::kLog2e * (sink[h] - lse[row + t])) * delta[row + t];
  }
  sum = tile::block_sum(sum);
  if (threadIdx.x == 0) dsink[h] = -sum;
}

template <class E, int D>
struct BackwardShape {
  static constexpr bool kWide = sizeof(E) == 4;
  static constexpr int M = kWide && D == 256 ? 32 : 64;    // of the tile owned, 16 a warp
  static constexpr int N = kWide ? 16 : D > 64 ? 32 : 64;  // of the tiles met
  static constexpr int kThreads = 2 * M;

  Smem<E, M, D> own_a, own_b;        // k and v, or q and dout
  Smem<E, N, D> met_a[2], met_b[2];  // the others, one tile ahead
  float *lse[2], *delta[2];          // [N]
  uint32_t* broken;                  // [2]: the rows met that mend_rows() marks
  __host__ __device__ static BackwardShape carve(Arena& arena) {
    BackwardShape s;
    s.own_a = arena.carve<Smem<E, M, D>>();
    s.own_b = arena.carve<Smem<E, M, D>>();
    for (int i = 0; i < 2; ++i) {
      s.met_a[i] = arena.carve<Smem<E, N, D>>();
      s.met_b[i] = arena.carve<Smem<E, N, D>>();
      s.lse[i] = arena.carve<float>(N);
      s.delta[i] = arena.carve<float>(N);
    }
    s.broken = arena.carve<uint32_t>(2);
    return s;
  }
  static int bytes() {
    Arena count;
    carve(count);
    return count.used();
  }
};

// A row that sees nothing has lse = -infinity; +infinity in its place makes its p zero.
__device__ __forceinline__ float live_lse(float lse) { return lse == -INFINITY ? INFINITY : lse; }

// The gradient of q.k / scale, from p, dout.v and the score x.
__device__ __forceinline__ float score_gradient(float p, float dp, float delta, float x,
                                                float softcap) {
  const float d = p * (dp - delta);
  if (softcap == 0 || p == 0) return d;
  return d * (1 - (x / softcap) * (x / softcap));
}

template <class E, int D>
__device__ __forceinline__ void store_rows(Acc<D>& acc, float factor, const Heads<E>& to, int b,
                                           int h, int row0, int rows) {
  tile::scale(acc, factor);
  tile::store_acc(acc, to.at(b, row0, h), to.token, rows - row0, to.width);
}

// dk and dv of a tile of keys: scores and their gradients are held transposed, [keys, rows], and so
// are left sides of both products as they are.
template <class E, int D, class Mask, bool kK, bool kV>
__global__ void __launch_bounds__(BackwardShape<E, D>::kThreads)
    key_gradients(const Call<E> x, const Mask mask, const Incoming<E> in, const Heads<E> dk,
                  const Heads<E> dv) {
  using Shape = BackwardShape<E, D>;
  constexpr int M = Shape::M, N = Shape::N;
  Arena arena(tile::dynamic_memory());
  const Shape s = Shape::carve(arena);
  const Unit unit(blockIdx.x, (x.S + M - 1) / M, x.H / x.group);
  const int b = unit.b, j0 = unit.tile * M, row0 = 16 * tile::warp_index();
  const int first_head = unit.h * x.group;

  int h = first_head;
  auto walk = mask.template query_tiles<M, N>(b, h, unit.tile);
  const auto next = [&] {
    Visit n = walk.next();
    while (!n && h + 1 < first_head + x.group) {
      walk = mask.template query_tiles<M, N>(b, ++h, unit.tile);
      n = walk.next();
    }
    return n;
  };
  const auto load_rows = [&](int stage, Visit n) {
    if (n) {
      const int t = n.tile * N, rows = min(N, x.T - t);
      tile::load_tile_async(s.met_a[stage], x.q.at(b, t, h), x.q.token, rows, x.q.width);
      tile::load_tile_async(s.met_b[stage], in.dout.at(b, t, h), in.dout.token, rows,
                            in.dout.width);
      const int64_t at = (int64_t{b} * x.H + h) * x.T + t;
      for (int i = static_cast<int>(threadIdx.x); i < N; i += Shape::kThreads) {
        s.lse[stage][i] = i < rows ? live_lse(in.lse[at + i]) : INFINITY;
        s.delta[stage][i] = i < rows ? in.delta[at + i] : 0.f;
      }
    }
    tile::async_commit();
  };

  const int keys = min(M, x.S - j0);
  tile::load_tile_async(s.own_a, x.k.at(b, j0, unit.h), x.k.token, keys, x.k.width);
  tile::load_tile_async(s.own_b, x.v.at(b, j0, unit.h), x.v.token, keys, x.v.width);
  const int j[2] = {j0 + row0 + tile::acc_row(0), j0 + row0 + tile::acc_row(2)};
  const Range range[2] = {mask.queries(j[0]), mask.queries(j[1])};
  const Bounds bounds = mask.bounds_of_keys(j0, M);
  Acc<D> dk_sum, dv_sum;
  for (bool care = false;; care = true) {  // a second time where the results are not finite
    tile::fill(dk_sum, 0.f);
    tile::fill(dv_sum, 0.f);

    h = first_head;
    walk = mask.template query_tiles<M, N>(b, h, unit.tile);
    Visit n = next();
    load_rows(0, n);
    for (int stage = 0; n; stage ^= 1) {
      const Visit now = n;
      const int now_head = h;
      n = next();
      load_rows(stage ^ 1, n);
      tile::async_wait<1>();
      __syncthreads();
      Acc<N> p;
      tile::fill(p, 0.f);
      tile::mma_abt<D>(p, s.own_a, row0, 0, s.met_a[stage], 0, 0);
      score(p, x.scale, x.softcap);
      hide(p, bounds.cuts(now.tile * N, N), now.fine, range, now.tile * N,
           [&](int half, int t) { return mask.sees(b, now_head, t, j[half]); });
      Acc<N> d = p;  // the scores, for the cap's slope
      each_half(p,
                [&](int, int c, float& v) { v = tile::ex2(tile::kLog2e * (v - s.lse[stage][c])); });
      const int t0 = now.tile * N;
      const bool mends = care && (bounds.cuts(t0, N) || now.fine);
      const auto mend = [&](Acc<N>& weights) {
        mend_weights(weights, now.fine, range, t0, s.broken,
                     [&](int half, int t) { return mask.sees(b, now_head, t, j[half]); });
      };
      if (mends) {
        const int rank = static_cast<int>(threadIdx.x), rows = x.T - t0;
        mend_rows(s.met_a[stage], x.q.at(b, t0, now_head), x.q.token, rows, x.q.width, rank, false,
                  s.broken);
        mend_rows(s.met_b[stage], in.dout.at(b, t0, now_head), in.dout.token, rows, in.dout.width,
                  rank, true, s.broken);
        __syncthreads();
        mend(p);
      }
      if constexpr (kV) tile::mma_ab(dv_sum, tile::to_frag<E>(p), s.met_b[stage], 0, 0);
      if constexpr (kK) {
        Acc<N> dp;
        tile::fill(dp, 0.f);
        tile::mma_abt<D>(dp, s.own_b, row0, 0, s.met_b[stage], 0, 0);
#pragma unroll
        for (int col = 0; col < N / 8; ++col) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            d.x[col][i] =
                score_gradient(p.x[col][i], dp.x[col][i], s.delta[stage][tile::acc_col(col, i)],
                               d.x[col][i], x.softcap);
          }
        }
        if (mends) mend(d);
        tile::mma_ab(dk_sum, tile::to_frag<E>(d), s.met_a[stage], 0, 0);
      }
      __syncthreads();
    }
    tile::async_wait<0>();
    const bool broken = (kK && is_broken(dk_sum)) || (kV && is_broken(dv_sum));
    if (!__syncthreads_or(!care && broken)) break;
  }
  if (kK && dk.data != nullptr) store_rows(dk_sum, x.scale, dk, b, unit.h, j0 + row0, x.S);
  if (kV && dv.data != nullptr) store_rows(dv_sum, 1.f, dv, b, unit.h, j0 + row0, x.S);
}

// dq of a tile of rows.
template <class E, int D, class Mask>
__global__ void __launch_bounds__(BackwardShape<E, D>::kThreads)
    query_gradients(const Call<E> x, const Mask mask, const Incoming<E> in, const Heads<E> dq) {
  using Shape = BackwardShape<E, D>;
  constexpr int M = Shape::M, N = Shape::N;
  Arena arena(tile::dynamic_memory());
  const Shape s = Shape::carve(arena);
  const Unit unit(blockIdx.x, (x.T + M - 1) / M, x.H);
  const int h = unit.h, b = unit.b, t0 = unit.tile * M, row0 = 16 * tile::warp_index();
  const int hk = h / x.group, rows = min(M, x.T - t0);

  const auto load_keys = [&](int stage, Visit n) {
    if (n) {
      const int j = n.tile * N, keys = min(N, x.S - j);
      tile::load_tile_async(s.met_a[stage], x.k.at(b, j, hk), x.k.token, keys, x.k.width);
      tile::load_tile_async(s.met_b[stage], x.v.at(b, j, hk), x.v.token, keys, x.v.width);
    }
    tile::async_commit();
  };
  tile::load_tile_async(s.own_a, x.q.at(b, t0, h), x.q.token, rows, x.q.width);
  tile::load_tile_async(s.own_b, in.dout.at(b, t0, h), in.dout.token, rows, in.dout.width);
  const int t[2] = {t0 + row0 + tile::acc_row(0), t0 + row0 + tile::acc_row(2)};
  const Range range[2] = {mask.keys(t[0]), mask.keys(t[1])};
  const Bounds bounds = mask.bounds_of_rows(t0, M);
  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t at = (int64_t{b} * x.H + h) * x.T + t[half];
    lse[half] = t[half] < x.T ? live_lse(in.lse[at]) : INFINITY;
    delta[half] = t[half] < x.T ? in.delta[at] : 0.f;
  }
  Acc<D> sum;
  for (bool care = false;; care = true) {  // a second time where the results are not finite
    tile::fill(sum, 0.f);

    auto walk = mask.template key_tiles<M, N>(b, h, unit.tile);
    Visit n = walk.next();
    load_keys(0, n);
    for (int stage = 0; n; stage ^= 1) {
      const Visit now = n;
      n = walk.next();
      load_keys(stage ^ 1, n);
      tile::async_wait<1>();
      __syncthreads();
      Acc<N> d, dp;
      tile::fill(d, 0.f);
      tile::mma_abt<D>(d, s.own_a, row0, 0, s.met_a[stage], 0, 0);
      tile::fill(dp, 0.f);
      tile::mma_abt<D>(dp, s.own_b, row0, 0, s.met_b[stage], 0, 0);
      score(d, x.scale, x.softcap);
      hide(d, bounds.cuts(now.tile * N, N), now.fine, range, now.tile * N,
           [&](int half, int j) { return mask.sees(b, h, t[half], j); });
#pragma unroll
      for (int col = 0; col < N / 8; ++col) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float score = d.x[col][i], p = tile::ex2(tile::kLog2e * (score - lse[i / 2]));
          d.x[col][i] = score_gradient(p, dp.x[col][i], delta[i / 2], score, x.softcap);
        }
      }
      if (care && (bounds.cuts(now.tile * N, N) || now.fine)) {
        const int j0 = now.tile * N;
        mend_rows(s.met_a[stage], x.k.at(b, j0, hk), x.k.token, x.S - j0, x.k.width,
                  static_cast<int>(threadIdx.x), false, s.broken);
        __syncthreads();
        mend_weights(d, now.fine, range, j0, s.broken,
                     [&](int half, int j) { return mask.sees(b, h, t[half], j); });
      }
      tile::mma_ab(sum, tile::to_frag<E>(d), s.met_a[stage], 0, 0);
      __syncthreads();
    }
    tile::async_wait<0>();
    if (!__syncthreads_or(!care && is_broken(sum))) break;
  }
  store_rows(sum, x.scale, dq, b, h, t0 + row0, x.T);
}

// delta [B, H, T], and what is made of it before the tiles. Allocates; dlse may be absent.
class RowDeltas {
 public:
  RowDeltas(const Tensor& lse, const Tensor& dlse)
      : lse_(lse),
        dlse_(dlse ? dlse.contiguous() : dlse),
        delta_(empty(lse.shape(), Dtype::f32, lse.device())) {}

  template <class E>
  Incoming<E> find(const Tensor& o, const Tensor& dout) const {
    const int64_t rows = lse_.numel();
    launch(row_deltas<E>, (rows + 31) / 32, 256, 0, heads_of<const E>(o), heads_of<const E>(dout),
           dlse_ ? dptr<const float>(dlse_) : nullptr, dptr<float>(delta_), rows,
           static_cast<int>(lse_.size(2)), static_cast<int>(lse_.size(1)),
           o.size(3) % 8 == 0 && vector_rows(o, 8) && vector_rows(dout, 8));
    return {heads_of<const E>(dout), dptr<const float>(lse_), dptr<const float>(delta_)};
  }
  void sink(const Tensor& sink, const Tensor& dsink) const {
    launch(sink_gradient, lse_.size(1), 1024, 0, dptr<const float>(sink), dptr<const float>(lse_),
           dptr<const float>(delta_), dptr<float>(dsink), static_cast<int>(lse_.size(0)),
           static_cast<int>(lse_.size(2)), static_cast<int>(lse_.size(1)));
  }

 private:
  Tensor lse_, dlse_, delta_;
};

// dk, dv and dq; those that are absent are not computed.
template <class E, int D, class Mask>
void run_key_gradients(const Call<E>& x, const Mask& mask, const Incoming<E>& in,
                       const Heads<E>& dk, const Heads<E>& dv) {
  using Shape = BackwardShape<E, D>;
  const int64_t blocks = int64_t{ceil_div_int(x.S, Shape::M)} * (x.H / x.group) * x.B;
  const auto run = [&](auto* kernel) {
    launch(kernel, blocks, Shape::kThreads, Shape::bytes(), x, mask, in, dk, dv);
  };
  if constexpr (D == 256) {  // the two sums do not fit the registers together
    if (dk.data) run(key_gradients<E, D, Mask, true, false>);
    if (dv.data) run(key_gradients<E, D, Mask, false, true>);
  } else {
    if (dk.data || dv.data) run(key_gradients<E, D, Mask, true, true>);
  }
}
template <class E, int D, class Mask>
void run_query_gradients(const Call<E>& x, const Mask& mask, const Incoming<E>& in,
                         const Heads<E>& dq) {
  using Shape = BackwardShape<E, D>;
  const int64_t blocks = int64_t{ceil_div_int(x.T, Shape::M)} * x.H * x.B;
  if (dq.data)
    launch(query_gradients<E, D, Mask>, blocks, Shape::kThreads, Shape::bytes(), x, mask, in, dq);
}

template <class E, class Mask>
void run_backward(const Call<E>& x, const Mask& of_keys, const Mask& of_rows, const Incoming<E>& in,
                  const Heads<E>& dq, const Heads<E>& dk, const Heads<E>& dv) {
  for_head_size(x.q.width, x.v.width, [&]<int D>() {
    run_key_gradients<E, D>(x, of_keys, in, dk, dv);
    run_query_gradients<E, D>(x, of_rows, in, dq);
  });
}

}  // namespace weft::kernels::softmax
