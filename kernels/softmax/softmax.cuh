// Softmax attention on CUDA: what dense, window and block-sparse attention share beneath the loops
// over tiles, which are in forward.cuh and backward.cuh. Who sees whom is a policy
// of those loops, the Mask:
//   Range keys(int t)             the keys that row t may see; begin and end rise with t
//   Range queries(int j)          the rows that may see key j; both rise with j
//   Bounds bounds_of_rows(t, n)   of n rows from t on; bounds_of_keys(j, n) likewise
//   key_tiles<M, N>(b, h, tile)   walks the tiles of N keys that a tile of M rows meets
//   query_tiles<M, N>(b, h, tile) walks the tiles of N rows that a tile of M keys meets
//   bool sees(b, h, t, j)         asked within the ranges where a Visit says `fine`
//   int sink(h, t)                the sink of a row
// Scores are fp32 and natural logarithms; P is rounded to the type of v in products alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/cuda.cuh"
#include "kernels/tile/tile.cuh"
#include "kernels/tokens/documents.cuh"

namespace weft::kernels::softmax {

using bf16 = __nv_bfloat16;
using tile::Acc;
using tile::Arena;
using tile::Smem;

// --- Who sees whom -------------------------------------------------------------------------------

struct Range {
  int begin = 0, end = 0;
};

// A tile that a walk comes to. A block of two warpgroups has a bit for each: `uses` where it meets
// the tile at all, `fine` where sees() is to be asked for single pairs.
struct Visit {
  int tile = -1;  // -1: the walk is over
  unsigned uses = 3, fine = 0;
  __device__ explicit operator bool() const { return tile >= 0; }
};

// What lies between the ranges of the first and of the last row of some that are neighbours: none
// of them sees anything outside of [begin, end), and all see [all_begin, all_end).
struct Bounds {
  int begin, end, all_begin, all_end;
  __device__ Bounds(Range first, Range last)
      : begin(first.begin), end(last.end), all_begin(last.begin), all_end(first.end) {}
  __device__ bool meets(int from, int size) const { return from < end && from + size > begin; }
  __device__ bool cuts(int from, int size) const {
    return from < all_begin || from + size > all_end;
  }
};

// The tiles of `size` within bounds, rising. A part of several walks its share of them.
struct Walk {
  int next_tile = 0, stop = 0;

  __device__ Walk(const Bounds& bounds, int size, int part = 0, int parts = 1) {
    const int begin = bounds.begin / size, end = max(begin, (bounds.end + size - 1) / size);
    const int share = (end - begin + parts - 1) / parts;
    next_tile = begin + part * share;
    stop = min(end, next_tile + share);
  }
  __device__ Visit next() {
    if (next_tile >= stop) return {};
    return {next_tile++};
  }
};

// The band of attention, on rows and keys of one batch row.
struct Band {
  const int* cu = nullptr;  // [documents + 1] where rows hold packed documents; S = T then
  int documents = 1;
  int T = 0, S = 0;
  bool causal = true;
  int window = 0;

