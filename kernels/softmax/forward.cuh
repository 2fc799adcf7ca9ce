// The forward loop of softmax attention: the rows of one tile meet their keys, tile after tile,
// with a running maximum and sum (FlashAttention-2, arXiv:2307.08691). Where there are few rows and
// many keys, several blocks share the keys of a tile; what they find is merged by its lse.
#pragma once

#include "kernels/softmax/softmax.cuh"

namespace weft::kernels::softmax {

template <class E, int D>
struct ForwardShape {
  static constexpr bool kWide = sizeof(E) == 4;
  static constexpr int M = kWide && D == 256 ? 32 : 64;              // rows of a tile, 16 a warp
  static constexpr int N = D == 256 || (kWide && D > 64) ? 32 : 64;  // keys of a tile
  static constexpr int kThreads = 2 * M;

  Smem<E, M, D> q;
  Smem<E, N, D> k, v;
  uint32_t* broken;  // [2]: the keys that mend_rows() marks
  __host__ __device__ static ForwardShape carve(Arena& arena) {
    ForwardShape s;
    s.q = arena.carve<Smem<E, M, D>>();
    s.k = arena.carve<Smem<E, N, D>>();
    s.v = arena.carve<Smem<E, N, D>>();
    s.broken = arena.carve<uint32_t>(2);
    return s;
  }
};

// o [B, T, H, V] and lse [B, H, T]; with parts, one of each a part: o [parts, B, T, H, V] in fp32,
// lse [parts, B, H, T].
template <class R>
struct Outgoing {
  Heads<R> o;
  float* lse = nullptr;
  int parts = 1;
};

template <class E, int D, class Mask, class R>
__global__ void __launch_bounds__(ForwardShape<E, D>::kThreads)
    forward_tiles(const Call<E> x, const Mask mask, const Outgoing<R> y) {
  using Shape = ForwardShape<E, D>;
  constexpr int M = Shape::M, N = Shape::N;
  Arena arena(tile::dynamic_memory());
  const Shape s = Shape::carve(arena);
  const int part = static_cast<int>(blockIdx.x % y.parts);
  const Unit unit(blockIdx.x / y.parts, (x.T + M - 1) / M, x.H);
  const int h = unit.h, b = unit.b, t0 = unit.tile * M, row0 = 16 * tile::warp_index();
  const E *const k = x.k.at(b, 0, h / x.group), *const v = x.v.at(b, 0, h / x.group);

  const auto load_keys = [&](Smem<E, N, D> to, const E* from, const Heads<const E>& in, Visit n) {
    const int key0 = n.tile * N;
    if (n)
      tile::load_tile_async(to, from + key0 * in.token, in.token, min(N, x.S - key0), in.width);
    tile::async_commit();
  };

  tile::load_tile_async(s.q, x.q.at(b, t0, h), x.q.token, min(M, x.T - t0), x.q.width);
  const int t[2] = {t0 + row0 + tile::acc_row(0), t0 + row0 + tile::acc_row(2)};
  const Range range[2] = {mask.keys(t[0]), mask.keys(t[1])};
  const Bounds bounds = mask.bounds_of_rows(t0, M);
  const auto sink = [&](int row) {
    return x.sink != nullptr && part == 0 && row < x.T ? x.sink[mask.sink(h, row)] : -INFINITY;
  };
  Stream stream(1.f, sink(t[0]), sink(t[1]));
  Acc<D> out;
  for (bool care = false;; care = true) {  // a second time where the results are not finite
    auto walk = mask.template key_tiles<M, N>(b, h, unit.tile, part, y.parts);
    Visit n = walk.next();
    load_keys(s.k, k, x.k, n);
    stream = Stream(1.f, sink(t[0]), sink(t[1]));
    tile::fill(out, 0.f);
    while (n) {
      load_keys(s.v, v, x.v, n);
      tile::async_wait<1>();
      __syncthreads();  // q and k are there
      Acc<N> p;
      tile::fill(p, 0.f);
      tile::mma_abt<D>(p, s.q, row0, 0, s.k, 0, 0);
      const Visit now = n;
      n = walk.next();
      tile::async_wait<0>();
      __syncthreads();  // v is there, and k may be written
      load_keys(s.k, k, x.k, n);

      score(p, x.scale, x.softcap);
      hide(p, bounds.cuts(now.tile * N, N), now.fine, range, now.tile * N,
           [&](int half, int j) { return mask.sees(b, h, t[half], j); });
      tile::scale_rows(out, stream.add(p));
      if (care && (bounds.cuts(now.tile * N, N) || now.fine)) {
        const int key0 = now.tile * N;
        mend_rows(s.v, v + key0 * x.v.token, x.v.token, x.S - key0, x.v.width,
                  static_cast<int>(threadIdx.x), false, s.broken);
        __syncthreads();
        mend_weights(p, now.fine, range, key0, s.broken,
                     [&](int half, int j) { return mask.sees(b, h, t[half], j); });
      }
      tile::mma_ab(out, tile::to_frag<E>(p), s.v, 0, 0);
      __syncthreads();  // v may be written
    }
    tile::async_wait<0>();
    if (!__syncthreads_or(!care && is_broken(out))) break;
  }
  stream.finish(out);

  const int64_t copy = part * static_cast<int64_t>(x.B);
  const int first = t0 + row0;
  tile::store_acc(out, y.o.data + (copy + b) * y.o.batch + first * y.o.token + h * y.o.head,
                  y.o.token, x.T - first, y.o.width);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (t[half] < x.T && tile::lane_index() % 4 == 0)
      y.lse[((copy + b) * x.H + h) * x.T + t[half]] = stream.most[half];
  }
}

