// The kernels of linear forward, chunkwise: a block takes 64 columns of V of one head and walks its
// document chunk by chunk (`scan`). Each warp keeps 16 columns of the state, transposed, in
// registers; it is the left operand of S' q as it stands, and never goes through memory. Where
// there are few heads, a first pass makes the states at the starts of segments, and a block walks
// one segment. One token alone (a decode step) is one pass over the state (`step`).
#pragma once

#include "kernels/linear/states.cuh"

namespace weft::kernels::linear {

inline constexpr int kSlice = 64;     // columns of V of a block
inline constexpr int kThreads = 128;  // 16 columns for each warp

template <class Real>
struct Results {
  TokenRows<Real> o;
  float *final_state, *final_z;  // absent: not wanted
  float* denominator;            // [B, T, H]
  KeptStates<float> kept;        // at the starts of segments 1, 2, ..
  int segments = 0;              // 0: a block walks a document
};

template <class Real, int K>
struct ScanTiles {
  // Two where they fit: the next chunk is fetched while this one is worked on.
  static constexpr int kStages = K * sizeof(Real) <= 512 ? 2 : 1;
  Smem<Real, kTokens, K> q, k;
  Smem<Real, kTokens, kSlice> v;
  Smem<Real, kTokens, kTokens> p;
  SharedDecay<kTokens> decay;  // two
  float *z, *norm;

