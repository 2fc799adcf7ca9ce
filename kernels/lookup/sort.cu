// A radix sort, 8 bits of the key a pass, the lowest first. A pass counts the digits of each tile
// of keys, then every tile adds up the counts that stand before it and places its own. Within a
// tile, warps hold neighbouring keys and lanes find their equals by match: the order is that of
// positions.
#include "kernels/lookup/sort.cuh"

#include <bit>

namespace weft::kernels {
namespace {

constexpr int kDigits = 256, kThreads = 256, kWarps = kThreads / 32;
constexpr int kRounds = 4;  // keys a thread
constexpr int kTile = kThreads * kRounds;

// The keys of a warp are neighbours; in round i a lane has number base + 32 i + lane.
__device__ __forceinline__ int64_t warp_base() {
  return static_cast<int64_t>(blockIdx.x) * kTile + threadIdx.x / 32 * (32 * kRounds);
}

__global__ void __launch_bounds__(kThreads)
    count_digits(const int32_t* keys, int64_t n, int shift, int32_t* counts) {
  __shared__ int32_t tile[kDigits];
  tile[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kTile + i * kThreads + threadIdx.x;
    if (at < n) atomicAdd(&tile[keys[at] >> shift & (kDigits - 1)], 1);
  }
  __syncthreads();
  counts[blockIdx.x * kDigits + threadIdx.x] = tile[threadIdx.x];
}

// Exclusive prefix sum over the block's 256 threads.
__device__ int32_t prefix(int32_t x) {
  __shared__ int32_t warps[kWarps];
  const int lane = threadIdx.x % 32;
  int32_t sum = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int32_t before = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += before;
  }
  if (lane == 31) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  int32_t base = 0;
  for (int w = 0; w < static_cast<int>(threadIdx.x) / 32; ++w) base += warps[w];
  return base + sum - x;
}

// positions == null: the positions are 0 .. n - 1.
__global__ void __launch_bounds__(kThreads)
    place_digits(const int32_t* keys, const int32_t* positions, int64_t n, int shift,
                 const int32_t* counts, int32_t* keys_out, int32_t* positions_out) {
  __shared__ int32_t next[kWarps][kDigits];  // where a warp puts its next key of a digit
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) next[w][threadIdx.x] = 0;
  __syncthreads();

  int32_t key[kRounds], position[kRounds], rank[kRounds];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int64_t at = warp_base() + i * 32 + lane;
    key[i] = at < n ? keys[at] : 0;
    position[i] = at >= n ? 0 : positions ? positions[at] : static_cast<int32_t>(at);
  }
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int64_t at = warp_base() + i * 32 + lane;
    const int digit = at < n ? key[i] >> shift & (kDigits - 1) : -1;
    const unsigned equals = __match_any_sync(~0u, digit);
    const int before = __popc(equals & ((1u << lane) - 1));
    rank[i] = digit < 0 ? 0 : next[warp][digit] + before;
    __syncwarp();
    if (digit >= 0 && before == 0) next[warp][digit] += __popc(equals);
    __syncwarp();
  }

  // This thread's digit: keys of it in the tiles before, and of smaller digits anywhere.
  int32_t before = 0, all = 0;
#pragma unroll 8
  for (unsigned tile = 0; tile < gridDim.x; ++tile) {
    const int32_t count = counts[tile * kDigits + threadIdx.x];
    before += tile < blockIdx.x ? count : 0;
    all += count;
  }
  int32_t at = prefix(all) + before;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const int32_t count = next[w][threadIdx.x];
    next[w][threadIdx.x] = at;
    at += count;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    if (warp_base() + i * 32 + lane >= n) continue;
    const int32_t to = next[warp][key[i] >> shift & (kDigits - 1)] + rank[i];
    keys_out[to] = key[i];
    positions_out[to] = position[i];
  }
}

template <class Index>
__global__ void find_starts(const int32_t* keys, int64_t n, int64_t limit, Index* starts) {
  const int64_t key = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (key > limit) return;
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  starts[key] = static_cast<Index>(low);
}

}  // namespace

SortByKey::SortByKey(int64_t n, int64_t limit, Device device) : n_(n), device_(device) {
  const int bits = std::bit_width(static_cast<uint64_t>(std::max<int64_t>(1, limit - 1)));
  passes_ = (bits + 7) / 8;
  for (int i = 0; i < 2; ++i) {
    keys_[i] = empty({n}, Dtype::i32, device);
    positions_[i] = empty({n}, Dtype::i32, device);
  }
  counts_ = empty({ceil_div(n, kTile), kDigits}, Dtype::i32, device);
}

void SortByKey::run(const int32_t* keys) const {
  if (n_ == 0) return;
  const auto tiles = static_cast<unsigned>(ceil_div(n_, kTile));
  const cudaStream_t stream = cuda_stream(device_);
  auto* const counts = dptr<int32_t>(counts_);
  for (int pass = 0; pass < passes_; ++pass) {
    const int32_t* const from = pass == 0 ? keys : dptr<int32_t>(keys_[pass % 2]);
    const int32_t* const positions = pass == 0 ? nullptr : dptr<int32_t>(positions_[pass % 2]);
    count_digits<<<tiles, kThreads, 0, stream>>>(from, n_, pass * 8, counts);
    place_digits<<<tiles, kThreads, 0, stream>>>(from, positions, n_, pass * 8, counts,
                                                 dptr<int32_t>(keys_[(pass + 1) % 2]),
                                                 dptr<int32_t>(positions_[(pass + 1) % 2]));
  }
  check_launch("sort");
}

template <class Index>
void starts_of(const int32_t* keys, int64_t n, int64_t limit, Index* starts, Device device) {
  find_starts<<<static_cast<unsigned>(ceil_div(limit + 1, 256)), 256, 0, cuda_stream(device)>>>(
      keys, n, limit, starts);
  check_launch("starts");
}
template void starts_of<int32_t>(const int32_t*, int64_t, int64_t, int32_t*, Device);
template void starts_of<int64_t>(const int32_t*, int64_t, int64_t, int64_t*, Device);

}  // namespace weft::kernels
