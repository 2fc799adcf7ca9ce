// Every verb of the tile layer by itself, on two warps, against plain loops on the CPU.
#include "kernels/tile/tile.cuh"

#include <array>
#include <cmath>
#include <set>

#include "tests/kernels/cuda_memory.cuh"

namespace weft::kernels::tile {
namespace {

using tests::has_gpu;
using tests::normal;
using tests::number;
using tests::OnGpu;
using tests::require_success;

constexpr int kWarps = 2, kRows = 16 * kWarps;

// --- Shared memory -----------------------------------------------------------------------------

// The bank group, of 16 bytes, in which the element lies.
template <class Tile>
int bank_group(int r, int c) {
  return Tile::offset(r, c) % 128 / 16;
}

template <class Tile>
void check_swizzle() {
  std::set<int> offsets;
  for (int r = 0; r < Tile::rows; ++r) {
    for (int c = 0; c < Tile::cols; ++c) offsets.insert(Tile::offset(r, c));
  }
  CHECK(offsets.size() == size_t{Tile::rows} * Tile::cols);
  CHECK(*offsets.rbegin() < Tile::bytes);
  for (int r = 0; r < Tile::rows; r += 8) {
    for (int c = 0; c < Tile::cols; c += Tile::unit_cols) {
      std::set<int> groups;  // what ldmatrix reads at a time
      for (int i = 0; i < 8; ++i) groups.insert(bank_group<Tile>(r + i, c));
      CHECK(groups.size() == 8);
    }
    for (int c = 0; c < Tile::cols; c += 8) {
      std::set<int> words;  // what the lanes of an accumulator touch at a time
      for (int i = 0; i < (sizeof(typename Tile::type) == 4 ? 4 : 8); ++i) {
        for (int j = 0; j < 8; j += 2) words.insert(Tile::offset(r + i, c + j) % 128);
      }
      CHECK(words.size() == (sizeof(typename Tile::type) == 4 ? 16 : 32));
    }
  }
}

TEST_CASE("tile layer: the swizzle moves every element once and leaves no bank conflict") {
  check_swizzle<Smem<bf16, 16, 16>>();
  check_swizzle<Smem<bf16, 16, 32>>();
  check_swizzle<Smem<bf16, 16, 64>>();
  check_swizzle<Smem<bf16, 16, 96>>();
  check_swizzle<Smem<bf16, 16, 128>>();
  check_swizzle<Smem<float, 16, 8>>();
  check_swizzle<Smem<float, 16, 16>>();
  check_swizzle<Smem<float, 16, 32>>();
  check_swizzle<Smem<float, 16, 128>>();
}

TEST_CASE("tile layer: an arena without memory counts as one with memory hands out") {
  Arena arena;
  arena.carve<Smem<bf16, 64, 64>>();
  CHECK(arena.used() == 8192);
  arena.carve<float>(3);
  CHECK(arena.used() == 8204);
  arena.carve<Smem<float, 8, 8>>();  // aligned to the 256 bytes of its pattern
  CHECK(arena.used() == 8448 + 256);
}

// --- Copies ------------------------------------------------------------------------------------

struct CopyShape {
  int shift, stride, rows, cols;  // global memory begins `shift` elements off an aligned address
};

template <class Real, class G, int R, int C, bool kAsync>
__global__ void copy_kernel(const G* from, CopyShape s, float* seen, G* to) {
  Arena arena(dynamic_memory());
  const auto tile = arena.carve<Smem<Real, R, C>>();
  if constexpr (kAsync) {
    load_tile_async(tile, from + s.shift, s.stride, s.rows, s.cols);
    async_commit();
    async_wait<0>();
  } else {
    load_tile(tile, from + s.shift, s.stride, s.rows, s.cols);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < R * C; i += blockDim.x) seen[i] = to_float(tile.at(i / C, i % C));
  store_tile(tile, to + s.shift, s.stride, s.rows, s.cols);
}

template <class Real, class G, int R, int C, bool kAsync>
void check_copy(const CopyShape& s) {
  INFO("shift " << s.shift << " stride " << s.stride << " rows " << s.rows << " cols " << s.cols
                << " bytes " << sizeof(Real) << " from " << sizeof(G) << " async " << kAsync);
  const size_t size = s.shift + size_t{R} * s.stride;
  const auto from = normal<G>(size, 1);
  const OnGpu<G> source(from), target(std::vector<G>(size, G(7.f)));
  const OnGpu<float> seen(std::vector<float>(R * C, NAN));
  copy_kernel<Real, G, R, C, kAsync>
      <<<1, 32 * kWarps, Smem<Real, R, C>::bytes>>>(source.data(), s, seen.data(), target.data());
  require_success("copy");
  const auto tile = seen.host();
  const auto to = target.host();
  int wrong = 0;
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < std::max(C, s.stride); ++c) {
      const bool valid = r < s.rows && c < s.cols;
      const size_t at = s.shift + size_t(r) * s.stride + c;
      const float value = valid ? number(Real(number(from[at]))) : 0.f;
      if (c < C) wrong += tile[r * C + c] != value;
      if (c < s.stride) wrong += number(to[at]) != (valid ? number(G(value)) : 7.f);
    }
  }
  CHECK(wrong == 0);
}

