// What `weft judge` found, and how it is told: as a table, as JSON, as JUnit.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "train/workbench/certificate_rows.h"

namespace weft::train {

// One tensor of an operation in one dtype, over all cases that have it.
struct JudgedTensor {
  CertificateRow row;  // the worst of the answers that could be compared
  int asked = 0, answered = 0, declined = 0, missing = 0, failed = 0;
  std::vector<std::string> kinds;  // of the fault, where it can be told
};

// A line about a case or a tensor.
struct JudgeLine {
  std::string operation, tensor;  // the tensor may be empty
  Dtype dtype = Dtype::f64;
  std::string text;
};

struct Judgement {
  std::vector<JudgedTensor> tensors;
  std::vector<JudgeLine> faults;             // what no comparison finds: shapes, names, files
  std::vector<JudgeLine> missing, declined;  // by reason, with the cases' names
  bool passed(bool all) const;
};
// `all`: what was declined fails too.
void print_judgement(const Judgement& j, bool all, std::ostream& out);
std::string judgement_json(const Judgement& j, bool all);
std::string judgement_junit(const Judgement& j, bool all);

}  // namespace weft::train
