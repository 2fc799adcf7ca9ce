// The file of a result, which a kernel's owner writes for a case: outputs/ and gradients/ by name,
// inputs/ as they were after the run (may be absent), and an attribute `declined` at the root that
// says why what is left out is left out.
#pragma once

#include <string>
#include <vector>

#include "train/workbench/cases.h"

namespace weft::train {

// What stands in a result where it should not, or cannot be read. One sentence.
struct Finding {
  std::string tensor;  // "dq"; empty where it is of the whole file
  std::string text;
};

struct ResultFile {
  bool there = false;
  std::string declined;      // the reason
  kernels::Tensors answers;  // outputs and gradients by name, of the right shape and dtype
  std::vector<Finding> findings;
};

// Never throws for what the file holds: that is told in `findings`.
ResultFile read_result(const std::string& path, const CaseFile& c, const Question& q);

// Whether the file of the case in `folder` still holds what was written, told as read_result does.
std::vector<Finding> check_case(const std::string& folder, const CaseFile& c, const Question& q);

}  // namespace weft::train
