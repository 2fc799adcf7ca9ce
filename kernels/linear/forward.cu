// Linear attention forward on CUDA, chunkwise, in one pass: a block takes 64 columns of V of one head
// and walks its document chunk by chunk (`scan`). Each warp keeps 16 columns of the state, transposed,
// in registers; it is the left operand of S' q as it stands, and never goes through memory.
//   q, k  f32 or bf16; K and V up to 256. Accumulated and carried in f32. The same bits on every run.
// One token alone (a decode step) is one pass over the state (`step`).
#include "kernels/linear/problem.cuh"

namespace weft::kernels {
namespace {

using linear::CudaProblem;
using linear::kTokens;
using tile::Acc;
using tile::Arena;
using tile::Frag;
using tile::Smem;

constexpr int kSlice = 64;     // columns of V of a block
constexpr int kThreads = 128;  // 16 columns for each warp

template <class T>
struct Results {
  TokenRows<T> o;
  float *final_state, *final_z;  // absent: not wanted
  float* denominator;            // [B, T, H]
};

template <class T, int K>
struct ScanTiles {
  // Two where they fit: the next chunk is fetched while this one is worked on.
  static constexpr int kStages = K * sizeof(T) <= 512 ? 2 : 1;
  Smem<T, kTokens, K> q, k;
  Smem<T, kTokens, kSlice> v;
  Smem<T, kTokens, kTokens> p;
  Decay<kTokens> decay;  // two
  float *z, *norm;

