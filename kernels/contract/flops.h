// What an operation multiplies and adds at least: the one source of the FLOPs that pages, `weft
// inspect` and both benchmarks name.
#pragma once

namespace weft::kernels {

// A product and the sum that takes it are two. Half is counted of a product that is a triangle, and
// an exponential is one. The forward pass is that of training. The backward pass makes no state
// again that the forward pass could have kept.
struct Flops {
  double forward = 0, backward = 0;
};

constexpr Flops operator*(double n, Flops f) { return {n * f.forward, n * f.backward}; }

// Of a product with a matrix: its backward pass has two of the same size.
constexpr Flops product_flops(double rows, double inner, double columns) {
  return {2 * rows * inner * columns, 4 * rows * inner * columns};
}

// Of an operation on single numbers: the backward pass takes about twice the forward one.
constexpr Flops rows_flops(double forward) { return {forward, 2 * forward}; }

// Of softmax attention: one head, `pairs` of a query and a key that it sees.
constexpr Flops softmax_flops(double pairs, double K, double V) {
  return {2 * pairs * (K + V), 2 * pairs * (3 * K + 2 * V)};
}

}  // namespace weft::kernels
