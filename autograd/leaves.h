// Where the values of leaves lie.
#pragma once

#include "autograd/tape.h"

namespace weft::autograd {

// Moves a leaf's value to another place, of its shape, dtype and device.
void move_value(const Var& leaf, const Tensor& place);

}  // namespace weft::autograd
