// `weft gradcheck`: the gradient certificate. Every operation, every input, every form, every
// dtype, held to what it should be in two ways that share no code with it:
//   differences  f64: central differences of the form's own forward pass (autograd/gradcheck.h), by
//                every element of a small input, along random directions of a large one
//   definition   f64, f32, bf16: the naive form in f64, differentiated by the machine; the measure
//                and the bounds are those of kernels/contract/agreement.h
// Outputs are compared with the definition too. On a GPU the form under test is the CUDA form in
// f32 and bf16, and the second way alone is taken: differences in f32 say little.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "train/workbench/certificate_rows.h"

namespace weft::train {

struct GradcheckArguments {
  std::vector<std::string> operations;  // names; none: all
  std::string device = "cpu";
  bool json = false;
  std::string junit;      // a file to write
  std::string case_text;  // cases whose name holds it
};

// `progress` is called with the part of the operation's work that is done, 0 to 1. Cases whose name
// does not hold `case_text` are left out.
std::vector<CertificateRow> certify(const kernels::Operation& operation, Device device = kCpu,
                                    const std::function<void(double)>& progress = nullptr,
                                    const std::string& case_text = "");

// Returns the exit status: 1 where a check fails.
int run_gradcheck(const GradcheckArguments& arguments, std::ostream& out);

}  // namespace weft::train
