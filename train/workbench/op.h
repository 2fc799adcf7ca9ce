// `weft op`: one operation on the named tensors of an HDF5 file, so that any implementation in any
// language can be compared with ours.
//
// operation_file.h says how the input file is laid out; the output file is laid out alike: outputs
// and gradients at the root, or in outputs/ and gradients/. A file that has outputs/ and gradients/
// already can be checked (tests/oracles).
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "kernels/contract/agreement.h"
#include "train/workbench/operation_file.h"

namespace weft::train {

struct OpArguments {
  std::string name, in, out;
  bool backward = false;   // implied by output gradients in the file
  std::string form = "";   // "": chunkwise; with --check, all
  std::string dtype = "";  // "": that of the file's first input; with --check, f64 (f32 on a GPU)
  std::string device = "cpu";
  kernels::Settings settings;  // the flags that no other field has
  bool list = false, help = false;
  std::vector<std::string> check;  // files
};

// From the words after `weft op`. Throws Error on what cannot be understood.
OpArguments op_arguments(const std::vector<std::string>& words);

// Returns the exit status: 1 where --check finds a mismatch. Throws Error for bad files, tensors,
// options.
int run_op(const OpArguments& arguments, std::ostream& out);

// One tensor of a file, of one form.
struct OpCheck {
  std::string form, tensor;
  double error = 0, bound = 0;
  std::string text;  // where and what
  bool passed() const { return kernels::within(error, bound); }
};
// Throws Error for a file that holds nothing to compare.
std::vector<OpCheck> check_operation_file(const std::string& path, kernels::Form form, Dtype dtype,
                                          Device device = kCpu);

}  // namespace weft::train