template <class Real, class G, int R, int C>
void check_copies() {
  for (const CopyShape s :
       {CopyShape{0, C, R, C}, CopyShape{0, C + 8, R - 3, C}, CopyShape{0, C, R, C - 3},
        CopyShape{1, C, R - 1, C}, CopyShape{0, C + 1, R, C - 1}, CopyShape{8, C + 16, 1, 5},
        CopyShape{0, C, 0, C}, CopyShape{0, C, -5, C}, CopyShape{0, 5, R, 5}}) {
    check_copy<Real, G, R, C, false>(s);
    check_copy<Real, G, R, C, true>(s);
  }
}

TEST_CASE("tile layer: copies take any stride and edge, and fill the rest with zeros", "[cuda]") {
  if (!has_gpu()) SKIP("no GPU");
  check_copies<float, float, 32, 64>();
  check_copies<float, float, 24, 8>();
  check_copies<bf16, bf16, 32, 128>();
  check_copies<bf16, bf16, 40, 32>();
  check_copies<bf16, bf16, 16, 96>();
  check_copies<bf16, float, 32, 64>();
  check_copies<float, bf16, 32, 64>();
}

// --- Registers -----------------------------------------------------------------------------------

// Where reductions and moves leave their results.
template <int N>
struct Seen {
  float plain[kRows * N], transposed[N * kRows], loaded[kRows * N], scaled[kRows * N];
  float row_sum[kRows], row_max[kRows], col_sum[kWarps][N];
};

template <class Real, int N>
__global__ void registers_kernel(const Real* x, int stride, int rows, int cols,
                                 const float* row_factor, const float* col_factor, Real* out,
                                 Seen<N>* seen) {
  Arena arena(dynamic_memory());
  const auto plain = arena.carve<Smem<Real, kRows, 64>>();
  const auto turned = arena.carve<Smem<Real, 64, kRows>>();
  const int row0 = 16 * warp_index();
  Acc<N> acc;
  load_acc(acc, x + row0 * stride, stride, rows - row0, cols);
  each(acc, [&](int r, int c, float& v) { seen->loaded[(row0 + r) * N + c] = v; });
  store_acc(acc, out + row0 * stride, stride, rows - row0, cols);

  const Rows sum = row_sum(acc), top = row_max(acc);
  const Cols<N> down = col_sum(acc);
  for (int i = 0; i < 4; i += 2) {
    seen->row_sum[row0 + acc_row(i)] = sum.x[i / 2];
    seen->row_max[row0 + acc_row(i)] = top.x[i / 2];
  }
  for (int j = 0; j < N / 8; ++j) {
    for (int i = 0; i < 2; ++i) seen->col_sum[warp_index()][acc_col(j, i)] = down.x[j][i];
  }

  acc_to_smem(acc, plain, row0, 8);
  acc_to_smem_t(acc, turned, 8, row0);
  Acc<N> scaled;
  acc_from_smem(scaled, plain, row0, 8);  // what this very warp wrote
  scale_rows(scaled, load_rows(row_factor + row0));
  scale_cols(scaled, load_cols<N>(col_factor));
  scale(scaled, 2.f);
  each(scaled, [&](int r, int c, float& v) { seen->scaled[(row0 + r) * N + c] = v; });
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * N; i += blockDim.x) {
    seen->plain[i] = to_float(plain.at(i / N, 8 + i % N));
    seen->transposed[i] = to_float(turned.at(8 + i / kRows, i % kRows));
  }
}