  __host__ __device__ explicit ScanTiles(Arena& arena) : q(arena.carve<Smem<Real, kTokens, K>>()) {
    for (int i = 1; i < kStages; ++i) arena.carve<Smem<Real, kTokens, K>>();
    k = arena.carve<Smem<Real, kTokens, K>>();
    for (int i = 1; i < kStages; ++i) arena.carve<Smem<Real, kTokens, K>>();
    v = arena.carve<Smem<Real, kTokens, kSlice>>();
    for (int i = 1; i < kStages; ++i) arena.carve<Smem<Real, kTokens, kSlice>>();
    p = arena.carve<Smem<Real, kTokens, kTokens>>();
    decay.data = arena.carve<float>(2 * SharedDecay<kTokens>::kFloats);
    z = arena.carve<float>(K);
    norm = arena.carve<float>(kTokens);
  }
};

template <class Real, int K>
__global__ void __launch_bounds__(kThreads)
    scan(const CudaProblem<Real> p, const Results<Real> y, const int slices) {
  using S = TransposedState<K>;
  constexpr int kStages = ScanTiles<Real, K>::kStages, kSub = kTokens / 16;
  constexpr bool kExact = std::is_same_v<Real, float>;
  Arena arena(tile::dynamic_memory());
  const ScanTiles<Real, K> w(arena);
  const int warp = tile::warp_index(), lane = tile::lane_index();
  const int slice = blockIdx.x % slices, h = blockIdx.x / slices % p.H;
  const int hk = h / p.group, v0 = slice * kSlice;
  int n = blockIdx.x / slices / p.H;
  int b = p.documents.row(n), start = p.documents.begin(n), stop = p.documents.end(n);
  if (y.segments > 0) {
    b = n / y.segments;
    start = n % y.segments * y.kept.every * kTokens;
    stop = min(p.documents.T, start + y.kept.every * kTokens);
    n = p.documents.of(b, start);
  }
  if (start == stop) return;  // an empty document behind the last token
  const bool decays = static_cast<bool>(p.gates);

  const auto fetch = [&](const GridPiece& piece, int stage) {
    load_rows_async<kThreads>(stage_of(w.q, stage), p.q.at(b, piece.begin, hk), p.q.by_token,
                              piece.size(), p.K);
    load_rows_async<kThreads>(stage_of(w.k, stage), p.k.at(b, piece.begin, hk), p.k.by_token,
                              piece.size(), p.K);
    load_rows_async<kThreads>(stage_of(w.v, stage), p.v.at(b, piece.begin, h) + v0, p.v.by_token,
                              piece.size(), p.V - v0);
    tile::async_commit();
  };
  // The piece that starts with token t, of document n or the next one.
  const auto piece_at = [&](int t) {
    const int document = t == p.documents.end(n) ? n + 1 : n;
    return p.documents.from(p.documents.begin(document), p.documents.end(document), t);
  };

  S s;
  const int columns = p.V - v0 - 16 * warp;  // of this warp that exist
  const auto load_state = [&](const float* states, const float* sums, int64_t place) {
    s.load(states ? states + place * p.K * p.V + v0 + 16 * warp : nullptr, p.K, p.V, columns);
    if (p.normalize)
      for (int d = threadIdx.x; d < K; d += kThreads)
        w.z[d] = sums && d < p.K ? sums[place * p.K + d] : 0.f;
  };
  if (start == p.documents.begin(n))
    load_state(p.initial_state, p.initial_z, int64_t{n} * p.H + h);
  else
    load_state(y.kept.states, y.kept.sums, y.kept.place(b, start / kTokens - 1, h, p.H));

  GridPiece piece = piece_at(start), next = piece;
  float2 gates = {0.f, 0.f};  // of the piece after
  const auto gates_at = [&](int t) {
    if (t >= stop) return make_float2(0.f, 0.f);
    return lane_gates(p.gates, b, t, piece_at(t).end, h);
  };
  if (warp == 0) {
    const float2 now = gates_at(start);
    w.decay.set(now.x, now.y);
    gates = gates_at(piece.end);
  }
  if constexpr (kStages > 1) fetch(piece, 0);

  for (int turn = 0;; ++turn) {
    const int stage = kStages > 1 ? turn & 1 : 0;
    const auto q = stage_of(w.q, stage), k = stage_of(w.k, stage);
    const auto values = stage_of(w.v, stage);
    const SharedDecay<kTokens> decay{w.decay.data + (turn & 1) * SharedDecay<kTokens>::kFloats};
    const bool more = piece.end < stop;
    if (more) next = piece_at(piece.end);
    if constexpr (kStages == 1) {
      __syncthreads();
      fetch(piece, 0);
    }
    tile::async_wait<0>();
    __syncthreads();
    if (more) {
      if constexpr (kStages > 1) fetch(next, 1 - stage);
      if (warp == 0) {
        const SharedDecay<kTokens> other{w.decay.data +
                                         (~turn & 1) * SharedDecay<kTokens>::kFloats};
        other.set(gates.x, gates.y);
        // Two pieces on, a document may have ended twice.
        const int t = next.end;
        gates = {0.f, 0.f};
        if (t < stop) {
          const int document = p.documents.of(b, t);
          gates = lane_gates(
              p.gates, b, t,
              p.documents.from(p.documents.begin(document), p.documents.end(document), t).end, h);
        }
      }
    }

    // P of rows 16 warp .. 16 warp + 15, up to the diagonal.
    {
      Acc<16> scores[kSub];
#pragma unroll
      for (int j = 0; j < kSub; ++j) fill(scores[j], 0.f);
#pragma unroll(sizeof(Real) == 2 ? K / 16 : 1)
      for (int d = 0; d < K; d += 16) {
        const auto left = tile::load_frag<Real, 16>(q, 16 * warp, d);
#pragma unroll
        for (int j = 0; j < kSub; ++j)
          if (j <= warp) mma_abt(scores[j], left, k, 16 * j, d);
      }
      float sums[2] = {0.f, 0.f};
#pragma unroll
      for (int j = 0; j < kSub; ++j) {
        if (!kExact && j > warp) break;  // those blocks are not read
        tile::each(scores[j], [&](int row, int col, float& x) {
          const int at = 16 * warp + row, from = 16 * j + col;
          x *= at >= from ? (decays ? p.scale * decay.between(at, from) : p.scale) : 0.f;
        });
        acc_to_smem(scores[j], w.p, 16 * warp, 16 * j);
        if (p.normalize) {
          const tile::Rows sum = row_sum(scores[j]);
          sums[0] += sum.x[0];
          sums[1] += sum.x[1];
        }
      }
      if (p.normalize) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 16 * warp + tile::acc_row(2 * i);
          float read = 0.f;  // q . z
          for (int d = lane % 4; d < K; d += 4) read += tile::to_float(q.at(at, d)) * w.z[d];
          sums[i] += p.scale * decay.from_start()[at] * tile::quad_sum(read) + p.eps;
          if (lane % 4 != 0) continue;
          w.norm[at] = 1.f / sums[i];
          if (y.denominator && slice == 0 && at < piece.size())
            y.denominator[(int64_t{b} * p.documents.T + piece.begin + at) * p.H + h] = sums[i];
        }
      }
    }
    __syncthreads();

