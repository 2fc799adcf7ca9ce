// Who sees whom by a mask of blocks, as the loops of softmax attention take it (common/softmax.cuh).
// A kernel turns the mask into lists: for each tile the tiles that it meets, rising, each marked where
// the band cuts it or where the mask has to be asked for single pairs. Forward and dq walk the lists of
// row tiles, dk and dv those of key tiles; so tiles that no row sees cost nothing.
#pragma once

#include "kernels/block_sparse/block_sparse.h"
#include "kernels/common/softmax.cuh"

namespace weft::kernels::softmax {

struct BlockMask {
  const uint8_t* data = nullptr;  // [heads, rows, columns]
  int heads = 1, rows = 0, columns = 0;
  int block = 64;
  __device__ bool at(int head, int row, int column) const {
    return data[(int64_t{head} * rows + row) * columns + column] != 0;
  }
};

struct ListWalk {
  const int* entries;  // 4 * tile + 2 * cut + fine
  int left;
  __device__ Visit next() {
    if (left-- <= 0) return {};
    const int entry = *entries++;
    return {entry >> 2, (entry & 2) != 0, (entry & 1) != 0};
  }
};

struct BlockSight {
  Band band;
  BlockMask mask;
  const int* lists = nullptr;  // [heads of the mask, tiles, others + 1]: a count, then entries
  int tiles = 0, others = 0;

  __device__ Range keys(int t) const { return band.keys(t); }
  __device__ Range queries(int j) const { return band.queries(j); }
  __device__ int head(int h) const { return mask.heads == 1 ? 0 : h; }
  __device__ int sink(int h, int) const { return h; }

  __device__ ListWalk walk(int h, int tile) const {
    const int* const list = lists + (int64_t{head(h)} * tiles + tile) * (others + 1);
    return {list + 1, *list};
  }
  template <int M, int N>
  __device__ ListWalk key_tiles(int h, int tile, int = 0, int = 1) const {
    return walk(h, tile);
  }
  template <int M, int N>
  __device__ ListWalk query_tiles(int h, int tile) const {
    return walk(h, tile);
  }
  // Both in one document, and within the band.
  __device__ bool sees(int h, int t, int j) const {
    const int i = t + band.S - band.T, start = band.cu ? band.document(j).begin : 0;
    return mask.at(head(h), (i - start) / mask.block, (j - start) / mask.block);
  }
};

struct Overlap {
  bool any = false, all = true;
};

// How the mask looks on rows [t0, t1) and keys [j0, j1), block by block; keys of other documents do not
// count.
__device__ inline Overlap overlap(const Band& band, const BlockMask& mask, int head, Range rows,
                                  Range keys) {
  Overlap found;
  const int shift = band.S - band.T;
  for (int i = rows.begin + shift, i_next = 0; i < rows.end + shift; i = i_next) {
    const Range in = band.cu ? band.document(i) : Range{0, band.S};
    const int row = (i - in.begin) / mask.block;
    i_next = min(min(rows.end + shift, in.end), in.begin + (row + 1) * mask.block);
    for (int j = max(keys.begin, in.begin), j_next = 0; j < min(keys.end, in.end); j = j_next) {
      const int column = (j - in.begin) / mask.block;
      j_next = in.begin + (column + 1) * mask.block;
      const bool set = mask.at(head, row, column);
      found.any |= set;
      found.all &= set;
    }
  }
  return found;
}

// The lists of one side: a warp a tile. kRows: tiles of M rows meet tiles of N keys; else the reverse.
template <bool kRows>
__global__ void __launch_bounds__(128) list_tiles(const Band band, const BlockMask mask, int M,
                                                  int N, int tiles, int others, int* lists) {
  const int64_t line = blockIdx.x * int64_t{4} + tile::warp_index();  // of [heads, tiles]
  if (line >= int64_t{mask.heads} * tiles) return;
  const int own = static_cast<int>(line % tiles), head = static_cast<int>(line / tiles);
  const int size = kRows ? band.T : band.S, other_size = kRows ? band.S : band.T;
  const Range mine{own * M, min(size, (own + 1) * M)};
  const Range first = kRows ? band.keys(mine.begin) : band.queries(mine.begin);
  const Range last = kRows ? band.keys(mine.end - 1) : band.queries(mine.end - 1);
  int* const list = lists + line * (others + 1);
  int count = 0;
  for (int n0 = first.begin / N; n0 * N < last.end; n0 += 32) {
    const int n = n0 + tile::lane_index();
    const Range other{n * N, min(other_size, (n + 1) * N)};
    Overlap found;
    if (other.begin < last.end)
      found =
          kRows ? overlap(band, mask, head, mine, other) : overlap(band, mask, head, other, mine);
    const bool cut = other.begin < last.begin || (n + 1) * N > first.end;
    const unsigned hits = __ballot_sync(~0u, found.any);
    const int before = __popc(hits & ((1u << tile::lane_index()) - 1));
    if (found.any) list[1 + count + before] = 4 * n + 2 * cut + !found.all;
    count += __popc(hits);
  }
  if (tile::lane_index() == 0) list[0] = count;
}

// The mask and the lists in GPU memory. Allocates, by shapes alone.
class BlockLists {
 public:
  enum Side { rows, keys };
  // Tiles of M of one side meet tiles of N of the other.
  BlockLists(Side side, const Tensor& mask, int64_t T, int64_t S, int M, int N, Device device)
      : side_(side),
        M_(M),
        N_(N),
        tiles_(ceil_div_int(side == rows ? T : S, M)),
        others_(ceil_div_int(side == rows ? S : T, N)),
        lists_(empty({mask.size(0), tiles_, others_ + 1}, Dtype::i32, device)) {}

  BlockSight find(const Band& band, const BlockMask& mask) const {
    const int64_t lines = int64_t{mask.heads} * tiles_;
    int* const lists = dptr<int>(lists_);
    launch(side_ == rows ? list_tiles<true> : list_tiles<false>, (lines + 3) / 4, 128, 0, band,
           mask, M_, N_, tiles_, others_, lists);
    return {.band = band, .mask = mask, .lists = lists, .tiles = tiles_, .others = others_};
  }

 private:
  Side side_;
  int M_, N_, tiles_, others_;
  Tensor lists_;
};

inline BlockMask mask_of(const Tensor& mask, int64_t block) {
  return {.data = dptr<const uint8_t>(mask),
          .heads = static_cast<int>(mask.size(0)),
          .rows = static_cast<int>(mask.size(1)),
          .columns = static_cast<int>(mask.size(2)),
          .block = static_cast<int>(std::min<int64_t>(block, 1 << 30))};
}

}  // namespace weft::kernels::softmax
