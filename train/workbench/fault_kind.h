// Of what kind a fault is, where the numbers say so by themselves: a constant factor, two
// dimensions or slices swapped, a part of the tensor alone; and which cases fail. Nothing is
// guessed: a remark is made where it explains all of the error, to the bound.
#pragma once

#include <string>
#include <vector>

#include "kernels/contract/operation.h"

namespace weft::train {

// "every number is 0.5 times what is expected"; empty where nothing of the kind holds. `letters`
// are those of the dimensions ("B", "T", "H", "V"); `scale` is what the error was divided by.
std::string kind_of_fault(const Tensor& got, const Tensor& expected,
                          const std::vector<std::string>& letters, double scale, double bound);

// What is the same in all cases that fail and in none that passes: "fails in 3 of 3 cases with
// cu_seqlens, in 0 of 11 without". Empty where nothing separates them, or none passes.
struct CaseVerdict {
  const kernels::NamedCase* named = nullptr;
  bool passed = false;
};
std::string kind_of_cases(const kernels::Operation& operation,
                          const std::vector<CaseVerdict>& verdicts);

}  // namespace weft::train
