// Answers to a lesson's exercises, marked.
#pragma once

#include <string>
#include <vector>

#include "train/lessons/lesson.h"

namespace weft::train {

struct Mark {
  size_t exercise = 0;  // from 1
  bool right = false;
  std::string text;  // where it is wrong, a hint
};

// With the reader's own form, where there is one.
size_t exercise_count(const Lesson& lesson);
double right_answer(const Lesson& lesson, const Exercise& exercise);
// What each of its mistakes leads to.
std::vector<double> wrong_answers(const Lesson& lesson, const Exercise& exercise);
// Right to three digits.
bool is_right(double answer, double right);

// `path` is a text of lines "1 = 0.25", or an operation file (train/workbench/operation_file.h)
// with the inputs and the result of the reader's own form, which is the last exercise. Throws Error
// for a file that is neither.
std::vector<Mark> mark_answers(const Lesson& lesson, const std::string& path);

}  // namespace weft::train
