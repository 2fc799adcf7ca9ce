// The sections of a lesson's page, as HTML.
#pragma once

#include <string>
#include <vector>

#include "train/lessons/lesson.h"
#include "train/pages/chart.h"
#include "train/workbench/bench.h"

namespace weft::train {

std::string equations_section(const Lesson& lesson);
std::string names_section(const Lesson& lesson);
std::string forms_section(const Lesson& lesson);
std::string gradient_section(const Lesson& lesson);
std::string gpu_section(const Lesson& lesson, double budget);
// `times` may be empty.
std::string cost_section(const Lesson& lesson, const std::vector<BenchRow>& times);
std::string exercises_section(const Lesson& lesson);

// What `weft bench OPERATIONS --device cuda` measures, or why there is nothing.
std::string measured_on_gpu(const std::vector<std::string>& operations, double budget);
// Cells are HTML. `look` is a class of the style, or empty.
std::string lesson_table(const std::vector<std::string>& heading,
                         const std::vector<std::vector<std::string>>& rows,
                         const std::string& look = "");
// A chart with a line above it that names its curves.
std::string lesson_chart(const Chart& chart);

}  // namespace weft::train
