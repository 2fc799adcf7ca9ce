#include "train/workbench/certificate.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "autograd/gradcheck.h"
#include "core/file.h"
#include "core/json.h"
#include "core/units.h"
#include "train/workbench/report.h"

namespace weft::train {
namespace {

using namespace kernels;

// Inputs with more elements are checked along directions.
constexpr int64_t kSmall = 48;
constexpr int kDirections = 4;

// On the relative error of differences, in f64; no operation needs a looser one.
constexpr double kDifferences = 1e-7;

// Differences with the better of two steps: the larger suffers less from rounding, the smaller
// follows a function that bends sharply (a norm of a row near zero, a decay over a long document).
// A wrong gradient agrees with neither.
autograd::InputReport differences(const std::string& name, const std::function<double()>& loss,
                                  const Tensor& x, const Tensor& gradient) {
  autograd::GradcheckOptions options;
  options.bound = kDifferences;
  options.directions = x.numel() <= kSmall ? 0 : kDirections;
  const autograd::InputReport wide = autograd::check_input(name, loss, x, gradient, options);
  if (wide.passed) return wide;
  options.step /= 10;
  const autograd::InputReport narrow = autograd::check_input(name, loss, x, gradient, options);
  return narrow.max_rel < wide.max_rel ? narrow : wide;
}

// Rows by tensor, form and kind of check; a new result replaces the row where it is worse.
class Rows {
 public:
  void add(const CertificateRow& row) {
    const std::string key = row.tensor + "|" + row.form + "|" + row.against +
                            std::to_string(static_cast<int>(row.dtype));
    const auto [found, fresh] = place_.emplace(key, rows.size());
    if (fresh) rows.push_back(row);
    CertificateRow& kept = rows[found->second];
    const int cases = fresh ? 1 : kept.cases + 1;
    if (badness(row) > badness(kept)) kept = row;
    kept.cases = cases;
  }
  std::vector<CertificateRow> rows;

