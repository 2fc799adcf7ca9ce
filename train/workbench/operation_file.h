// An operation's file: the named tensors that `weft op` computes on, and those it compares with.
//
// Tensors stand by name, either all at the root ("q", "k", "cu_seqlens", "dout") or in groups:
// inputs/, grad_outputs/, outputs/ and gradients/. Settings are attributes of options/. What stands
// under a name that the operation knows is read or refused, never passed over: a gate that was left
// out unread would give another function's numbers.
#pragma once

#include <string>
#include <vector>

#include "kernels/contract/operation.h"

namespace weft::train {

struct OperationFile {
  std::string operation;  // attribute of the root; may be absent
  bool grouped = false;
  double tolerance = 0;  // attribute, where the source of the expected numbers is inexact
  kernels::Tensors inputs, output_gradients, outputs, gradients;
  kernels::Settings settings;
};
OperationFile read_operation_file(const std::string& path, const kernels::Operation& operation);

// "dout", "dlse": the gradients that an operation takes.
std::vector<std::string> output_gradient_names(const kernels::Operation& operation);

}  // namespace weft::train
