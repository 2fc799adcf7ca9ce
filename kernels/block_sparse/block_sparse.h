// Softmax attention over the blocks of a mask: as attention, but query i sees key j only where
//   block_mask[h, i / block, j / block] != 0   and, if causal, j <= i
// with i and j counted from the start of the sequence or document. A cut block is exact to the
// token. Cost and memory are those of the blocks set; patterns.h makes the masks that have names,
// and kernels/selection those that follow from the data.
#pragma once

#include "kernels/contract/flops.h"
#include "kernels/contract/mechanism.h"

namespace weft::kernels {

struct BlockSparse {
  static constexpr std::string_view name = "block_sparse";

  // T <= S: query row r stands at position S - T + r. Head h reads key head h / (H / Hk).
  template <class X>
  struct Inputs {
    X q, k, v;
    auto fields() { return std::tie(q, k, v); }
  };
  static constexpr Field kInputs[] = {
      {"q", "[B, T, H, K]"}, {"k", "[B, S, Hk, K]"}, {"v", "[B, S, Hk, V]"}};

  // A query that sees no key has o = 0, lse = -infinity, and sends no gradient.
  template <class X>
  struct Outputs {
    X o, lse;
    auto fields() { return std::tie(o, lse); }
  };
  static constexpr Field kOutputs[] = {{"o", "[B, T, H, V]"},
                                       {"lse", "[B, H, T]", /*optional=*/false, /*wide=*/true}};

  // A mask may have a batch dimension in front: a mask for each row of the batch or, where rows
  // hold packed documents, for each document. Its heads divide H: a head of the mask serves H /
  // heads neighbours. On a GPU it may be the work of a kernel: no number of it is read on the host.
  struct Options {
    Tensor block_mask;
    int64_t block = 64;
    // The mask then has a row for each row of q, in place of one for each block of positions: the
    // choice of a single query. Where not causal, q may then be longer than k.
    bool by_token = false;
    // With by_token: that many queries, counted from the start of the sequence or document, have
    // rows of the mask that are equal. The CPU takes them as one tile; it refuses rows that differ.
    int64_t alike = 1;
    double scale = 0;
    bool causal = true;
    double softcap = 0;
    Tensor cu_seqlens;
    // i32 [1] on the device of q, or absent. Then the only query, T = 1, stands here, and keys
    // behind it, whatever they hold, do not count: k and v are a cache that fills. Without a
    // gradient.
    Tensor position;

    template <class F>
    void each(F&& f) {
      f("block_mask", block_mask,
        "[1 or B or N?, 1 .. H, rows, columns] u8, 1 where a block's queries see a block's keys");
      f("block", block, "tokens in a block");
      f("by_token", by_token, "a row of the mask is that of one query, not of a block of them");
      f("alike", alike, "by_token: queries in a block of them whose rows of the mask are equal");
      f("scale", scale, "factor of q.k; 0: K^-1/2");
      f("causal", causal, "a query sees no key after it");
      f("softcap", softcap, "bound on the scores, by tanh; 0: none");
      f("cu_seqlens", cu_seqlens,
        "[N + 1] i32, where packed documents begin and end; needs B = 1, S = T");
      f("position", position, "[1] i32, of the only query, behind which no key counts");
    }
  };

  struct Saved {
    Tensor o;    // [B, T, H, V]
    Tensor lse;  // [B, H, T]
  };

  // The mask must cover the longest sequence or document; it may be larger, but for its rows where
  // they are those of q.
  static void check(const Inputs<Tensor>& x, const Options& o);
  static Outputs<Tensor> outputs(const Inputs<Tensor>& x, const Options& o);
  // Beyond what attention allocates: a list of i32 [masks, rows, columns + 2].
  static void cpu_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                          Saved* saved);
  static void cpu_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                           const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
  // On a GPU K and V are at most 256; the list is one of tiles, i32 [masks, tiles of rows,
  // tiles of keys + 1] or about as much.
  static void cuda_forward(const Inputs<Tensor>& x, const Options& o, Outputs<Tensor>& y,
                           Saved* saved);
  static void cuda_backward(const Inputs<Tensor>& x, const Options& o, const Saved& saved,
                            const Outputs<Tensor>& dy, Inputs<Tensor>& dx);
};

// A block mask with its batch dimension, which may be of size 1.
inline Tensor batched(const Tensor& mask) { return mask.dims() == 3 ? mask.unsqueeze(0) : mask; }

}  // namespace weft::kernels