 private:
  static double badness(const CertificateRow& r) {
    const double ratio = r.error / r.bound;
    return std::isfinite(ratio) ? ratio : r.passed() ? 0 : std::numeric_limits<double>::infinity();
  }
  std::map<std::string, size_t> place_;
};

void add_definition(const Operation& op, const NamedCase& c, Dtype dtype, Rows& rows) {
  const Expected e = expected_of(op, c, dtype);
  for (const Form form : op.forms()) {
    const Tensors y = op.forward(form, e.inputs, c.settings);
    const Tensors dx = op.backward(form, e.inputs, c.settings, e.output_gradients);
    for (const Agreement& a : agreement(e, y, dx))
      rows.add({op.name(), a.tensor, name_of(form), dtype, "definition", c.name, a.difference.error,
                a.bound, a.difference.at, a.difference.got, a.difference.expected});
  }
}

// The CUDA form. A form that throws fails the check in that case's place.
void add_cuda(const Operation& op, const NamedCase& c, Dtype dtype, Device device, Rows& rows) {
  const Expected e = expected_of(op, c, dtype);
  const Tensors in = on_device(device, e.inputs);
  try {
    const Tensors y = op.forward(Form::chunkwise, in, c.settings);
    const Tensors dx =
        op.backward(Form::chunkwise, in, c.settings, on_device(device, e.output_gradients));
    for (const Agreement& a : agreement_by_form(e, y, dx))
      rows.add({op.name(), a.tensor, "cuda", dtype, "definition", c.name, a.difference.error,
                a.bound, a.difference.at, a.difference.got, a.difference.expected});
  } catch (const Error& error) {
    rows.add({op.name(), "-", "cuda", dtype, "definition", concat(c.name, "\": ", error.what()),
              std::numeric_limits<double>::infinity(), 1e-5});
  }
}

// The sum of all outputs times their gradients.
double weighted_sum(const Tensors& outputs, const Tensors& weights) {
  double total = 0;
  for (const auto& [name, y] : outputs) {
    const std::vector<double> a = to_doubles(y), w = to_doubles(weights.at(gradient_name(name)));
    for (size_t i = 0; i < a.size(); ++i)
      if (w[i] != 0) total += a[i] * w[i];  // a row that sees no key has -inf, and no weight
  }
  return total;
}

void add_differences(const Operation& op, const NamedCase& c, Rows& rows) {
  Tensors in;
  for (const auto& [name, t] : c.inputs) in[name] = t.clone();
  const Tensors weights = random_gradients(op.forward(Form::naive, in, c.settings), 1);
  for (const Form form : op.forms()) {
    const Tensors dx = op.backward(form, in, c.settings, weights);
    const auto loss = [&] { return weighted_sum(op.forward(form, in, c.settings), weights); };
    for (const Field& f : op.inputs()) {
      const auto x = in.find(f.name);
      if (x == in.end() || x->second.numel() == 0) continue;
      const std::string name = gradient_name(f.name);
      const autograd::InputReport r = differences(name, loss, x->second, dx.at(name));
      rows.add({op.name(), name, name_of(form), Dtype::f64, "differences", c.name, r.max_rel,
                kDifferences, r.at, r.analytic, r.numeric});
    }
  }
}

std::string place(const std::vector<int64_t>& at) {
  std::string text;
  for (const int64_t i : at) text += (text.empty() ? "" : ", ") + std::to_string(i);
  return "[" + text + "]";
}

std::string description(const CertificateRow& r) {
  return concat("case \"", r.case_name, "\": error ", number_text("%.2e", r.error), ", bound ",
                number_text("%.2e", r.bound), ", at ", place(r.at), " got ",
                number_text("%.12g", r.got), ", expected ", number_text("%.12g", r.expected));
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

int64_t failures(const std::vector<CertificateRow>& rows) {
  return std::count_if(rows.begin(), rows.end(),
                       [](const CertificateRow& r) { return !r.passed(); });
}

bool has_cuda_form(const Operation* op) { return op->has_cuda_form(); }

void tell_that_cpu_only(const Operation* op) {
  std::cerr << "gradcheck: " << op->name() << " has no form on a GPU and is left out\n";
}

}  // namespace

std::vector<CertificateRow> certify(const Operation& op, Device device,
                                    const std::function<void(double)>& progress,
                                    const std::string& case_text) {
  Rows rows;
  std::vector<NamedCase> cases = op.cases();
  std::erase_if(cases, [&](const NamedCase& c) { return c.name.find(case_text) == c.name.npos; });
  for (size_t i = 0; i < cases.size(); ++i) {
    if (progress) progress(static_cast<double>(i) / static_cast<double>(cases.size()));
    if (device.is_cuda()) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
        add_cuda(op, cases[i], dtype, device, rows);
      continue;
    }
    add_differences(op, cases[i], rows);
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
      add_definition(op, cases[i], dtype, rows);
  }
  return rows.rows;
}

void print_certificate(const std::vector<CertificateRow>& rows, std::ostream& out) {
  const std::vector<std::string> kinds = {"differences f64", "definition f64", "definition f32",
                                          "definition bf16"};
  std::vector<std::string> heading = {"operation", "tensor", "form"};
  for (const std::string& k : kinds) heading.push_back(k + " < bound");
  heading.emplace_back("verdict");
  std::vector<std::vector<std::string>> lines;
  std::map<std::string, size_t> line_of;
  for (const CertificateRow& r : rows) {
    const auto [found, fresh] =
        line_of.emplace(r.operation + "|" + r.tensor + "|" + r.form, lines.size());
    if (fresh) {
      lines.emplace_back(heading.size(), "-");
      lines.back()[0] = r.operation;
      lines.back()[1] = r.tensor;
      lines.back()[2] = r.form;
      lines.back().back() = "passed";
    }
    std::vector<std::string>& line = lines[found->second];
    const auto column = std::find(kinds.begin(), kinds.end(), kind(r)) - kinds.begin();
    line[static_cast<size_t>(3 + column)] =
        number_text("%.1e", r.error) + (r.passed() ? " < " : " > ") + number_text("%.1e", r.bound);
    if (!r.passed()) line.back() = "FAILED";
  }
  print_table(out, heading, lines);
  out << "\n";
  for (const CertificateRow& r : rows)
    if (!r.passed())
      out << "FAILED  " << r.operation << " " << r.tensor << " " << r.form << ", " << kind(r)
          << ": " << description(r) << "\n";
  std::map<std::string, int> operations;
  for (const CertificateRow& r : rows) operations[r.operation] = 1;
  out << operations.size() << " operations, " << rows.size() << " checks, " << failures(rows)
      << " failed\n";
}

std::string certificate_json(const std::vector<CertificateRow>& rows) {
  std::string text = "[";
  for (const CertificateRow& r : rows) {
    const nlohmann::ordered_json row = {
        {"operation", r.operation},  {"tensor", r.tensor},   {"form", r.form},
        {"dtype", name_of(r.dtype)}, {"against", r.against}, {"error", r.error},
        {"bound", r.bound},          {"passed", r.passed()}, {"cases", r.cases},
        {"worst_case", r.case_name}, {"at", r.at},           {"got", r.got},
        {"expected", r.expected}};
    text += (text == "[" ? "\n " : ",\n ") + json_line(row);
  }
  return text + "\n]\n";
}

std::string certificate_junit(const std::vector<CertificateRow>& rows) {
  std::string text = concat(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"gradcheck\" "
      "tests=\"",
      rows.size(), "\" failures=\"", failures(rows), "\">\n");
  for (const CertificateRow& r : rows) {
    text += concat("  <testcase classname=\"", escaped_xml(r.operation), "\" name=\"",
                   escaped_xml(r.tensor), " ", r.form, " ", kind(r), "\"");
    if (r.passed())
      text += "/>\n";
    else
      text += concat(">\n    <failure message=\"", escaped_xml(description(r)),
                     "\"/>\n  </testcase>\n");
  }
  return text + "</testsuite>\n";
}

int run_gradcheck(const GradcheckArguments& a, std::ostream& out) {
  std::vector<const Operation*> list;
  for (const std::string& name : a.operations) list.push_back(&operation(name));
  const Device device = device_from(a.device);
  if (list.empty()) {
    list = operations();
    if (device.is_cuda()) {
      const auto rest = std::stable_partition(list.begin(), list.end(), has_cuda_form);
      std::for_each(rest, list.end(), tell_that_cpu_only);
      list.erase(rest, list.end());
    }
  }
  if (!a.junit.empty()) require_output(a.junit);
  std::vector<CertificateRow> rows;
  {
    TaskProgress line("gradcheck");
    for (size_t i = 0; i < list.size(); ++i) {
      const auto progress = [&](double part) {
        line.show((static_cast<double>(i) + part) / static_cast<double>(list.size()),
                  list[i]->name());
      };
      for (CertificateRow& r : certify(*list[i], device, progress, a.case_text))
        rows.push_back(std::move(r));
    }
  }
  require(!rows.empty(), "gradcheck --case \"", a.case_text, "\": no case's name holds that");
  if (!a.junit.empty()) write_file(a.junit, certificate_junit(rows));
  const bool taken = !a.junit.empty() && is_standard_output(a.junit);
  std::ostream& to = taken ? std::cerr : out;
  if (a.json)
    to << certificate_json(rows);
  else
    print_certificate(rows, to);
  return failures(rows) ? 1 : 0;
}

}  // namespace weft::train