  __host__ __device__ explicit ScanTiles(Arena& arena) : q(arena.carve<Smem<T, kTokens, K>>()) {
    for (int i = 1; i < kStages; ++i) arena.carve<Smem<T, kTokens, K>>();
    k = arena.carve<Smem<T, kTokens, K>>();
    for (int i = 1; i < kStages; ++i) arena.carve<Smem<T, kTokens, K>>();
    v = arena.carve<Smem<T, kTokens, kSlice>>();
    for (int i = 1; i < kStages; ++i) arena.carve<Smem<T, kTokens, kSlice>>();
    p = arena.carve<Smem<T, kTokens, kTokens>>();
    decay.data = arena.carve<float>(2 * Decay<kTokens>::kFloats);
    z = arena.carve<float>(K);
    norm = arena.carve<float>(kTokens);
  }
};

template <class T, int K>
__global__ void __launch_bounds__(kThreads)
    scan(const CudaProblem<T> p, const Results<T> y, const int slices) {
  using S = TransposedState<K>;
  constexpr int kStages = ScanTiles<T, K>::kStages, kSub = kTokens / 16;
  constexpr bool kExact = std::is_same_v<T, float>;
  Arena arena(tile::dynamic_memory());
  const ScanTiles<T, K> w(arena);
  const int warp = tile::warp_index(), lane = tile::lane_index();
  const int slice = blockIdx.x % slices, h = blockIdx.x / slices % p.H;
  const int n = blockIdx.x / slices / p.H, hk = h / p.group, v0 = slice * kSlice;
  const int b = p.documents.row(n), begin = p.documents.begin(n), end = p.documents.end(n);
  const bool decays = static_cast<bool>(p.gates);

  const auto fetch = [&](const Segment& piece, int stage) {
    load_tile_async(stage_of(w.q, stage), p.q.at(b, piece.begin, hk), p.q.by_token, piece.size(),
                    p.K);
    load_tile_async(stage_of(w.k, stage), p.k.at(b, piece.begin, hk), p.k.by_token, piece.size(),
                    p.K);
    load_tile_async(stage_of(w.v, stage), p.v.at(b, piece.begin, h) + v0, p.v.by_token,
                    piece.size(), p.V - v0);
    tile::async_commit();
  };
  const auto after = [&](const Segment& piece) { return p.documents.from(begin, end, piece.end); };

  S s;
  const int64_t state = (int64_t{n} * p.H + h) * p.K * p.V + v0 + 16 * warp;
  const int columns = p.V - v0 - 16 * warp;  // of this warp that exist
  s.load(p.initial_state ? p.initial_state + state : nullptr, p.K, p.V, columns);
  if (p.normalize)
    for (int d = threadIdx.x; d < K; d += kThreads)
      w.z[d] = p.initial_z && d < p.K ? p.initial_z[(int64_t{n} * p.H + h) * p.K + d] : 0.f;

  Segment piece = p.documents.from(begin, end, begin);
  float2 gates = {0.f, 0.f};  // of the piece after
  if (warp == 0) {
    const float2 now = lane_gates(p.gates, b, piece.begin, piece.end, h);
    w.decay.set(now.x, now.y);
    gates = lane_gates(p.gates, b, piece.end, after(piece).end, h);
  }
  if constexpr (kStages > 1) fetch(piece, 0);

  for (int turn = 0;; ++turn) {
    const int stage = kStages > 1 ? turn & 1 : 0;
    const auto q = stage_of(w.q, stage), k = stage_of(w.k, stage);
    const auto values = stage_of(w.v, stage);
    const Decay<kTokens> decay{w.decay.data + (turn & 1) * Decay<kTokens>::kFloats};
    const Segment next = after(piece);
    if constexpr (kStages == 1) {
      __syncthreads();
      fetch(piece, 0);
    }
    tile::async_wait<0>();
    __syncthreads();
    if (!piece.last) {
      if constexpr (kStages > 1) fetch(next, 1 - stage);
      if (warp == 0) {
        const Decay<kTokens> other{w.decay.data + (~turn & 1) * Decay<kTokens>::kFloats};
        other.set(gates.x, gates.y);
        if (!next.last) gates = lane_gates(p.gates, b, next.end, after(next).end, h);
      }
    }

    // P of rows 16 warp .. 16 warp + 15, up to the diagonal.
    {
      Acc<16> scores[kSub];
#pragma unroll
      for (int j = 0; j < kSub; ++j) fill(scores[j], 0.f);
#pragma unroll(sizeof(T) == 2 ? K / 16 : 1)
      for (int d = 0; d < K; d += 16) {
        const auto left = tile::load_frag<T, 16>(q, 16 * warp, d);
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
    Frag<T, kTokens> left = tile::load_frag_t<T, kTokens>(values, 0, 16 * warp);
    {
      Acc<kTokens> o;
      fill(o, 0.f);
#pragma unroll
      for (int block = 0; block < S::kBlocks; ++block)
        mma_abt(o, tile::to_frag<T>(s.s[block]), q, 0, block * S::kWidth);
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
    if (!piece.last || y.final_state) {
      const float total = decay.total();
      if (decays) scale_inner(left, decay.to_end());
#pragma unroll
      for (int block = 0; block < S::kBlocks; ++block) {
        scale(s.s[block], total);
        mma_ab(s.s[block], left, k, 0, block * S::kWidth);
      }
      if (p.normalize)
        for (int d = threadIdx.x; d < K; d += kThreads) {
          float sum = total * w.z[d];
          for (int i = 0; i < kTokens; ++i) sum += decay.to_end()[i] * tile::to_float(k.at(i, d));
          w.z[d] = sum;
        }
    }
    if (piece.last) break;
    piece = next;
  }

  if (y.final_state) s.store(y.final_state + state, p.K, p.V, columns);
  if (p.normalize) {
    if (y.final_z && slice == 0)
      for (int d = threadIdx.x; d < p.K; d += kThreads)
        y.final_z[(int64_t{n} * p.H + h) * p.K + d] = w.z[d];
  }
}

// One token: lanes over columns of V, warps over channels.
constexpr int kStepThreads = 256, kStepWarps = kStepThreads / 32;

template <class T>
__global__ void __launch_bounds__(kStepThreads)
    step(const CudaProblem<T> p, const Results<T> y, const int slices) {
  __shared__ float sums[kStepWarps][32];
  const int warp = tile::warp_index(), lane = tile::lane_index();
  const int e = blockIdx.x % slices * 32 + lane, h = blockIdx.x / slices % p.H;
  const int b = blockIdx.x / slices / p.H, hk = h / p.group;
  const T *const q = p.q.at(b, 0, hk), *const k = p.k.at(b, 0, hk);
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
  y.o.at(b, 0, h)[e] = tile::from_float<T>(sum / norm);
}

template <class T>
void launch_scan(const CudaProblem<T>& p, const Results<T>& y) {
  for_padded_width(p.K, [&]<int K>() {
    Arena size;
    ScanTiles<T, K>{size};
    const int slices = static_cast<int>(ceil_div(p.V, kSlice));
    const int64_t blocks = int64_t{p.documents.N} * p.H * slices;
    launch(scan<T, K>, blocks, kThreads, size.used(), p, y, slices);
  });
}

}  // namespace

void Linear::cuda_forward(const Inputs<Tensor>& inputs, const Options& o, Outputs<Tensor>& y,
                          Saved* saved) {
  const Inputs<Tensor> x = linear::cuda_inputs(inputs);
  const Tensor cu_seqlens = on_device(o.cu_seqlens, x.q.device());
  if (saved && o.normalize) {
    saved->o = y.o;
    saved->denominator = empty({x.v.size(0), x.v.size(1), x.v.size(2)}, Dtype::f32, x.q.device());
  }
  if (x.q.is_meta()) return;
  if (x.q.size(1) > 1 && linear::hopper_forward(x, o, y)) return;
  for_cuda_dtype(x.q.dtype(), [&]<class T>() {
    const CudaProblem<T> p(x, o, cu_seqlens);
    const Results<T> results{token_rows<T>(y.o), dptr<float>(y.final_state), dptr<float>(y.final_z),
                             dptr<float>(saved ? saved->denominator : Tensor())};
    if (p.documents.T == 1) {
      const int slices = static_cast<int>(ceil_div(p.V, 32));
      launch(step<T>, int64_t{p.B} * p.H * slices, kStepThreads, 0, p, results, slices);
    } else {
      launch_scan(p, results);
    }
  });
  check_launch("linear forward");
}

}  // namespace weft::kernels
