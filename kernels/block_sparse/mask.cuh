// Who sees whom by a mask of blocks, as the loops of softmax attention take it
// (softmax/softmax.cuh). A kernel turns the mask into lists: for each tile the tiles that it meets,
// rising, each marked where the band cuts it or where the mask has to be asked for single pairs.
// Forward and dq walk the lists of row tiles, dk and dv those of key tiles; so tiles that no row
// sees cost nothing.
#pragma once

#include "kernels/block_sparse/block_sparse.h"
#include "kernels/softmax/softmax.cuh"

namespace weft::kernels::block_sparse {

using namespace softmax;

struct BlockMask {
  const uint8_t* data = nullptr;  // [batches, heads, rows, columns]
  int heads = 1, rows = 0, columns = 0;
  int step = 0;        // lines of heads from one row of the batch to the next; 0: all share one
  unsigned share = 0;  // 2^31 / heads of queries that share one of the mask, rounded up
  int block = 64;
  bool by_token = false;  // rows are those of the queries, not of blocks

  // What the mask has for a head of queries: h / group, without a division in the loops.
  __device__ int head(int h) const { return static_cast<int>(__umulhi(2u * h, share)); }
  __device__ int row(int t, int i) const { return by_token ? t : i / block; }
  __device__ bool at(int line, int row, int column) const {
    return data[(int64_t{line} * rows + row) * columns + column] != 0;
  }
};

struct ListWalk {
  const int* entries;  // 16 * tile + 4 * fine + uses
  int left;
  __device__ Visit next() {
    if (left-- <= 0) return {};
    const int entry = *entries++;
    return {entry >> 4, entry & 3u, entry >> 2 & 3u};
  }
};

struct ListedMask {
  Band band;
  BlockMask mask;
  const int* lists = nullptr;           // [lines, tiles, others + 1]: a count, then entries
  int step = 0, tiles = 0, others = 0;  // step: that of the mask, but 0 where documents share a row

  __device__ Range keys(int t) const { return band.keys(t); }
  __device__ Range queries(int j) const { return band.queries(j); }
  __device__ Bounds bounds_of_rows(int t, int count) const { return band.bounds_of_rows(t, count); }
  __device__ Bounds bounds_of_keys(int j, int count) const { return band.bounds_of_keys(j, count); }
  __device__ int sink(int h, int) const { return h; }

  __device__ ListWalk walk(int b, int h, int tile) const {
    const int64_t line = b * step + mask.head(h);
    const int* const list = lists + (line * tiles + tile) * (others + 1);
    return {list + 1, *list};
  }
  template <int M, int N>
  __device__ ListWalk key_tiles(int b, int h, int tile, int = 0, int = 1) const {
    return walk(b, h, tile);
  }
  template <int M, int N>
  __device__ ListWalk query_tiles(int b, int h, int tile) const {
    return walk(b, h, tile);
  }
  // Both in one document, and within the band. Rows without documents have a path of their own,
  // whose line and row are known before the loops.
  __device__ bool sees(int b, int h, int t, int j) const {
    const int i = t + band.S - band.T, head = mask.head(h);
    if (band.cu == nullptr) return mask.at(b * mask.step + head, mask.row(t, i), j / mask.block);
    const int n = document_at(band.cu, band.documents, j), start = band.cu[n];
    return mask.at(n * mask.step + head, mask.row(t, i - start), (j - start) / mask.block);
  }
};

// The mask of one query that stands at *position, in memory for S keys.
struct OneRowMask {
  ListedMask all;
  const int* position = nullptr;