    // O' = S' (scale e^G Q)' + V' P'
    Frag<Real, kTokens> left = tile::load_frag_t<Real, kTokens>(values, 0, 16 * warp);
    {
      Acc<kTokens> o;
      fill(o, 0.f);
#pragma unroll
      for (int block = 0; block < S::kBlocks; ++block)
        mma_abt(o, tile::to_frag<Real>(s.s[block]), q, 0, block * S::kWidth);
      scale_cols(o, tile::load_cols<kTokens>(decay.from_start()));
      scale(o, p.scale);
      if constexpr (kExact) {
        mma_abt(o, left, w.p, 0, 0);
      } else {
#pragma unroll
        for (int i = 0; i < kSub; ++i) {
#pragma unroll
          for (int j = 0; j <= i; ++j)
            mma_abt(outer_part(o, i), inner_part(left, j), w.p, 16 * i, 16 * j);
        }
      }
      if (p.normalize) scale_cols(o, tile::load_cols<kTokens>(w.norm));
      // Over this warp's columns of V, which no other warp reads.
      acc_to_smem_t(o, values, 0, 16 * warp);
    }
    __syncwarp();
    store_columns(values, 16 * warp, y.o.at(b, piece.begin, h) + v0 + 16 * warp, y.o.by_token,
                  piece.size(), columns);

    // S' = e^{G_C} S' + (e^{G_C - G} . V)' K
    if (more || (piece.last && y.final_state)) {
      const float total = decay.total();
      if (decays) scale_inner(left, decay.to_end());
#pragma unroll
      for (int block = 0; block < S::kBlocks; ++block) {
        Acc<S::kWidth> added;
        fill(added, 0.f);
        mma_ab(added, left, k, 0, block * S::kWidth);
        carry(s.s[block], total, added);
      }
      if (p.normalize)
        for (int d = threadIdx.x; d < K; d += kThreads) {
          float sum = total * w.z[d];
          for (int i = 0; i < kTokens; ++i) sum += decay.to_end()[i] * tile::to_float(k.at(i, d));
          w.z[d] = sum;
        }
    }
    if (piece.last) {
      const int64_t head = int64_t{n} * p.H + h;
      if (y.final_state)
        s.store(y.final_state + head * p.K * p.V + v0 + 16 * warp, p.K, p.V, columns);
      if (y.final_z && slice == 0)  // each thread's own
        for (int d = threadIdx.x; d < p.K; d += kThreads) y.final_z[head * p.K + d] = w.z[d];
      if (more) load_state(p.initial_state, p.initial_z, head + p.H);
      ++n;
    }
    if (!more) break;
    piece = next;
  }
}

// One token: lanes over columns of V, warps over channels.
inline constexpr int kStepThreads = 256, kStepWarps = kStepThreads / 32;

