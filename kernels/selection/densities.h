// What a router needs that reads the opening of a document and then chooses how many blocks of keys
// the rest of it sees. A pattern of n blocks is the own block of a query, up to the query itself,
// the first `first` of the document, and the nearest before its own, n in all; with 0 no key. No
// gradient; the options that count are block, cu_seqlens and position.
#pragma once

#include "kernels/selection/select_blocks.h"

namespace weft::kernels {

inline constexpr int64_t kMostDensities = 16;

// The patterns of a mixer, at most kMostDensities: blocks of each, and how many of them are first.
struct Densities {
  std::vector<int64_t> blocks;
  int64_t first = 0;
};

// i32 [B * T]: for each row (b, t) of [B, T], where S tokens of [B, S] are there:
//   0                       a token among the first `opening` of its document
//   1 + b * slots + slot    another; block_means with blocks of `opening` tokens has the mean of
//                           the document's opening at [b, slot], of `slots`
Tensor opening_owners(int64_t B, int64_t T, int64_t S, int64_t opening, int64_t slots,
                      const SelectBlocks& o, Device device);

// [B * T, patterns] of `dtype`: the keys that a query sees by each pattern, as a part of what a
// query sees of all of its past, the mean of all queries.
Tensor density_parts(int64_t B, int64_t T, const Densities& d, const SelectBlocks& o, Dtype dtype,
                     Device device);

// Writes `mask` u8 [B, heads, T, slots] for pattern[b * T + t], i32 [B * T], of each query.
void take_densities(const Tensor& mask, const Tensor& pattern, int64_t S, const Densities& d,
                    const SelectBlocks& o);

// The same on a GPU, where those above come to. In builds that have CUDA. The last argument but the
// options is written.
void cuda_opening_owners(int64_t T, int64_t S, int64_t opening, int64_t slots,
                         const SelectBlocks& o, const Tensor& index);
void cuda_density_parts(int64_t T, const Densities& d, const SelectBlocks& o, const Tensor& parts);
void cuda_take_densities(const Tensor& mask, const Tensor& pattern, int64_t S, const Densities& d,
                         const SelectBlocks& o);

// Does a pattern of n blocks have block c of a query whose own is block `own`?
constexpr bool density_sees(int64_t n, int64_t first, int64_t own, int64_t c) {
  const int64_t front = first < n ? first : n - 1;  // the own block is always one of them
  return n > 0 && c <= own && (own - c < n - front || c < front);
}

}  // namespace weft::kernels
