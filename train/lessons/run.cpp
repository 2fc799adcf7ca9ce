#include "train/lessons/run.h"

#include <cassert>

#include "autograd/gradcheck.h"
#include "core/error.h"

namespace weft::train {
namespace {

using namespace kernels;

constexpr int kPlaces = 5;

double start_of(const Values& example, const Slider& s) {
  const auto& values = example.at(s.name);
  const auto found = values.find(s.token == 0 ? values.begin()->first : Index{s.token});
  require(found != values.end(), "lesson: the example has no ", s.name, " ", s.token);
  return found->second.at.at(s.entry == 0 ? 0 : static_cast<size_t>(s.entry) - 1);
}

// The sum of the outputs times the example's gradients of them.
double loss_of(const Operation& op, const Tensors& in, const Settings& settings,
               const Tensors& weights) {
  double sum = 0;
  const Tensors y = op.forward(Form::naive, in, settings);
  for (const auto& [name, t] : y) {
    const auto w = weights.find(gradient_name(name));
    if (w == weights.end()) continue;
    const std::vector<double> a = to_doubles(t), b = to_doubles(w->second);
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  }
  return sum;
}

}  // namespace

std::vector<double> first_places(const Lesson& l) {
  const Values example = example_numbers(l);
  std::vector<double> places;
  for (const Slider& s : l.sliders) places.push_back(start_of(example, s));
  return places;
}

std::vector<std::vector<double>> checked_places(const Lesson& l) {
  const std::vector<double> first = first_places(l);
  std::vector<std::vector<double>> all = {first};
  for (size_t i = 0; i < l.sliders.size(); ++i)
    for (int n = 0; n < kPlaces; ++n) {
      const Slider& s = l.sliders[i];
      all.push_back(first);
      all.back()[i] = s.low + (s.high - s.low) * n / (kPlaces - 1);
    }
  return all;
}

Values placed(const Lesson& l, const std::vector<double>& sliders) {
  Values example = example_numbers(l);
  for (size_t i = 0; i < l.sliders.size(); ++i) change(example, l.sliders[i], sliders.at(i));
  return example;
}

Values operation_outputs(const Lesson& l, const Values& example, Form form) {
  const Operation& op = operation(l.operation);
  return numbers_of(op.outputs(),
                    op.forward(form, tensors_with(l, example), settings_with(l, example)));
}

Values operation_gradients(const Lesson& l, const Values& example) {
  if (l.operation.empty()) return {};
  const Operation& op = operation(l.operation);
  return numbers_of(op.inputs(),
                    op.backward(Form::chunkwise, tensors_with(l, example),
                                settings_with(l, example), example_tensors(l, op.outputs(), true)),
                    true);
}

Values program_numbers(const Lesson& l, size_t i, const Values& example) {
  const auto own = l.forms.at(i).program;
  assert(own || !l.operation.empty());
  return own ? own(example) : operation_outputs(l, example, Form::naive);
}

Values solved_form(const Lesson& l, size_t i, const Values& example) {
  Values numbers = example;
  solve(equations_of(l.forms.at(i).equations), numbers);
  return numbers;
}

Values solved_gradient(const Lesson& l, const Values& example) {
  Values numbers = solved_form(l, 0, example);
  solve(equations_of(l.gradient.equations), numbers);
  return numbers;
}

std::vector<GradientRow> gradient_rows(const Lesson& l) {
  if (l.operation.empty()) return {};
  const Operation& op = operation(l.operation);
  const Values example = example_numbers(l), ours = solved_gradient(l, example);
  const Values program = operation_gradients(l, example);
  const Tensors in = tensors_with(l, example), weights = example_tensors(l, op.outputs(), true);
  const Settings settings = settings_with(l, example);
  const auto loss = [&] { return loss_of(op, in, settings, weights); };
  std::vector<GradientRow> rows;
  for (const Field& f : op.inputs()) {
    if (in.count(f.name) == 0) continue;
    const std::string name = gradient_name(f.name);
    const Tensor flat = in.at(f.name).reshape({-1});
    int64_t place = 0;
    for (const auto& [index, value] : program.at(name))
      for (size_t entry = 0; entry < value.at.size(); ++entry, ++place) {
        const Tensor one = flat.slice(0, place, place + 1);
        const Tensor known = full({1}, value.at[entry], Dtype::f64);
        const auto found = ours.at(name).find(index);
        require(found != ours.at(name).end(), l.name, ": the equations give no ", name);
        rows.push_back({f.name, index, value.rank == 0 ? 0 : entry + 1, found->second.at.at(entry),
                        value.at[entry], autograd::check_input(name, loss, one, known).numeric});
      }
  }
  return rows;
}

std::vector<double> first_places(const Experiment& e) {
  std::vector<double> places;
  for (const Experiment::Knob& k : e.knobs) places.push_back(k.start);
  return places;
}

Values solved_experiment(const Experiment& e, const std::vector<double>& places) {
  Values numbers;
  for (size_t i = 0; i < e.knobs.size(); ++i)
    numbers[e.knobs[i].name][{}] = number_value(places.at(i));
  solve(equations_of(e.equations), numbers);
  return numbers;
}

}  // namespace weft::train
