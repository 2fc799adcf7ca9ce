// Where the CPU's forms of this folder cut their work. Tests derive from these numbers the sizes
// that lie below, at and above each border (tests/kernels/borders_test.cpp).
#pragma once

#include <cstdint>

namespace weft::kernels::cuts {

// Rows, whatever the operation.
inline constexpr int64_t kRowGrain = 8192;  // numbers of whole rows that are worth a thread
inline constexpr int64_t kRowBlocks = 32;   // blocks of rows at most, each with a sum of its own
inline constexpr int64_t kBlockRows = 16;   // rows of a block at least
inline constexpr int64_t kSumGrain = 4096;  // columns of a sum over blocks that a thread takes
inline constexpr int64_t kScatterWhole = 16384;  // numbers below which a scatter is not cut
inline constexpr int64_t kScatterStrip = 32;     // columns of a strip of a scatter

inline constexpr int64_t kActivationGrain = 8192;  // numbers of a contiguous matrix
inline constexpr int64_t kPointwiseGrain = 1 << 14;
inline constexpr int64_t kAdamwPiece = 1 << 14;  // numbers a thread takes at a time
inline constexpr int64_t kReducedGrain = 16;     // sums along a dimension that a thread makes
inline constexpr int64_t kRotaryShort = 512;     // tokens up to which a block of angles is short
inline constexpr int64_t kRotaryFew = 16;        // tokens of such a block
inline constexpr int64_t kRotaryMany = 64;       // of any other
inline constexpr int64_t kRotaryTokens = 64;     // whose angles a thread makes at least
inline constexpr int64_t kConvPiece = 64;        // tokens walked at a time
inline constexpr int64_t kConvTasks = 64;        // tasks at most, each with a sum of its own
inline constexpr int64_t kExpertTile = 128;      // rows, or outputs, of one expert that make a task
inline constexpr int64_t kLossTile = 1 << 18;    // logits that exist at a time
inline constexpr int64_t kLossColumns = 512;     // of a tile, where the vocabulary has as many
inline constexpr int64_t kBiasColumns = 64;      // of a bias's gradient that a thread takes
inline constexpr int64_t kBiasRows = 256;        // of a product to which a thread adds the bias

}  // namespace weft::kernels::cuts
