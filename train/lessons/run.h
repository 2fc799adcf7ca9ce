// The numbers of a lesson's page: what the program's own forms give on the example, and what the
// lesson's equations give there.
#pragma once

#include "train/lessons/lesson.h"

namespace weft::train {

// The example with every slider at its place.
Values placed(const Lesson& lesson, const std::vector<double>& sliders);
// Where the sliders stand at first.
std::vector<double> first_places(const Lesson& lesson);
// The first places, and each slider at five more with the others at their first.
std::vector<std::vector<double>> checked_places(const Lesson& lesson);

// The outputs of the operation's form in f64 on these numbers.
Values operation_outputs(const Lesson& lesson, const Values& example, kernels::Form form);
// The gradients of its inputs, by the form that trains.
Values operation_gradients(const Lesson& lesson, const Values& example);

// What the program gives for form `i`: its own numbers, or the operation's naive form.
Values program_numbers(const Lesson& lesson, size_t i, const Values& example);

// All that the equations of form `i` give; those of the gradient stand behind form 0.
Values solved_form(const Lesson& lesson, size_t i, const Values& example);
Values solved_gradient(const Lesson& lesson, const Values& example);

// One entry of an input: three ways to its gradient.
struct GradientRow {
  std::string name;  // of the input
  Index index;
  size_t entry = 0;  // of the vector, from 1; 0: a number
  double equations = 0, program = 0, differences = 0;
};
std::vector<GradientRow> gradient_rows(const Lesson& lesson);

// An experiment with its knobs at `places`.
Values solved_experiment(const Experiment& experiment, const std::vector<double>& places);
std::vector<double> first_places(const Experiment& experiment);

}  // namespace weft::train
