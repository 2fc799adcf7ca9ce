// What the signs of a lesson's formulas mean: a table for readers who have not met them.
#pragma once

#include <string>
#include <vector>

#include "train/lessons/lesson.h"

namespace weft::train {

// The functions that the lesson's forms and gradient call, each once, in the order of the table.
std::vector<std::string> functions_of(const Lesson& lesson);
// The signs of these functions, what they mean, and each with numbers that the program computes.
std::string signs_section(const Lesson& lesson);

}  // namespace weft::train
