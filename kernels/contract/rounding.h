// What tensor cores can give at best in bf16, found on the CPU: a switch under which every matrix
// product of the chunkwise forms in f64 rounds its operands to bf16 first. Sums, and all that is no
// product, stay exact. kernels/contract/agreement.h makes the bound of bf16 from it.
//
// Which products there are is a form's affair, and a GPU's form of the same equations may cut them
// otherwise:
//   delta, kda     a GPU multiplies by the inverse of a chunk's triangular system; the CPU
//                  substitutes. On a GPU the states of kda pass from chunk to chunk, on the CPU
//                  from sub-chunk to sub-chunk. Under the switch the products are those of the GPU
//                  (delta_rule/form.h).
//   gated_linear   Scores between tokens of one sub-chunk (16) are sums of products of three
//                  factors, q, k and their decay. No matrix product can form them: they stay exact.
//                  A form that puts half of the decay into each operand rounds there. States pass
//                  from sub-chunk to sub-chunk, and each is an operand; a form with chunks of 64
//                  rounds fewer states and more scores.
//   attention      scores are scaled after their product, as bf16 queries are then exact operands.
//   selective_scan, norms and the like have no products: inputs and outputs alone are rounded.
// Decode steps of one token multiply vectors, not matrices, and round no operand.
#pragma once

#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/dtype.h"

namespace weft::kernels {

// On while one lives, for all threads: make it outside of parallel loops. Off it costs a product in
// f64 one read of a flag, and one in f32 nothing.
class OperandRounding {
 public:
  OperandRounding() { alive_.fetch_add(1); }
  ~OperandRounding() { alive_.fetch_sub(1); }
  OperandRounding(const OperandRounding&) = delete;
  OperandRounding& operator=(const OperandRounding&) = delete;

  static bool on() { return alive_.load(std::memory_order_relaxed) > 0; }

 private:
  inline static std::atomic<int> alive_{0};
};

// Does a product of T round its operands now?
template <class Real>
bool rounds_operands() {
  if constexpr (std::is_same_v<Real, double>) return OperandRounding::on();
  return false;
}

inline bool rounds_operands(Dtype dtype) { return dtype == Dtype::f64 && OperandRounding::on(); }

inline double to_bf16(double x) { return static_cast<float>(bf16(static_cast<float>(x))); }
// x as an operand: rounded where that is on.
template <class Real>
Real operand(Real x) {
  return rounds_operands<Real>() ? static_cast<Real>(to_bf16(static_cast<double>(x))) : x;
}

// A matrix of rounded operands, rows by columns, contiguous. Element (i, j) comes from
// data[i * row + j * column].
template <class Real>
std::vector<Real> rounded_operand(int64_t rows, int64_t columns, const Real* data, int64_t row,
                                  int64_t column = 1) {
  std::vector<Real> out(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      out[static_cast<size_t>(i * columns + j)] =
          static_cast<Real>(to_bf16(static_cast<double>(data[i * row + j * column])));
  return out;
}

}  // namespace weft::kernels
