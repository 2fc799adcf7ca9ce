#include "train/workbench/judge.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <map>
#include <set>
#include <tuple>

#include "core/file.h"
#include "core/text.h"
#include "train/workbench/cases.h"
#include "train/workbench/fault_kind.h"
#include "train/workbench/report.h"
#include "train/workbench/results.h"

namespace weft::train {
namespace {

using namespace kernels;
namespace fs = std::filesystem;

// "a", "b", "c" and 9 more.
std::string named(const std::vector<std::string>& cases) {
  constexpr size_t kShown = 4;
  std::string text;
  for (size_t i = 0; i < cases.size() && i < kShown; ++i)
    text += concat(i ? ", \"" : "\"", cases[i], "\"");
  return cases.size() > kShown ? concat(text, " and ", cases.size() - kShown, " more") : text;
}

// The letters of an output's or a gradient's dimensions.
std::vector<std::string> letters_of_tensor(const Operation& op, const std::string& name) {
  for (const Field& f : op.outputs())
    if (name == f.name) return letters_of(f.shape);
  for (const Field& f : op.inputs())
    if (name == gradient_name(f.name)) return letters_of(f.shape);
  return {};
}

// What an error of this tensor is divided by.
double scale_of(const Tensor& expected, double floor) {
  double squares = 0;
  const std::vector<double> values = to_doubles(expected);
  for (const double x : values)
    if (std::isfinite(x)) squares += x * x;
  return values.empty() ? 0
                        : std::max(std::sqrt(squares / static_cast<double>(values.size())), floor);
}

Tensors answered_of(const Tensors& expected, const Tensors& answers) {
  Tensors rest;
  for (const auto& [name, t] : expected)
    if (answers.count(name) > 0) rest[name] = t;
  return rest;
}

// What is expected of a kernel that does without some of the outputs: their gradients are zero.
Expected without(Expected e, const std::vector<std::string>& outputs) {
  const Operation& op = *e.operation;
  for (const std::string& name : outputs) {
    Tensor& dy = e.output_gradients.at(gradient_name(name));
    dy = zeros_like(dy);
  }
  e.gradients = op.backward(Form::naive, rounded_to(Dtype::f64, e.inputs, op.inputs()), e.settings,
                            rounded_to(Dtype::f64, e.output_gradients, op.outputs()));
  return e;
}

// The outputs that a result declines while it answers others.
std::vector<std::string> outputs_declined(const Question& q, const ResultFile& r,
                                          const std::set<std::string>& unfit) {
  std::vector<std::string> list;
  for (const auto& [name, t] : q.expected.outputs)
    if (r.answers.count(name) == 0 && unfit.count(name) == 0) list.push_back(name);
  const bool some = list.size() < q.expected.outputs.size();
  return r.declined.empty() || !some ? std::vector<std::string>() : list;
}

// Every answer against the definition. Indices are right or wrong.
std::vector<Agreement> agreements(const Question& q, const Tensors& answers) {
  Expected e = q.expected;
  e.outputs = answered_of(e.outputs, answers);
  e.gradients = answered_of(e.gradients, answers);
  std::vector<Agreement> list = agreement_by_form(e, answers, answers);
  for (const auto& [name, wanted] : answered_of(q.written, answers))
    list.push_back({name, difference(answers.at(name), wanted, 0, name), 0});
  return list;
}

class Judging {
 public:
  Judging(std::string folder, std::vector<CaseFile> files)
      : folder_(std::move(folder)), files_(std::move(files)) {}

  Judgement run() {
    TaskProgress line("judge");
    for (size_t i = 0; i < files_.size(); ++i) {
      line.show(static_cast<double>(i) / static_cast<double>(files_.size()),
                files_[i].operation->name());
      one(files_[i]);
    }
    for (const auto& [key, cases] : verdicts_) {
      const std::string text = kind_of_cases(operation(std::get<0>(key)), cases);
      if (!text.empty()) at(key).kinds.push_back(text);
    }
    for (const auto& [key, cases] : missing_)
      judgement_.missing.push_back(
          {std::get<0>(key), "", std::get<1>(key), concat(std::get<2>(key), named(cases))});
    for (const auto& [key, cases] : declined_)
      judgement_.declined.push_back(
          {std::get<0>(key), "", std::get<1>(key), concat(std::get<2>(key), named(cases))});
    return std::move(judgement_);
  }

 private:
  using Key = std::tuple<std::string, std::string, Dtype>;
  using Group = std::tuple<std::string, Dtype, std::string>;

  JudgedTensor& at(const Key& key) {
    const auto [found, fresh] = place_.emplace(key, judgement_.tensors.size());
    if (fresh) {
      JudgedTensor t;
      t.row.operation = std::get<0>(key);
      t.row.tensor = std::get<1>(key);
      t.row.dtype = std::get<2>(key);
      t.row.form = "result";
      t.row.against = "definition";
      judgement_.tensors.push_back(std::move(t));
    }
    return judgement_.tensors[found->second];
  }

