// Many small tensors are copied by one launch, for a launch costs more than they do.
#include <algorithm>

#include "core/cuda.cuh"
#include "kernels/generation/cache.h"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kBlocks = 16;  // blocks a tensor
constexpr size_t kTensors = 64;              // of one launch

// One row of `bytes` bytes, 4 or 2 at a time.
template <class Word>
__global__ void put(char* ring, const char* row, int64_t bytes, int slots, const int* position) {
  auto* const to = reinterpret_cast<Word*>(ring + *position % slots * bytes);
  const auto* const from = reinterpret_cast<const Word*>(row);
  const int64_t n = bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n;
       i += gridDim.x * int64_t{kThreads})
    to[i] = from[i];
}

struct Move {
  char* to;
  const char* from;
  int64_t bytes;
};
struct Moves {
  Move list[kTensors];
};

// Grid: (kBlocks, tensors).
__global__ void __launch_bounds__(kThreads) copy(const Moves moves) {
  const Move m = moves.list[blockIdx.y];
  const int64_t first = blockIdx.x * int64_t{kThreads} + threadIdx.x, step = kBlocks * kThreads;
  const bool wide =
      (reinterpret_cast<uintptr_t>(m.to) | reinterpret_cast<uintptr_t>(m.from)) % 16 == 0;
  const int64_t units = wide ? m.bytes / 16 : 0;
  for (int64_t i = first; i < units; i += step)
    reinterpret_cast<uint4*>(m.to)[i] = reinterpret_cast<const uint4*>(m.from)[i];
  for (int64_t i = 16 * units + first; i < m.bytes; i += step) m.to[i] = m.from[i];
}

int64_t bytes_of(const Tensor& t) { return t.numel() * size_of(t.dtype()); }

}  // namespace

void cuda_put_row(const Tensor& ring, const Tensor& row, const Tensor& position) {
  const int64_t bytes = bytes_of(row);
  if (bytes == 0) return;
  const auto launch = [&](auto kernel, int64_t words) {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(64, ceil_div(words, kThreads)));
    kernel<<<blocks, kThreads, 0, cuda_stream(ring.device())>>>(
        static_cast<char*>(ring.raw()), static_cast<const char*>(row.raw()), bytes,
        static_cast<int>(ring.size(1)), dptr<const int>(position));
  };
  if (bytes % 4 == 0)
    launch(put<uint32_t>, bytes / 4);
  else
    launch(put<uint16_t>, bytes / 2);
  check_launch("put_row");
}

void cuda_copy_all(const std::vector<Copy>& list) {
  for (size_t first = 0; first < list.size(); first += kTensors) {
    const size_t n = std::min(kTensors, list.size() - first);
    Moves moves{};
    for (size_t i = 0; i < n; ++i) {
      const Copy& c = list[first + i];
      moves.list[i] = {static_cast<char*>(c.to.raw()), static_cast<const char*>(c.from.raw()),
                       bytes_of(c.to)};
    }
    const dim3 grid(kBlocks, static_cast<unsigned>(n));
    copy<<<grid, kThreads, 0, cuda_stream(list[0].to.device())>>>(moves);
  }
  check_launch("copy_all");
}

}  // namespace weft::kernels
