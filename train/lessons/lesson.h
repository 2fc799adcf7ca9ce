// A lesson: what a page teaches of one mechanism. A file of this room states one and registers it;
// lesson_page.h makes the page, marking.h marks the answers to its exercises.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/contract/operation.h"
#include "train/lessons/equations.h"

namespace weft::train {

// A symbol of the formulas and the name that the code gives it, in a file that a test reads.
struct CodeName {
  std::string formula, name, file, meaning;
};

// A form of the mechanism: its equations give every output of the operation that they name. A form
// with a `program` of its own gives the numbers that this computes by the program's code.
struct LessonForm {
  std::string title, text, equations;
  Values (*program)(const Values& example) = nullptr;
};

// Changes one number of the example: input `name` at `token` (0: at every token), of a vector its
// `entry` (from 1), or what has no token.
struct Slider {
  std::string label, name;
  int64_t token = 0, entry = 0;
  double low = 0, high = 1, step = 0.05;
};

// Values that the reader sets, equations over them, and what is drawn of the results. A picture
// shows `curves`, names with one index, against that index.
struct Experiment {
  struct Knob {
    std::string label, name;
    double low, high, step, start;
  };
  struct Curve {
    std::string label, name;
    bool dots = false;
  };
  std::string title, text;
  std::vector<Knob> knobs;
  std::string equations;
  std::string across, upwards;  // what the axes are
  std::vector<Curve> curves;
};

// One number, named `answer` by the equations. They stand behind those of the naive form, on the
// example with `changes`. A wrong number that a mistake's equations give gets its hint.
struct Exercise {
  struct Change {
    std::string name;
    int64_t token = 0;
    std::vector<double> value;
  };
  struct Mistake {
    std::string equations, hint;
  };
  std::string question;
  std::vector<Change> changes;
  std::string equations;
  std::vector<Mistake> mistakes;
  std::string hint;
};

// A lesson without an operation teaches what stands around the mechanisms: its forms have programs
// of their own, it has no gradient, and it may measure.
struct Lesson {
  std::string name, operation, title, summary;
  std::vector<std::string> first;  // lessons to read before
  std::string problem;
  std::vector<CodeName> names;
  // Values of the inputs and of the gradients of the outputs by name; a row for each token, or
  // one row where there are no tokens. All sizes beside T, K and V are one.
  std::map<std::string, std::vector<std::vector<double>>> example;
  kernels::Settings settings;
  std::map<std::string, std::string> symbols = {{"scale", "scale"}};  // of settings, in equations
  std::map<std::string, double> constants;  // of the equations: the chunk C
  // Index tensors of the operation, made from the example; their names, and how a reader in Python
  // makes them for 12 tokens.
  kernels::Tensors (*index)(const Values& example) = nullptr;
  std::vector<std::string> index_names;
  std::string index_python;
  std::vector<Slider> sliders;
  std::vector<LessonForm> forms;
  LessonForm gradient;  // its equations give the gradient of every input
  std::string gpu, cost;
  std::string shapes;  // a word in the names of the shapes of `gpu`; empty: all are shown
  // FLOPs of forward and of backward at length T, H heads, widths K and V, with a window of W or A
  // pairs that are seen: those of the operation's benchmark.
  std::string forward_flops, backward_flops;
  std::vector<std::string> bench_without;  // optional inputs that its benchmark leaves out
  std::vector<std::string> bench_set;      // options of its benchmark, "window=64"
  std::string recipe;  // TOML of a small model that shows what is read of a text
  std::vector<Experiment> experiments;
  // What the page measures, as HTML, within about so many seconds; 0: nothing that two runs would
  // tell differently.
  std::string (*measure)(double budget) = nullptr;
  std::vector<Exercise> exercises;
  // Of the last exercise, the reader's own form: what it computes if these settings differ.
  std::vector<std::pair<kernels::Settings, std::string>> wrong_settings;
};

// A recipe of one layer with this mixer, small enough to read a text while the page is made.
std::string small_recipe(const std::string& mixer, const std::string& settings = "");

// In the order in which they are read. lesson() throws Error that names the nearest.
const std::vector<Lesson>& lessons();
const Lesson& lesson(const std::string& name);

// Puts a lesson on the list: `place` is its place in the order.
struct RegisteredLesson {
  RegisteredLesson(int place, Lesson (*make)());
};

// The example as an operation takes it, and as equations see it: the inputs by token from 1, and
// T, K, V, scale and the constants.
kernels::Tensors example_tensors(const Lesson& lesson, const std::vector<kernels::Field>& fields,
                                 bool gradients = false);
Values example_numbers(const Lesson& lesson);
void change(Values& numbers, const std::string& name, int64_t token, const Value& value);
void change(Values& numbers, const Slider& slider, double value);

// What an operation gave, as equations name it.
Values numbers_of(const std::vector<kernels::Field>& fields, const kernels::Tensors& tensors,
                  bool gradients = false);
// What `name` holds at tokens 1 to T: [1, T, 1, width], and [1, T, 1] of numbers.
Tensor tokens_of(const Values& numbers, const std::string& name);
// A number without an index as the text of a setting.
std::string number_setting(const Values& numbers, const std::string& name);
// The example's tensors with the numbers that `numbers` has for them, and its index tensors.
kernels::Tensors tensors_with(const Lesson& lesson, const Values& numbers);
kernels::Settings settings_with(const Lesson& lesson, const Values& numbers);

// The largest |a - b| over the numbers that both have; infinity where they share none.
double largest_difference(const Values& a, const Values& b);

}  // namespace weft::train
