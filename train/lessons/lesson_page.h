// The page of a lesson, and the page that lists all of them. Each needs nothing from outside.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/lessons/lesson.h"
#include "train/workbench/bench.h"

namespace weft::train {

// What is not of the lesson alone: times of this machine, and what a model reads of a text.
struct LessonSurroundings {
  std::vector<BenchRow> times;  // of the operation and of dense attention
  std::string reads;            // HTML: what a model reads of a text
  double budget = 0;            // seconds for what the lesson itself measures
  // For the script, beside what the lesson adds. Its "matrices" belong to `reads`.
  nlohmann::ordered_json* data = nullptr;
};

// The sections, by the id of their element, in order.
std::vector<std::string> lesson_sections(const Lesson& lesson);
std::string lesson_page(const Lesson& lesson, const LessonSurroundings& around);
std::string lesson_index();
// "lesson-attention.html"
std::string lesson_file(const std::string& name);

}  // namespace weft::train
