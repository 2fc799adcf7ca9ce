// `weft judge`: what another kernel answered to the cases of a folder (cases.h), held to the
// certificate. The measure and the bounds are those of kernels/contract/agreement.h for the forms
// on a GPU: a kernel that is not ours may sum in another order, and its products may take operands
// of bf16.
//
// A tensor of a case is answered, declined (the result says why), or missing. Missing ones fail;
// declined ones are told and counted, and fail with `all`. Nothing answered is a failure.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "train/workbench/judgement.h"

namespace weft::train {

struct JudgeArguments {
  std::string folder;
  bool json = false, all = false;
  std::string junit;                // a file to write
  std::vector<std::string> dtypes;  // none: those of the folder
};

// Throws Error where the folder is none that `weft cases` made.
Judgement judge(const JudgeArguments& arguments);

// Returns the exit status: 1 where a check fails, something is missing or nothing was answered.
int run_judge(const JudgeArguments& arguments, std::ostream& out);

}  // namespace weft::train
