// Plain differentiable operations: shapes, sums and products, each with its gradient directly
// beneath it in ops.cpp. Operations with arithmetic worth a kernel come from kernels/ by
// apply<M>().
#pragma once

#include <vector>

#include "autograd/tape.h"

namespace weft::autograd {

// Views: the result shares memory with x where its strides allow.
Var reshape(const Var& x, const Shape& shape);  // one size may be -1
Var transpose(const Var& x, int a, int b);
Var slice(const Var& x, int dim, int64_t begin, int64_t end);
// Joins along a dimension; all other sizes equal.
Var concat(const std::vector<Var>& parts, int dim);
// Cuts along a dimension into parts of the given sizes, which must add up.
std::vector<Var> split(const Var& x, int dim, const std::vector<int64_t>& sizes);

// Elementwise; shapes equal.
Var add(const Var& a, const Var& b);
Var multiply(const Var& a, const Var& b);
// x * factor, and x + sum of a list.
Var scale(const Var& x, double factor);
// The same numbers in another float type; the gradient comes back in x's.
Var cast(const Var& x, Dtype dtype);
// In the two that follow the vector is of x's dtype, or f32 beside bf16.
// x [..., D] times w [D], or x [..., H, K] times w [H] with `dim` naming the dimension of w.
Var multiply_along(const Var& x, const Var& w, int dim);
// x [..., D] + b [D] along `dim`.
Var add_along(const Var& x, const Var& b, int dim);
// The sum of all elements, shape [1].
Var sum(const Var& x);

}  // namespace weft::autograd