  __device__ ListedMask here() const {
    ListedMask mask = all;
    mask.band.S = *position + 1;
    return mask;
  }
  __device__ Range keys(int t) const { return here().keys(t); }
  __device__ Bounds bounds_of_rows(int t, int count) const {
    return here().bounds_of_rows(t, count);
  }
  __device__ int sink(int h, int) const { return h; }
  template <int M, int N>
  __device__ ListWalk key_tiles(int b, int h, int tile, int = 0, int = 1) const {
    return all.walk(b, h, tile);
  }
  __device__ bool sees(int b, int h, int t, int j) const { return here().sees(b, h, t, j); }
};

struct Overlap {
  bool any = false, all = true;
};

// How the mask looks on rows [t0, t1) and keys [j0, j1) of batch row b, block by block until that
// is known; keys of other documents do not count.
__device__ inline Overlap overlap(const Band& band, const BlockMask& mask, int b, int head,
                                  Range rows, Range keys) {
  Overlap found;
  const int shift = band.S - band.T;
  for (int i = rows.begin + shift, i_next = 0; i < rows.end + shift; i = i_next) {
    const int n = band.cu ? document_at(band.cu, band.documents, i) : b;
    const Range in = band.cu ? Range{band.cu[n], band.cu[n + 1]} : Range{0, band.S};
    const int row = mask.row(i - shift, i - in.begin);
    i_next = mask.by_token ? i + 1
                           : min(min(rows.end + shift, in.end), in.begin + (row + 1) * mask.block);
    for (int j = max(keys.begin, in.begin), j_next = 0; j < min(keys.end, in.end); j = j_next) {
      const int column = (j - in.begin) / mask.block;
      j_next = in.begin + (column + 1) * mask.block;
      const bool set = mask.at(n * mask.step + head, row, column);
      found.any |= set;
      found.all &= set;
    }
    if (found.any && !found.all) break;
  }
  return found;
}

// The lists of one side: a warp a tile. kRows: tiles of M rows meet tiles of N keys; else the
// reverse. The tile of M is that of `groups` warpgroups. `position`: as in OneRowMask, or null.
template <bool kRows>
__global__ void __launch_bounds__(128)
    list_tiles(Band band, const BlockMask mask, int M, int N, int groups, int64_t lines, int tiles,
               int others, int* lists, const int* position) {
  if (position) band.S = *position + 1;
  const int64_t line = blockIdx.x * int64_t{4} + tile::warp_index();  // of the lists
  if (line >= lines * tiles) return;
  const int own = static_cast<int>(line % tiles);
  const int head = static_cast<int>(line / tiles % mask.heads);
  const int b = static_cast<int>(line / tiles / mask.heads);
  const int size = kRows ? band.T : band.S, other_size = kRows ? band.S : band.T;
  const Bounds bounds = kRows ? band.bounds_of_rows(own * M, M) : band.bounds_of_keys(own * M, M);
  int* const list = lists + line * (others + 1);
  int count = 0;
  for (int n0 = bounds.begin / N; n0 * N < bounds.end; n0 += 32) {
    const int n = n0 + tile::lane_index();
    const Range other{n * N, min(other_size, (n + 1) * N)};
    unsigned uses = 0, fine = 0;
    for (int g = 0; g < groups; ++g) {
      const int first = own * M + g * (M / groups);
      const Range mine{first, min(size, first + M / groups)};
      if (other.begin >= bounds.end || mine.begin >= mine.end) continue;
      const Overlap found = kRows ? overlap(band, mask, b, head, mine, other)
                                  : overlap(band, mask, b, head, other, mine);
      uses |= static_cast<unsigned>(found.any) << g;
      fine |= static_cast<unsigned>(!found.all) << g;
    }
    const unsigned hits = __ballot_sync(~0u, uses != 0);
    const int before = __popc(hits & ((1u << tile::lane_index()) - 1));
    if (uses != 0) list[1 + count + before] = static_cast<int>(16u * n + 4 * fine + uses);
    count += __popc(hits);
  }
  if (tile::lane_index() == 0) list[0] = count;
}

// Tiles of M rows (or keys), of so many warpgroups, with lists of tiles of N of the other side.
struct ListShape {
  bool rows = true;
  int M = 64, N = 64, groups = 1;

  int tiles(int64_t T, int64_t S) const { return ceil_div_int(rows ? T : S, M); }
  int others(int64_t T, int64_t S) const { return ceil_div_int(rows ? S : T, N); }
};

// Rows of the batch with lists of their own: documents of one row share those of that row.
inline int64_t list_batches(const Tensor& mask, bool packed) { return packed ? 1 : mask.size(0); }

// Memory for lists of this shape, and of any with larger tiles. `mask`: [batches, heads, ...].
inline Tensor list_memory(const ListShape& shape, const Tensor& mask, bool packed, int64_t T,
                          int64_t S, Device device) {
  return empty(
      {list_batches(mask, packed) * mask.size(1), shape.tiles(T, S), shape.others(T, S) + 1},
      Dtype::i32, device);
}

inline ListedMask find_lists(const ListShape& shape, const Tensor& memory, const Band& band,
                             const BlockMask& mask, const int* position = nullptr) {
  const int tiles = shape.tiles(band.T, band.S), others = shape.others(band.T, band.S);
  int* const lists = dptr<int>(memory);
  launch(shape.rows ? list_tiles<true> : list_tiles<false>, (memory.size(0) * tiles + 3) / 4, 128,
         0, band, mask, shape.M, shape.N, shape.groups, memory.size(0), tiles, others, lists,
         position);
  return {.band = band,
          .mask = mask,
          .lists = lists,
          .step = band.cu ? 0 : mask.step,
          .tiles = tiles,
          .others = others};
}

// [batches, heads, rows, columns] on `device`.
inline Tensor placed_mask(const Tensor& mask, Device device) {
  return batched(mask).contiguous().to(device);
}

// `H`: heads of queries.
inline BlockMask mask_of(const Tensor& mask, const BlockSparse::Options& o, int64_t H) {
  const auto heads = static_cast<int>(mask.size(1));
  const int64_t group = H / heads;
  return {.data = dptr<const uint8_t>(mask),
          .heads = heads,
          .rows = static_cast<int>(mask.size(2)),
          .columns = static_cast<int>(mask.size(3)),
          .step = mask.size(0) == 1 ? 0 : heads,
          .share = static_cast<unsigned>(((int64_t{1} << 31) + group - 1) / group),
          .block = static_cast<int>(std::min<int64_t>(o.block, 1 << 30)),
          .by_token = o.by_token};
}

}  // namespace weft::kernels::block_sparse
