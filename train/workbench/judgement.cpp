#include "train/workbench/judgement.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/json.h"

namespace weft::train {
namespace {

using Json = nlohmann::ordered_json;

std::string verdict_of(const JudgedTensor& t) {
  if (t.failed > 0) return "FAILED";
  if (t.missing > 0) return "MISSING";
  if (t.answered == 0) return "declined";
  return t.declined > 0 ? "passed in part" : "passed";
}

struct Totals {
  int64_t operations = 0, checks = 0, failed = 0, asked = 0, answered = 0, declined = 0,
          missing = 0;
};

Totals totals_of(const Judgement& j) {
  Totals n;
  std::set<std::string> operations;
  for (const JudgedTensor& t : j.tensors) {
    operations.insert(t.row.operation);
    ++n.checks;
    n.failed += t.failed > 0;
    n.asked += t.asked;
    n.answered += t.answered;
    n.declined += t.declined;
    n.missing += t.missing;
  }
  n.operations = static_cast<int64_t>(operations.size());
  return n;
}

CertificateTable table_of(const Judgement& j) {
  std::vector<std::string> kinds;
  for (const Dtype t : {Dtype::f64, Dtype::f32, Dtype::bf16})
    if (std::any_of(j.tensors.begin(), j.tensors.end(),
                    [&](const JudgedTensor& one) { return one.row.dtype == t; }))
      kinds.push_back(concat("definition ", t));
  CertificateTable table(kinds, {"answered", "declined", "missing"});
  std::map<std::pair<std::string, std::string>, JudgedTensor> sums;  // over dtypes
  for (const JudgedTensor& t : j.tensors) {
    std::vector<std::string>& cells = table.line(t.row.operation, t.row.tensor, t.row.form);
    if (t.row.cases > 0) table.add(t.row);
    JudgedTensor& sum = sums[{t.row.operation, t.row.tensor}];
    sum.answered += t.answered;
    sum.declined += t.declined;
    sum.missing += t.missing;
    sum.failed += t.failed;
    const size_t n = cells.size();
    cells[n - 4] = std::to_string(sum.answered);
    cells[n - 3] = std::to_string(sum.declined);
    cells[n - 2] = std::to_string(sum.missing);
    cells[n - 1] = verdict_of(sum);
  }
  return table;
}

std::string line_text(const char* word, const JudgeLine& l) {
  const bool of_file = l.operation.starts_with("results/");
  return concat(word, l.operation, l.tensor.empty() ? "" : " " + l.tensor,
                of_file ? "" : concat(" ", l.dtype), ": ", l.text, "\n");
}

std::string last_line(const Judgement& j, bool all) {
  const Totals n = totals_of(j);
  return concat(n.operations, " operations, ", n.checks, " checks, ", n.failed, " failed; ",
                n.asked, " answers asked for, ", n.answered, " given, ", n.declined, " declined, ",
                n.missing, " missing",
                j.faults.empty() ? "" : concat(", ", j.faults.size(), " faults of form"), ": ",
                !j.passed(all)   ? "FAILED"
                : n.declined > 0 ? "passed where answered"
                                 : "passed",
                "\n");
}

Json json_of(const std::vector<JudgeLine>& lines) {
  Json list = Json::array();
  for (const JudgeLine& l : lines) {
    Json one = {{"operation", l.operation}, {"dtype", name_of(l.dtype)}, {"text", l.text}};
    if (!l.tensor.empty()) one["tensor"] = l.tensor;
    list.push_back(std::move(one));
  }
  return list;
}

}  // namespace

bool Judgement::passed(bool all) const {
  const Totals n = totals_of(*this);
  return faults.empty() && n.failed == 0 && n.missing == 0 && n.answered > 0 &&
         (!all || n.declined == 0);
}

void print_judgement(const Judgement& j, bool all, std::ostream& out) {
  table_of(j).print(out);
  for (const JudgedTensor& t : j.tensors) {
    if (t.failed == 0 || t.row.cases == 0 || t.row.passed()) continue;
    out << failure_text(t.row);
    for (const std::string& kind : t.kinds) out << "        " << kind << "\n";
  }
  for (const JudgeLine& l : j.faults) out << line_text("FAILED  ", l);
  for (const JudgeLine& l : j.missing) out << line_text("MISSING  ", l);
  for (const JudgeLine& l : j.declined) out << line_text("DECLINED  ", l);
  out << last_line(j, all);
}

std::string judgement_json(const Judgement& j, bool all) {
  const Totals n = totals_of(j);
  std::string text =
      concat("{\"passed\": ", j.passed(all) ? "true" : "false", ", \"asked\": ", n.asked,
             ", \"answered\": ", n.answered, ", \"declined\": ", n.declined,
             ", \"missing\": ", n.missing, ",\n\"checks\": [");
  for (size_t i = 0; i < j.tensors.size(); ++i) {
    const JudgedTensor& t = j.tensors[i];
    Json row = certificate_json_row(t.row);
    row["passed"] = t.failed == 0 && t.answered > 0;
    row["verdict"] = verdict_of(t);
    row["asked"] = t.asked;
    row["answered"] = t.answered;
    row["declined"] = t.declined;
    row["missing"] = t.missing;
    row["failed"] = t.failed;
    row["kinds"] = t.kinds;
    text += (i ? ",\n " : "\n ") + json_line(row);
  }
  return concat(text, "\n],\n\"faults\": ", json_line(json_of(j.faults)),
                ",\n\"missing\": ", json_line(json_of(j.missing)),
                ",\n\"declined\": ", json_line(json_of(j.declined)), "}\n");
}

std::string judgement_junit(const Judgement& j, bool all) {
  std::vector<JunitCase> cases;
  for (const JudgedTensor& t : j.tensors) {
    JunitCase c{t.row.operation, concat(t.row.tensor, " ", t.row.dtype), "", ""};
    if (t.row.cases > 0 && !t.row.passed())
      c.failure = worst_case_text(t.row);
    else if (t.failed > 0)
      c.failure = concat(t.failed, " answers of a wrong form");
    else if (t.missing > 0)
      c.failure = concat(t.missing, " of ", t.asked, " answers missing");
    else if (t.declined > 0 && all)
      c.failure = concat(t.declined, " of ", t.asked, " answers declined");
    else if (t.answered == 0)
      c.skipped = "declined";
    cases.push_back(std::move(c));
  }
  for (const JudgeLine& l : j.faults)
    cases.push_back({l.operation, l.tensor.empty() ? "form" : l.tensor + " form", l.text, ""});
  return junit_text("judge", cases);
}

}  // namespace weft::train