  // Tokens of the document that token i lies in.
  __device__ Range document(int i) const {
    const int n = document_at(cu, documents, i);
    return {cu[n], cu[n + 1]};
  }
  __device__ Range keys(int t) const {
    if (t >= T) return {};
    const Range in = cu ? document(t) : Range{0, S};
    const int i = t + S - T, stop = causal ? i + 1 : window > 0 ? i + window : in.end;
    return {window > 0 ? max(in.begin, i - window + 1) : in.begin, max(0, min(in.end, stop))};
  }
  __device__ Range queries(int j) const {
    if (j >= S) return {};
    const Range in = cu ? document(j) : Range{0, T};
    const int t = j - S + T;  // the row at this key's position
    return {max(in.begin, causal       ? t
                          : window > 0 ? t - window + 1
                                       : in.begin),
            min(in.end, window > 0 ? t + window : in.end)};
  }
  // Of `count` rows from t on, or keys from j on.
  __device__ Bounds bounds_of_rows(int t, int count) const {
    return Bounds(keys(t), keys(max(t, min(T, t + count) - 1)));
  }
  __device__ Bounds bounds_of_keys(int j, int count) const {
    return Bounds(queries(j), queries(max(j, min(S, j + count) - 1)));
  }
  template <int M, int N>
  __device__ Walk key_tiles(int, int, int tile, int part = 0, int parts = 1) const {
    return Walk(bounds_of_rows(tile * M, M), N, part, parts);
  }
  template <int M, int N>
  __device__ Walk query_tiles(int, int, int tile) const {
    return Walk(bounds_of_keys(tile * M, M), N);
  }
  __device__ bool sees(int, int, int, int) const { return true; }
  __device__ int sink(int h, int) const { return h; }  // which sink belongs to row t of head h
};

// --- A call's arguments --------------------------------------------------------------------------

// [B, T, H, width], the last dimension contiguous; strides in elements.
template <class E>
struct Heads {
  E* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
  int width = 0;
  __device__ E* at(int b, int t, int h) const { return data + b * batch + t * token + h * head; }
};

template <class E>
struct Call {
  Heads<const E> q, k, v;
  const float* sink = nullptr;
  int B = 0, T = 0, S = 0, H = 0, group = 1;  // head h reads key head h / group
  float scale = 1, softcap = 0;
};

// What flows back into the rows.
template <class E>
struct Incoming {
  Heads<const E> dout;
  const float* lse = nullptr;    // [B, H, T]
  const float* delta = nullptr;  // [B, H, T] dout.o - dlse
};

// The work of one block: a tile of rows (or keys) of one head. The last tile comes first, since a
// causal row's last queries see the most keys.
struct Unit {
  int tile, h, b;
  __device__ Unit(int64_t block, int tiles, int heads)
      : tile(tiles - 1 - static_cast<int>(block % tiles)),
        h(static_cast<int>(block / tiles % heads)),
        b(static_cast<int>(block / tiles / heads)) {}
};

// --- One warp's stripe of 16 rows ----------------------------------------------------------------

// f(half, column, x) for each element that the lane holds; half 0 is its row lane / 4, half 1 the
// row eight below.
template <int N, class F>
__device__ __forceinline__ void each_half(Acc<N>& x, F&& f) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(i / 2, tile::acc_col(j, i), x.x[j][i]);
  }
}

// q.k to scores.
template <int N>
__device__ __forceinline__ void score(Acc<N>& x, float scale, float softcap) {
  each_half(x, [&](int, int, float& s) { s *= scale; });
  if (softcap > 0) each_half(x, [&](int, int, float& s) { s = softcap * tanhf(s / softcap); });
}

// -infinity for the pairs that do not see each other. `range` is what each of the lane's two rows
// sees of columns col0...; sees(half, column) is asked as well where `fine`.
template <int N, class F>
__device__ __forceinline__ void hide(Acc<N>& x, bool cut, bool fine, const Range (&range)[2],
                                     int col0, F&& sees) {
  if (cut || fine) {
    each_half(x, [&](int half, int c, float& s) {
      if (col0 + c < range[half].begin || col0 + c >= range[half].end) s = -INFINITY;
    });
  }
  if (fine) {
    each_half(x, [&](int half, int c, float& s) {
      if (s != -INFINITY && !sees(half, col0 + c)) s = -INFINITY;
    });
  }
}

// --- What nobody sees may be anything ------------------------------------------------------------
//
// A product adds up all columns of a tile: where a weight is 0 since the pair does not see each
// other, and the other factor is NaN or infinite, the sum is NaN. No sum loses one on its way, so
// the loops look at their results alone, and do a tile whose results are not finite once more "with
// care": wherever not all pairs see each other, rows that hold such a number are made zeros before
// the product, and the pairs that do see them get NaN as their weight. So whoever sees none of them
// has the bits that zeros in their place give; and the loops cost what they cost without.

// Is one of the numbers NaN or infinite?
template <int N>
__device__ __forceinline__ bool is_broken(const Acc<N>& x) {
  float probe = 0.f;
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) probe = fmaf(x.x[j][i], 0.f, probe);
  }
  return probe != 0.f;
}

// Makes zeros of what is not finite in a tile of which row r lies at from + r * stride, and marks
// in `broken`, a bit a row, the rows that hold such a number; with `more` beside those that are
// marked. By one thread a row, in whole warps, which meet afterwards. Several groups of threads may
// do it to one tile, and products of its rows be under way: what they give for marked rows is
// replaced by the weights.
template <class E, int N, int D>
__device__ __forceinline__ void mend_rows(Smem<E, N, D> to, const E* from, int64_t stride, int rows,
                                          int width, int rank, bool more, uint32_t* broken) {
  if (rank >= (N + 31) / 32 * 32) return;
  bool found = false;
  if (rank < min(N, rows)) {
    const E* const row = from + rank * stride;
#pragma unroll 1
    for (int c = 0; c < width; ++c) {
      const float x = tile::to_float(row[c]);
      if (x - x == 0.f) continue;
      to.at(rank, c) = tile::from_float<E>(0.f);
      found = true;
    }
  }
  const uint32_t marks = __ballot_sync(~0u, found);
  if (rank % 32 == 0) broken[rank / 32] = more ? broken[rank / 32] | marks : marks;
}

