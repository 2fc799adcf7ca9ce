#include "train/workbench/certificate_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "core/json.h"
#include "core/units.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

double badness(const CertificateRow& r) {
  const double ratio = r.error / r.bound;
  return std::isfinite(ratio) ? ratio : r.passed() ? 0 : std::numeric_limits<double>::infinity();
}

std::string place(const std::vector<int64_t>& at) {
  std::string text;
  for (const int64_t i : at) text += (text.empty() ? "" : ", ") + std::to_string(i);
  return "[" + text + "]";
}

std::string kind(const CertificateRow& r) { return concat(r.against, " ", name_of(r.dtype)); }

std::string escaped_xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

}  // namespace

bool CertificateRows::add(const CertificateRow& row) {
  const std::string key = row.operation + "|" + row.tensor + "|" + row.form + "|" + row.against +
                          std::to_string(static_cast<int>(row.dtype));
  const auto [found, fresh] = place_.emplace(key, rows.size());
  if (fresh) rows.push_back(row);
  CertificateRow& kept = rows[found->second];
  const int cases = fresh ? 1 : kept.cases + 1;
  const bool worse = fresh || badness(row) > badness(kept);
  if (worse) kept = row;
  kept.cases = cases;
  return worse;
}

int64_t failed_rows(const std::vector<CertificateRow>& rows) {
  return std::count_if(rows.begin(), rows.end(),
                       [](const CertificateRow& r) { return !r.passed(); });
}

std::string worst_case_text(const CertificateRow& r) {
  return concat("case \"", r.case_name, "\": error ", number_text("%.2e", r.error), ", bound ",
                number_text("%.2e", r.bound), ", at ", place(r.at), " got ",
                number_text("%.12g", r.got), ", expected ", number_text("%.12g", r.expected));
}

CertificateTable::CertificateTable(std::vector<std::string> kinds, std::vector<std::string> more)
    : kinds_(std::move(kinds)), heading_{"operation", "tensor", "form"} {
  for (const std::string& k : kinds_) heading_.push_back(k + " < bound");
  heading_.insert(heading_.end(), more.begin(), more.end());
  heading_.emplace_back("verdict");
}

std::vector<std::string>& CertificateTable::line(const std::string& operation,
                                                 const std::string& tensor,
                                                 const std::string& form) {
  const auto [found, fresh] =
      line_of_.emplace(operation + "|" + tensor + "|" + form, lines_.size());
  if (fresh) {
    lines_.emplace_back(heading_.size(), "-");
    lines_.back()[0] = operation;
    lines_.back()[1] = tensor;
    lines_.back()[2] = form;
    lines_.back().back() = "passed";
  }
  return lines_[found->second];
}

void CertificateTable::add(const CertificateRow& r) {
  std::vector<std::string>& cells = line(r.operation, r.tensor, r.form);
  const auto column = std::find(kinds_.begin(), kinds_.end(), kind(r)) - kinds_.begin();
  cells[static_cast<size_t>(3 + column)] =
      number_text("%.1e", r.error) + (r.passed() ? " < " : " > ") + number_text("%.1e", r.bound);
  if (!r.passed()) cells.back() = "FAILED";
}

void CertificateTable::print(std::ostream& out) const {
  print_table(out, heading_, lines_);
  out << "\n";
}

std::string failure_text(const CertificateRow& r) {
  return concat("FAILED  ", r.operation, " ", r.tensor, " ", r.form, ", ", kind(r), ": ",
                worst_case_text(r), "\n");
}

void print_certificate(const std::vector<CertificateRow>& rows, std::ostream& out) {
  CertificateTable table(
      {"differences f64", "definition f64", "definition f32", "definition bf16"});
  std::set<std::string> operations;
  for (const CertificateRow& r : rows) {
    table.add(r);
    operations.insert(r.operation);
  }
  table.print(out);
  for (const CertificateRow& r : rows)
    if (!r.passed()) out << failure_text(r);
  out << operations.size() << " operations, " << rows.size() << " checks, " << failed_rows(rows)
      << " failed\n";
}

std::string junit_text(const std::string& suite, const std::vector<JunitCase>& cases) {
  int64_t failed = 0, skipped = 0;
  for (const JunitCase& c : cases) {
    failed += !c.failure.empty();
    skipped += c.failure.empty() && !c.skipped.empty();
  }
  std::string text = concat("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"", suite,
                            "\" tests=\"", cases.size(), "\" failures=\"", failed, "\"");
  if (skipped > 0) text += concat(" skipped=\"", skipped, "\"");
  text += ">\n";
  for (const JunitCase& c : cases) {
    text += concat("  <testcase classname=\"", escaped_xml(c.group), "\" name=\"",
                   escaped_xml(c.name), "\"");
    const bool failure = !c.failure.empty();
    if (!failure && c.skipped.empty())
      text += "/>\n";
    else
      text += concat(">\n    <", failure ? "failure" : "skipped", " message=\"",
                     escaped_xml(failure ? c.failure : c.skipped), "\"/>\n  </testcase>\n");
  }
  return text + "</testsuite>\n";
}

nlohmann::ordered_json certificate_json_row(const CertificateRow& r) {
  return {{"operation", r.operation},  {"tensor", r.tensor},   {"form", r.form},
          {"dtype", name_of(r.dtype)}, {"against", r.against}, {"error", r.error},
          {"bound", r.bound},          {"passed", r.passed()}, {"cases", r.cases},
          {"worst_case", r.case_name}, {"at", r.at},           {"got", r.got},
          {"expected", r.expected}};
}

std::string certificate_json(const std::vector<CertificateRow>& rows) {
  std::string text = "[";
  for (const CertificateRow& r : rows)
    text += (text == "[" ? "\n " : ",\n ") + json_line(certificate_json_row(r));
  return text + "\n]\n";
}

std::string certificate_junit(const std::vector<CertificateRow>& rows) {
  std::vector<JunitCase> cases;
  for (const CertificateRow& r : rows)
    cases.push_back({r.operation, concat(r.tensor, " ", r.form, " ", kind(r)),
                     r.passed() ? "" : worst_case_text(r), ""});
  return junit_text("gradcheck", cases);
}

}  // namespace weft::train