// Merges the parts: lse = log(sum exp(lse_part)), o = sum exp(lse_part - lse) o_part. A warp a row.
template <class E>
__global__ void __launch_bounds__(128) merge_parts(const Outgoing<float> parts, const Heads<E> o,
                                                   float* lse, int64_t rows, int T, int H) {
  const int64_t row = blockIdx.x * int64_t{4} + tile::warp_index();  // of [B, H, T]
  if (row >= rows) return;
  float most = -INFINITY, sum = 0;
  for (int p = 0; p < parts.parts; ++p) most = fmaxf(most, parts.lse[p * rows + row]);
  const float base = most == -INFINITY ? 0.f : most;
  for (int p = 0; p < parts.parts; ++p)
    sum += tile::ex2(tile::kLog2e * (parts.lse[p * rows + row] - base));
  const int64_t t = row % T, h = row / T % H, b = row / T / H, B = rows / T / H;
  const Heads<float>& in = parts.o;
  for (int c = tile::lane_index(); c < o.width; c += 32) {
    float mean = 0;
    for (int p = 0; p < parts.parts; ++p) {
      const float weight = tile::ex2(tile::kLog2e * (parts.lse[p * rows + row] - base));
      if (weight != 0)
        mean += weight * in.data[(p * B + b) * in.batch + t * in.token + h * in.head + c];
    }
    o.data[b * o.batch + t * o.token + h * o.head + c] =
        tile::from_float<E>(sum == 0 ? 0.f : mean / sum);
  }
  if (tile::lane_index() == 0) lse[row] = sum == 0 ? -INFINITY : most + logf(sum);
}

template <class E, int D, class Mask, class R>
void run_forward(const Call<E>& x, const Mask& mask, const Outgoing<R>& y) {
  using Shape = ForwardShape<E, D>;
  Arena count;
  Shape::carve(count);
  const int64_t tiles = ceil_div_int(x.T, Shape::M);
  launch(forward_tiles<E, D, Mask, R>, tiles * x.H * x.B * y.parts, Shape::kThreads, count.used(),
         x, mask, y);
}

template <class E, class Mask, class R>
void run_forward(const Call<E>& x, const Mask& mask, const Outgoing<R>& y) {
  for_head_size(x.q.width, x.v.width, [&]<int D>() { run_forward<E, D>(x, mask, y); });
}

}  // namespace weft::kernels::softmax