template <class Real, int N>
void check_registers(int stride, int rows, int cols) {
  INFO("N " << N << " stride " << stride << " rows " << rows << " cols " << cols);
  const auto x = normal<Real>(kRows * stride, 2);
  const auto row_factor = normal<float>(kRows, 3), col_factor = normal<float>(N, 4);
  const OnGpu<Real> gx(x), out(std::vector<Real>(x.size(), Real(7.f)));
  const OnGpu<float> grow(row_factor), gcol(col_factor);
  const OnGpu<Seen<N>> result(std::vector<Seen<N>>(1));
  registers_kernel<Real, N><<<1, 32 * kWarps, 2 * kRows * 64 * sizeof(Real)>>>(
      gx.data(), stride, rows, cols, grow.data(), gcol.data(), out.data(), result.data());
  require_success("registers");
  const auto seen_vector = result.host();
  const Seen<N>& seen = seen_vector[0];
  const auto stored = out.host();

  int wrong = 0;
  double down[kWarps][N] = {};
  for (int r = 0; r < kRows; ++r) {
    double sum = 0;
    float top = -INFINITY;
    for (int c = 0; c < N; ++c) {
      const bool valid = r < rows && c < cols;
      const float v = valid ? number(x[r * stride + c]) : 0.f;
      wrong += seen.loaded[r * N + c] != v;
      wrong += seen.plain[r * N + c] != v;
      wrong += seen.transposed[c * kRows + r] != v;
      const float scaled = v * row_factor[r] * col_factor[c] * 2.f;
      wrong += !(std::abs(seen.scaled[r * N + c] - scaled) <= 1e-6f * std::abs(scaled));
      sum += v;
      top = std::max(top, v);
      down[r / 16][c] += v;
    }
    for (int c = 0; c < stride; ++c) {
      const bool valid = r < rows && c < cols;
      wrong += number(stored[r * stride + c]) != (valid ? number(x[r * stride + c]) : 7.f);
    }
    wrong += !(std::abs(seen.row_sum[r] - sum) <= 1e-5);
    wrong += seen.row_max[r] != top;
  }
  for (int w = 0; w < kWarps; ++w) {
    for (int c = 0; c < N; ++c) wrong += !(std::abs(seen.col_sum[w][c] - down[w][c]) <= 1e-5);
  }
  CHECK(wrong == 0);
}

template <class Real>
void check_all_registers() {
  check_registers<Real, 8>(8, 32, 8);
  check_registers<Real, 24>(26, 19, 24);
  check_registers<Real, 40>(41, 32, 37);
  check_registers<Real, 48>(64, 5, 33);
  check_registers<Real, 16>(16, -3, 16);
}

TEST_CASE("tile layer: an accumulator keeps its places through every move and sum", "[cuda]") {
  if (!has_gpu()) SKIP("no GPU");
  check_all_registers<float>();
  check_all_registers<bf16>();
}

// --- Products ------------------------------------------------------------------------------------

enum class Form { frag_ab, frag_abt, turned_ab, chained_ab, tiles_ab, tiles_abt, tiles_atb };

// A lies 16 columns and B 8 rows and 16 columns into their tiles, so that offsets matter.
template <class Real, Form kForm, int N, int K>
struct Product {
  static constexpr bool kTurnedA = kForm == Form::turned_ab || kForm == Form::tiles_atb;
  static constexpr bool kTurnedB = kForm == Form::frag_abt || kForm == Form::tiles_abt;
  static constexpr int kTiledN = (N + 15) / 16 * 16;
  using A = std::conditional_t<kTurnedA, Smem<Real, 16 + K, kRows>, Smem<Real, kRows, 16 + K>>;
  using B = std::conditional_t<kTurnedB, Smem<Real, 8 + kTiledN, 16 + K>,
                               Smem<Real, 8 + K, 16 + kTiledN>>;
};

template <class Real, Form kForm, int N, int K>
__global__ void product_kernel(const Real* a_global, const Real* b_global, float* out) {
  using P = Product<Real, kForm, N, K>;
  Arena arena(dynamic_memory());
  const auto a = arena.carve<typename P::A>();
  const auto b = arena.carve<typename P::B>();
  load_tile(a, a_global, P::A::cols, P::A::rows, P::A::cols);
  load_tile(b, b_global, P::B::cols, P::B::rows, P::B::cols);
  __syncthreads();
  const int row0 = 16 * warp_index();
  Acc<N> acc;
  fill(acc, 1.f);
  if constexpr (kForm == Form::frag_ab) {
    mma_ab(acc, load_frag<Real, K>(a, row0, 16), b, 8, 16);
  } else if constexpr (kForm == Form::frag_abt) {
    mma_abt(acc, load_frag<Real, K>(a, row0, 16), b, 8, 16);
  } else if constexpr (kForm == Form::turned_ab) {
    mma_ab(acc, load_frag_t<Real, K>(a, 16, row0), b, 8, 16);
  } else if constexpr (kForm == Form::chained_ab) {
    Acc<K> left;
    acc_from_smem(left, a, row0, 16);
    mma_ab(acc, to_frag<Real>(left), b, 8, 16);
  } else if constexpr (kForm == Form::tiles_ab) {
    mma_ab<K>(acc, a, row0, 16, b, 8, 16);
  } else if constexpr (kForm == Form::tiles_abt) {
    mma_abt<K>(acc, a, row0, 16, b, 8, 16);
  } else {
    mma_atb<K>(acc, a, 16, row0, b, 8, 16);
  }
  store_acc(acc, out + row0 * N, N, 16, N);
}