// The weights of such a tile: 0 of pairs that do not see each other, NaN of those that see a marked
// one. sees() is long: a loop asks it, and leaves a bit for each column that the lane holds.
template <int N, class F>
__device__ __forceinline__ void mend_weights(Acc<N>& x, bool fine, const Range (&range)[2],
                                             int col0, const uint32_t* broken, F&& sees) {
  static_assert(N / 4 <= 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t seen = 0, marked = 0;
#pragma unroll 1
    for (int i = 0; i < N / 4; ++i) {
      const int c = tile::acc_col(i / 2, i % 2), col = col0 + c;
      if (col < range[half].begin || col >= range[half].end) continue;
      if (fine && !sees(half, col)) continue;
      seen |= 1u << i;
      marked |= (broken[c / 32] >> c % 32 & 1) << i;
    }
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      float& w = x.x[i / 2][2 * half + i % 2];
      if (!(seen >> i & 1))
        w = 0.f;
      else if (marked >> i & 1)
        w = NAN;
    }
  }
}

// The streaming softmax of a lane's two rows: running maximum and sum. Each lane sums the columns
// that it holds; the four lanes of a row meet in finish(). Scores are natural logarithms over
// `scale`.
struct Stream {
  float scale, most[2], sum[2];

  // A sink is one more logit, there before any key: m = sink, l = 1.
  __device__ Stream(float scale, float sink0, float sink1) : scale(scale), most{sink0, sink1} {
    const bool first = tile::lane_index() % 4 == 0;
    sum[0] = first && sink0 > -INFINITY ? 1.f : 0.f;
    sum[1] = first && sink1 > -INFINITY ? 1.f : 0.f;
  }

  // Takes the scores of a tile and leaves p in their place; returns by what all gathered so far
  // shrinks.
  template <int N>
  __device__ __forceinline__ tile::Rows add(Acc<N>& x) {
    const float unit = scale * tile::kLog2e;
    float high[2] = {-INFINITY, -INFINITY}, base[2];
    tile::Rows shrink;
    each_half(x, [&](int half, int, float& s) { high[half] = fmaxf(high[half], s); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float next = fmaxf(most[half], tile::quad_max(high[half]));
      base[half] = next == -INFINITY ? 0.f : next * unit;  // nothing seen so far
      shrink.x[half] = tile::ex2(fmaf(most[half], unit, -base[half]));
      most[half] = next;
      sum[half] *= shrink.x[half];
    }
    each_half(x, [&](int half, int, float& s) {
      s = tile::ex2(fmaf(s, unit, -base[half]));
      sum[half] += s;
    });
    return shrink;
  }

  // Divides by the sum; leaves lse, a natural logarithm, in `most`.
  template <int D>
  __device__ __forceinline__ void finish(Acc<D>& out) {
    tile::Rows factor;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float all = tile::quad_sum(sum[half]);
      factor.x[half] = all == 0 ? 0.f : 1.f / all;  // NaN stays
      most[half] = all == 0 ? -INFINITY : most[half] * scale + logf(all);
    }
    tile::scale_rows(out, factor);
  }
};

// --- The host's side -----------------------------------------------------------------------------

inline int ceil_div_int(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Itself where its last dimension is contiguous, else a copy.
inline Tensor with_rows(const Tensor& t) {
  return !t || t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous();
}

template <class E>
Heads<E> heads_of(const Tensor& t) {
  if (!t) return {};
  return {dptr<E>(t), t.stride(0), t.stride(1), t.stride(2), static_cast<int>(t.size(3))};
}

template <class E>
Call<E> call_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sink, double scale,
                double softcap) {
  const double factor = scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(q.size(3)));
  return {.q = heads_of<const E>(q),
          .k = heads_of<const E>(k),
          .v = heads_of<const E>(v),
          .sink = sink ? dptr<const float>(sink) : nullptr,
          .B = static_cast<int>(q.size(0)),
          .T = static_cast<int>(q.size(1)),
          .S = static_cast<int>(k.size(1)),
          .H = static_cast<int>(q.size(2)),
          .group = static_cast<int>(q.size(2) / k.size(2)),
          .scale = static_cast<float>(factor),
          .softcap = static_cast<float>(softcap)};
}