  void one(const CaseFile& c) {
    const std::string name = c.operation->name(), path = concat(folder_, "/results/", c.file);
    Question q = question_of(c);
    const ResultFile r = read_result(path, c, q);
    std::vector<Finding> findings = r.findings;
    if (r.there)
      for (Finding& f : check_case(folder_, c, q)) findings.push_back(std::move(f));
    std::set<std::string> unfit;
    for (const Finding& f : findings) {
      unfit.insert(f.tensor);
      judgement_.faults.push_back(
          {name, f.tensor, c.dtype, concat("case \"", c.named.name, "\": ", f.text)});
    }
    std::vector<std::string> left_out;
    for (const Tensors& tensors : {q.expected.outputs, q.written, q.expected.gradients})
      for (const auto& [tensor, t] : tensors) {
        JudgedTensor& judged = at({name, tensor, c.dtype});
        ++judged.asked;
        if (r.answers.count(tensor) > 0 || unfit.count(tensor) > 0) {
          ++judged.answered;
          if (unfit.count(tensor) > 0) fail_case(c, tensor);
          continue;
        }
        left_out.push_back(tensor);
        ++(r.declined.empty() ? judged.missing : judged.declined);
      }
    tell_left_out(c, r, left_out);
    const std::vector<std::string> outputs = outputs_declined(q, r, unfit);
    if (!outputs.empty()) q.expected = without(q.expected, outputs);
    for (const Agreement& a : agreements(q, r.answers)) compare(c, q, r, a);
  }

  void fail_case(const CaseFile& c, const std::string& tensor) {
    ++at({c.operation->name(), tensor, c.dtype}).failed;
    verdicts_[{c.operation->name(), tensor, c.dtype}].push_back({&c.named, false});
  }

  void tell_left_out(const CaseFile& c, const ResultFile& r, const std::vector<std::string>& list) {
    if (list.empty()) return;
    std::string what = joined(list);
    if (!r.there)
      what = "no result";
    else if (r.answers.empty())
      what = "all";
    auto& lines = r.declined.empty() ? missing_ : declined_;
    if (!r.declined.empty()) what += concat(" (", r.declined, ")");
    lines[{c.operation->name(), c.dtype, what + ": "}].push_back(c.named.name);
  }

  void compare(const CaseFile& c, const Question& q, const ResultFile& r, const Agreement& a) {
    const Key key{c.operation->name(), a.tensor, c.dtype};
    JudgedTensor& judged = at(key);
    const CertificateRow row{std::get<0>(key),   a.tensor,         judged.row.form,       c.dtype,
                             judged.row.against, c.named.name,     a.difference.error,    a.bound,
                             a.difference.at,    a.difference.got, a.difference.expected, 1};
    const bool worse = rows_.add(row);
    if (worse) {
      judged.row = row;
      judged.kinds.clear();
    }
    ++counts_[key];
    judged.row.cases = counts_[key];
    if (a.passed()) {
      verdicts_[key].push_back({&c.named, true});
      return;
    }
    fail_case(c, a.tensor);
    if (worse) tell_kind(c, q, r, a, judged);
  }

  void tell_kind(const CaseFile& c, const Question& q, const ResultFile& r, const Agreement& a,
                 JudgedTensor& judged) {
    const bool gradient = q.expected.gradients.count(a.tensor) > 0;
    const Tensors& expected = gradient                        ? q.expected.gradients
                              : q.written.count(a.tensor) > 0 ? q.written
                                                              : q.expected.outputs;
    const Tensor& wanted = expected.at(a.tensor);
    const std::string text =
        kind_of_fault(r.answers.at(a.tensor), wanted, letters_of_tensor(*c.operation, a.tensor),
                      scale_of(wanted, gradient ? floor_of(c.dtype) : 0), a.bound);
    if (!text.empty()) judged.kinds.push_back(text);
  }

  std::string folder_;
  std::vector<CaseFile> files_;
  Judgement judgement_;
  CertificateRows rows_;
  std::map<Key, size_t> place_;
  std::map<Key, int> counts_;
  std::map<Key, std::vector<CaseVerdict>> verdicts_;
  std::map<Group, std::vector<std::string>> missing_, declined_;
};

// Files of results/ that belong to no case of the folder.
std::vector<JudgeLine> strangers(const std::string& folder, const std::vector<CaseFile>& all) {
  std::vector<std::string> known;
  for (const CaseFile& c : all) known.push_back(c.file);
  std::vector<std::string> found;
  std::error_code error;
  for (fs::directory_iterator at(folder + "/results", error), end; !error && at != end;
       at.increment(error))
    found.push_back(as_utf8(at->path().filename().string()));
  std::sort(found.begin(), found.end());
  std::vector<JudgeLine> lines;
  for (const std::string& name : found) {
    if (name.starts_with('.') || contains(known, name)) continue;
    const std::string near = nearest_name(name, known);
    lines.push_back(
        {"results/" + name, "", Dtype::f64,
         concat("belongs to no case; ", near.empty() ? "expected the name of a case's file"
                                                     : concat("did you mean \"", near, "\"?"))});
  }
  return lines;
}

}  // namespace

Judgement judge(const JudgeArguments& a) {
  CaseSelection selection = read_selection(a.folder);
  const std::vector<CaseFile> all = case_files(selection);
  if (!a.dtypes.empty()) {
    const std::vector<Dtype> there = selection.dtypes;
    selection.dtypes = dtypes_from(a.dtypes, "judge");
    for (const Dtype t : selection.dtypes)
      require(std::find(there.begin(), there.end(), t) != there.end(), "judge --dtype ", t, ": ",
              a.folder, " has no cases in ", t);
  }
  Judgement j = Judging(a.folder, case_files(selection)).run();
  for (JudgeLine& l : strangers(a.folder, all)) j.faults.push_back(std::move(l));
  return j;
}

int run_judge(const JudgeArguments& a, std::ostream& out) {
  if (!a.junit.empty()) require_output(a.junit);
  const Judgement j = judge(a);
  if (!a.junit.empty()) write_file(a.junit, judgement_junit(j, a.all));
  const bool taken = !a.junit.empty() && is_standard_output(a.junit);
  std::ostream& to = taken ? std::cerr : out;
  if (a.json)
    to << judgement_json(j, a.all);
  else
    print_judgement(j, a.all, to);
  return j.passed(a.all) ? 0 : 1;
}

}  // namespace weft::train
