// What a certificate says: a row for each tensor, form, dtype and kind of check, the worst of its
// cases, and how rows are told. `weft gradcheck` and `weft judge` share it.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/contract/agreement.h"

namespace weft::train {

// One check: the worst of all cases (by error over bound).
struct CertificateRow {
  std::string operation, tensor, form;  // "attention", "dq", "chunkwise"
  Dtype dtype = Dtype::f64;
  std::string against;    // "differences" or "definition"
  std::string case_name;  // the worst
  double error = 0, bound = 0;
  std::vector<int64_t> at;  // where; for a random direction its number
  double got = 0, expected = 0;
  int cases = 0;
  bool passed() const { return kernels::within(error, bound); }
};

// Rows by tensor, form and kind of check; a new result replaces the row where it is worse.
class CertificateRows {
 public:
  // Returns whether the row is now this one.
  bool add(const CertificateRow& row);
  std::vector<CertificateRow> rows;

 private:
  std::map<std::string, size_t> place_;
};

int64_t failed_rows(const std::vector<CertificateRow>& rows);

// All that a row knows of its worst case; and the line that tells of a check that failed.
std::string worst_case_text(const CertificateRow& row);
std::string failure_text(const CertificateRow& row);

// A line for each tensor of a form, a column for each kind of check ("definition f32").
class CertificateTable {
 public:
  // `more`: headings of columns before the verdict, which the caller fills.
  explicit CertificateTable(std::vector<std::string> kinds, std::vector<std::string> more = {});

  // The cells of a line, which is made where it is not there yet; the last is the verdict.
  std::vector<std::string>& line(const std::string& operation, const std::string& tensor,
                                 const std::string& form);
  void add(const CertificateRow& row);
  void print(std::ostream& out) const;

 private:
  std::vector<std::string> kinds_, heading_;
  std::vector<std::vector<std::string>> lines_;
  std::map<std::string, size_t> line_of_;
};

void print_certificate(const std::vector<CertificateRow>& rows, std::ostream& out);
nlohmann::ordered_json certificate_json_row(const CertificateRow& row);
std::string certificate_json(const std::vector<CertificateRow>& rows);
std::string certificate_junit(const std::vector<CertificateRow>& rows);

// A suite of JUnit, as CI systems read it.
struct JunitCase {
  std::string group, name;
  std::string failure, skipped;  // why; empty: passed
};
std::string junit_text(const std::string& suite, const std::vector<JunitCase>& cases);

}  // namespace weft::train