// cu_seqlens on the GPU, in memory sized by T alone; absent where it is.
inline Tensor documents_on(const Tensor& cu_seqlens, int64_t T, Device device) {
  if (!cu_seqlens) return {};
  const Tensor there = empty({T + 1}, Dtype::i32, device);
  if (!there.is_meta()) there.slice(0, 0, cu_seqlens.size(0)).copy_from(cu_seqlens.to(device));
  return there;
}

inline Band band_of(const Tensor& q, const Tensor& k, const Tensor& cu_seqlens,
                    const Tensor& cu_on_device, bool causal, int64_t window) {
  const int64_t T = q.size(1), S = k.size(1);
  return {.cu = cu_seqlens ? dptr<const int>(cu_on_device) : nullptr,
          .documents = cu_seqlens ? static_cast<int>(cu_seqlens.size(0) - 1) : 1,
          .T = static_cast<int>(T),
          .S = static_cast<int>(S),
          .causal = causal,
          .window = static_cast<int>(std::min(window, T + S))};
}

// Calls f.template operator()<D>() with the least D that heads of width K and V fit in, padded by
// zeros.
template <class F>
void for_head_size(int64_t K, int64_t V, F&& f) {
  const int64_t most = std::max(K, V);
  if (most <= 64) return f.template operator()<64>();
  if (most <= 128) return f.template operator()<128>();
  f.template operator()<256>();
}

inline void check_head_size(std::string_view name, const Tensor& q, const Tensor& v) {
  require(q.size(3) <= 256 && v.size(3) <= 256, name, ": heads of width K = ", q.size(3),
          ", V = ", v.size(3), "; on a GPU there are kernels up to 256");
  require(q.size(1) < (1 << 30), name, ": T = ", q.size(1), ", expected less than 2^30 on a GPU");
}

// Whether TMA reaches every row: strides and base in units of 16 bytes.
inline bool tma_reaches(const Tensor& t) {
  for (int d = 0; d < 3; ++d)
    if (t.size(d) > 1 && t.stride(d) % 8 != 0) return false;
  return t.stride(3) == 1 && t.numel() > 0 && reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0;
}
// Whether the loops of hopper.cuh take a call on `tensors`, those that are absent left out.
inline bool fits_hopper(double scale, double softcap, std::initializer_list<Tensor> tensors) {
  if (scale < 0 || softcap != 0 || cuda_arch() != 90) return false;
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor& t) {
    return !t || (t.dtype() == Dtype::bf16 && t.size(3) <= 128 && tma_reaches(t));
  });
}

// How hopper.cuh cuts: kOwn rows or keys a block, in kGroups warpgroups, and the tiles of
// keys of a sparse forward pass or, backward, of either side.
inline constexpr int kGroups = 2, kOwn = 64 * kGroups, kSparseKeys = 64;
inline constexpr int backward_tile(int D) { return D == 64 ? 128 : 64; }

// What those loops read of the rows backward: lse in powers of two and delta, [B, H, T] each, T
// rounded up to whole tiles. Where there is no row, or one that sees nothing, lse is +infinity and
// so its p 0.
struct PaddedRows {
  float* lse = nullptr;
  float* delta = nullptr;
  int stride = 0;
};
inline Tensor padded_rows(const Tensor& lse) {
  return empty({2, lse.size(0), lse.size(1), (lse.size(2) + kOwn - 1) / kOwn * kOwn}, Dtype::f32,
               lse.device());
}
inline PaddedRows padded_rows_of(const Tensor& t) {
  float* const data = dptr<float>(t);
  return {data, data + t.stride(0), static_cast<int>(t.size(3))};
}

// What a launch of those loops notes for itself and for the next one (hopper.cuh:
// Schedule). It finds zeros and leaves them used: two, and one for each tile of kOwn rows (or keys)
// of every head.
inline int64_t note_count(int64_t B, int64_t T, int64_t H) {
  return 2 + B * H * ((T + kOwn - 1) / kOwn);
}
// Memory for launches that own the rows of q, the keys of k: [B, T, H, any] each.
inline Tensor notes_of(std::initializer_list<Tensor> owned) {
  int64_t n = 0;
  for (const Tensor& x : owned) n += note_count(x.size(0), x.size(1), x.size(2));
  return empty({n}, Dtype::i32, owned.begin()->device());
}

}  // namespace weft::kernels::softmax