template <class Real>
__global__ void __launch_bounds__(kStepThreads)
    step(const CudaProblem<Real> p, const Results<Real> y, const int slices) {
  __shared__ float sums[kStepWarps][32];
  const int warp = tile::warp_index(), lane = tile::lane_index();
  const int e = blockIdx.x % slices * 32 + lane, h = blockIdx.x / slices % p.H;
  const int b = blockIdx.x / slices / p.H, hk = h / p.group;
  const Real *const q = p.q.at(b, 0, hk), *const k = p.k.at(b, 0, hk);
  const float decay = p.gates ? tile::ex2(tile::kLog2e * p.gates.at(b, 0, h)) : 1.f;
  const int64_t row = (int64_t{b} * p.H + h) * p.K;
  float norm = 1.f;
  if (p.normalize) {
    norm = 0.f;
    for (int d = threadIdx.x; d < p.K; d += kStepThreads) {
      const float z = (p.initial_z ? decay * p.initial_z[row + d] : 0.f) + tile::to_float(k[d]);
      norm += p.scale * tile::to_float(q[d]) * z;
      if (y.final_z && blockIdx.x % slices == 0) y.final_z[row + d] = z;
    }
    norm = tile::block_sum(norm) + p.eps;
    if (y.denominator && threadIdx.x == 0) y.denominator[int64_t{b} * p.H + h] = norm;
  }
  const float value = e < p.V ? tile::to_float(p.v.at(b, 0, h)[e]) : 0.f;
  float sum = 0.f;
#pragma unroll 4
  for (int d = warp; d < p.K; d += kStepWarps) {
    if (e >= p.V) break;
    const int64_t at = (row + d) * p.V + e;
    const float before = p.initial_state ? decay * p.initial_state[at] : 0.f;
    const float s = fmaf(tile::to_float(k[d]), value, before);
    sum = fmaf(p.scale * tile::to_float(q[d]), s, sum);
    if (y.final_state) y.final_state[at] = s;
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || e >= p.V) return;
#pragma unroll
  for (int i = 1; i < kStepWarps; ++i) sum += sums[i][lane];
  y.o.at(b, 0, h)[e] = tile::from_float<Real>(sum / norm);
}

// Chunks of a segment, and the number of segments of a row: 0 where the heads of all documents fill
// the machine by themselves.
inline constexpr int kSegment = 16;
inline int segment_count(const Inputs<Linear>& x, const Options<Linear>& o) {
  const int64_t T = x.q.size(1), H = x.v.size(2), slices = ceil_div(x.v.size(3), kSlice);
  if (x.q.size(0) * H * slices >= 64 || T < 2 * kSegment * kTokens || o.normalize) return 0;
  return static_cast<int>(ceil_div(T, kSegment * kTokens));
}

template <class Real>
__global__ void __launch_bounds__(kStateThreads)
    segment_states(const CudaProblem<Real> p, const KeptStates<float> kept) {
  walk_states<false, false>(p, StateGradient<Real>{}, kept, blockIdx.x);
}

template <class Real>
void launch_forward(const CudaProblem<Real>& p, const Results<Real>& y) {
  if (p.documents.T == 1) {
    const int slices = static_cast<int>(ceil_div(p.V, 32));
    launch(step<Real>, int64_t{p.B} * p.H * slices, kStepThreads, 0, p, y, slices);
    return;
  }
  if (y.segments > 0) {
    Arena size;
    StateTiles<Real>{size};
    launch(segment_states<Real>, state_blocks(p.documents.N, p.H, p.K, p.V), kStateThreads,
           size.used(), p, y.kept);
  }
  for_padded_width<Real>(p.K, [&]<int K>() {
    Arena size;
    ScanTiles<Real, K>{size};
    const int slices = static_cast<int>(ceil_div(p.V, kSlice));
    const int64_t walks = y.segments > 0 ? int64_t{p.B} * y.segments : p.documents.N;
    launch(scan<Real, K>, walks * p.H * slices, kThreads, size.used(), p, y, slices);
  });
}
extern template void launch_forward(const CudaProblem<float>&, const Results<float>&);

}  // namespace weft::kernels::linear
