#include "train/workbench/certificate.h"

#include <algorithm>
#include <iostream>
#include <limits>

#include "autograd/gradcheck.h"
#include "core/file.h"
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

void add_definition(const Operation& op, const NamedCase& c, Dtype dtype, CertificateRows& rows) {
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
void add_cuda(const Operation& op, const NamedCase& c, Dtype dtype, Device device,
              CertificateRows& rows) {
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

void add_differences(const Operation& op, const NamedCase& c, CertificateRows& rows) {
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

bool has_cuda_form(const Operation* op) { return op->has_cuda_form(); }

void tell_that_cpu_only(const Operation* op) {
  std::cerr << "gradcheck: " << op->name() << " has no form on a GPU and is left out\n";
}

}  // namespace

std::vector<CertificateRow> certify(const Operation& op, Device device,
                                    const std::function<void(double)>& progress,
                                    const std::string& case_text) {
  CertificateRows rows;
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
  return failed_rows(rows) > 0 ? 1 : 0;
}

}  // namespace weft::train
