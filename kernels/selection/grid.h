// How the tokens of rows lie in blocks, for the CPU and for kernels.
//
// Blocks are counted from the start of the sequence or document. Of a document's blocks only the
// last may be incomplete, and no two complete blocks begin within `block` tokens. So a row of S
// keys has ceil(S / block) slots, and the complete block that begins at token f has slot f / block,
// however many documents there are; the blocks of a document have neighbouring slots. A slot in
// which no complete block begins is empty.
#pragma once

#include <cstdint>

namespace weft::kernels::selection {

struct BlockGrid {
  int64_t T = 0, S = 0, block = 64;  // row t of q stands at position S - T + t
  const int32_t* cu = nullptr;       // [documents + 1] where rows hold packed documents; S = T
  int64_t documents = 1;
  const int32_t* position = nullptr;  // of the only query, where keys are a cache that fills

  constexpr int64_t slots() const { return (S + block - 1) / block; }
  constexpr int64_t held() const { return position != nullptr ? *position + int64_t{1} : S; }

  struct Span {
    int64_t begin, end;
  };
  // Tokens of the document of token i.
  constexpr Span document(int64_t i) const {
    if (cu == nullptr) return {0, held()};
    int64_t low = 0, high = documents;  // cu[low] <= i < cu[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (cu[middle] <= i ? low : high) = middle;
    }
    return {cu[low], cu[low + 1]};
  }

  // A query: the slot of its document's first block, and the number of its own block. All blocks
  // with lower numbers are complete.
  struct Place {
    int64_t slot, index;
  };
  constexpr Place place(int64_t t) const {
    const int64_t at = position != nullptr ? *position : t + S - T;
    const int64_t start = cu == nullptr ? 0 : document(at).begin;
    return {start / block, (at - start) / block};
  }

  // The first token of the block of query t, counted in q: less than 0 where it came before q.
  constexpr int64_t lead(int64_t t) const {
    const int64_t at = position != nullptr ? *position : t + S - T;
    const int64_t start = cu == nullptr ? 0 : document(at).begin;
    return t - (at - start) % block;
  }
  // Keys that query t sees of the last `blocks` blocks, the own one among them.
  constexpr int64_t keys_of(int64_t t, int64_t blocks) const {
    const int64_t at = position != nullptr ? *position : t + S - T;
    const int64_t i = at - (cu == nullptr ? 0 : document(at).begin);
    const int64_t before = i / block < blocks - 1 ? i / block : blocks - 1;
    return before * block + i % block + 1;
  }

  // The first token of the complete block with this slot, or -1. It holds token (slot + 1) * block
  // - 1, whose document is thus its own.
  constexpr int64_t first_token(int64_t slot) const {
    const int64_t inside = (slot + 1) * block - 1;
    if (inside >= held()) return -1;
    const Span in = document(inside);
    const int64_t first = in.begin + (slot - in.begin / block) * block;
    return first + block <= in.end ? first : -1;
  }
  // Is the complete block with this slot in query t's document, and ends with it or before it?
  constexpr bool is_past(int64_t t, int64_t slot) const {
    const int64_t at = position != nullptr ? *position : t + S - T, first = first_token(slot);
    return first >= 0 && first + block <= at + 1 && first >= document(at).begin;
  }
  // The slot of token i's block, or -1 where the block is incomplete.
  constexpr int64_t slot_of(int64_t i) const {
    const Span in = document(i);
    const int64_t index = (i - in.begin) / block;
    return in.begin + (index + 1) * block <= in.end ? in.begin / block + index : -1;
  }
};

}  // namespace weft::kernels::selection
