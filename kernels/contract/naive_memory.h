// What differentiating a naive form takes. The machine keeps every step of the arithmetic (see
// kernels/contract/traced.h), so that a thousand tokens can be a hundred gigabytes: said before it
// starts.
#pragma once

#include <string>

#include "kernels/contract/operation.h"

namespace weft::kernels {

// Steps that the gradient of the naive form keeps for these inputs; exact to a few per cent.
double naive_steps(const std::string& operation, const Tensors& inputs, const Settings& settings);

// Throws Error, with the sizes and what to do instead, where the steps need more than the machine
// has.
void require_naive_memory(const std::string& operation, const Tensors& inputs,
                          const Settings& settings);

}  // namespace weft::kernels
