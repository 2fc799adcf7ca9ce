// `weft cases`: the cases of the certificate as files, for a kernel that is not ours. `weft judge`
// (judge.h) compares what comes back.
//
//   DIR/cases.json             operations, tensors, options, files: for programs and people
//   DIR/OP.DTYPE.CASE.h5       one case in the layout of operation_file.h: inputs/, grad_outputs/,
//                              options/. The numbers are rounded to the dtype already, so that the
//                              rounding of the inputs is nobody's fault.
//   DIR/results/OP.DTYPE.CASE.h5   what comes back, written by the kernel's owner (results.h)
//
// Answers have files of their own: a case's file keeps its seal, one folder of cases serves any
// number of tries, and a kernel that writes into its inputs cannot change what it is judged by.
// cases.json is written last. A folder without it is not whole, and is not judged.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "core/hdf5.h"
#include "kernels/contract/agreement.h"

namespace weft::train {

struct CasesArguments {
  std::vector<std::string> words;   // names of operations or "all", then the folder
  std::vector<std::string> dtypes;  // none: f64, f32 and bf16
  std::string case_text;            // cases whose name holds it
};

// What a folder holds; the list of its files follows from it.
struct CaseSelection {
  std::vector<const kernels::Operation*> operations;
  std::vector<Dtype> dtypes;
  std::string case_text;
};

struct CaseFile {
  const kernels::Operation* operation = nullptr;
  kernels::NamedCase named;
  Dtype dtype = Dtype::f64;
  std::string file;  // "delta.f32.packed.h5"
};
// By operation, then dtype, then as the operation lists its cases. Throws Error where
// nothing is selected.
std::vector<CaseFile> case_files(const CaseSelection& selection);

// A case as it is asked, and what is expected. Index tensors that the operation writes (those of a
// router) are answers: they are in `written`, and not among the inputs that are `given`.
struct Question {
  kernels::Expected expected;
  kernels::Tensors given, written;
};
Question question_of(const CaseFile& c);

// A setting's text as the attribute of its kind: a number where it reads as one; truth is 1 or 0.
Attribute attribute_of(const std::string& text);

// Whether two tensors are the same to the bit.
bool same_bits(const Tensor& a, const Tensor& b);

// From names of `verb --dtype`; none: all that the certificate tests.
std::vector<Dtype> dtypes_from(const std::vector<std::string>& names, const std::string& verb);

// Reads the selection of a folder that `weft cases` made. Throws Error for any other.
CaseSelection read_selection(const std::string& folder);

// Returns the exit status.
int run_cases(const CasesArguments& arguments, std::ostream& out);

}  // namespace weft::train