template <class Real, Form kForm, int N, int K>
void check_product() {
  using P = Product<Real, kForm, N, K>;
  INFO("form " << static_cast<int>(kForm) << " N " << N << " K " << K << " bytes " << sizeof(Real));
  const auto a = normal<Real>(P::A::rows * P::A::cols, 5),
             b = normal<Real>(P::B::rows * P::B::cols, 6);
  const OnGpu<Real> ga(a), gb(b);
  const OnGpu<float> out(std::vector<float>(kRows * N, NAN));
  constexpr int kBytes = P::A::bytes + P::B::bytes + 2048;
  cudaFuncSetAttribute(product_kernel<Real, kForm, N, K>,
                       cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  product_kernel<Real, kForm, N, K><<<1, 32 * kWarps, kBytes>>>(ga.data(), gb.data(), out.data());
  require_success("product");
  const auto y = out.host();
  double error = 0, norm = 0;
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < N; ++j) {
      double sum = 1;
      for (int k = 0; k < K; ++k) {
        const int ar = P::kTurnedA ? 16 + k : i, ac = P::kTurnedA ? i : 16 + k;
        const int br = 8 + (P::kTurnedB ? j : k), bc = 16 + (P::kTurnedB ? k : j);
        sum += double(number(a[ar * P::A::cols + ac])) * number(b[br * P::B::cols + bc]);
      }
      error += (y[i * N + j] - sum) * (y[i * N + j] - sum);
      norm += sum * sum;
    }
  }
  CHECK(std::sqrt(error / norm) < 1e-6);
}

template <class Real, Form kForm>
void check_products() {
  check_product<Real, kForm, 8, 16>();
  check_product<Real, kForm, 24, 48>();
  check_product<Real, kForm, 64, 128>();
}

template <class Real>
void check_all_products() {
  check_products<Real, Form::frag_ab>();
  check_products<Real, Form::frag_abt>();
  check_products<Real, Form::turned_ab>();
  check_products<Real, Form::chained_ab>();
  check_products<Real, Form::tiles_ab>();
  check_products<Real, Form::tiles_abt>();
  check_products<Real, Form::tiles_atb>();
}

TEST_CASE("tile layer: products of every form are sums of products", "[cuda]") {
  if (!has_gpu()) SKIP("no GPU");
  check_all_products<float>();
  check_all_products<bf16>();
}

// --- Numbers and reductions ----------------------------------------------------------------------

__global__ void numbers_kernel(const float* x, float* out) {
  const int t = threadIdx.x, n = blockDim.x;
  out[t] = ex2(x[t]);
  out[n + t] = lg2(fabsf(x[t]));
  out[2 * n + t] = sigmoid(8 * x[t]);
  out[3 * n + t] = softplus(8 * x[t]);
  out[4 * n + t] = warp_prefix_sum(x[t]);
  out[5 * n + t] = block_sum(x[t]);
  out[6 * n + t] = block_max(x[t]);
  out[7 * n + t] = warp_sum(x[t]);
}

TEST_CASE("tile layer: functions and reductions agree with the CPU's", "[cuda]") {
  if (!has_gpu()) SKIP("no GPU");
  constexpr int n = 96;
  const auto x = normal<float>(n, 9);
  const OnGpu<float> gx(x), out(std::vector<float>(8 * n, NAN));
  numbers_kernel<<<1, n>>>(gx.data(), out.data());
  require_success("numbers");
  const auto y = out.host();
  double all = 0, of_warp[3] = {}, top = -1e9;
  for (int t = 0; t < n; ++t) {
    of_warp[t / 32] += x[t];
    all += x[t];
    top = std::max<double>(top, x[t]);
  }
  double before = 0;
  for (int t = 0; t < n; ++t) {
    before = (t % 32 == 0 ? 0 : before) + x[t];
    INFO("x " << x[t]);
    CHECK(y[t] == Approx(std::exp2(double(x[t]))).epsilon(1e-6));
    CHECK(y[n + t] == Approx(std::log2(std::abs(double(x[t])))).epsilon(1e-6).margin(1e-6));
    CHECK(y[2 * n + t] == Approx(1 / (1 + std::exp(-8. * x[t]))).epsilon(1e-5));
    CHECK(y[3 * n + t] == Approx(std::log1p(std::exp(8. * x[t]))).epsilon(1e-5));
    CHECK(y[4 * n + t] == Approx(before).margin(1e-5));
    CHECK(y[5 * n + t] == Approx(all).margin(1e-5));
    CHECK(y[6 * n + t] == Approx(top));
    CHECK(y[7 * n + t] == Approx(of_warp[t / 32]).margin(1e-5));
  }
}

}  // namespace
}  // namespace weft::kernels::tile
