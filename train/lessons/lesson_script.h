// The script and the style of a lesson's page, beside those of every page.
#pragma once

#include <string_view>

namespace weft::train {

// Computes the lesson's equations from the data in the page, on its own: it shares no code with the
// program, so that the line that compares both means something. It steps through the forms, follows
// the sliders and redraws the experiments.
std::string_view lesson_script();
std::string_view lesson_style();

}  // namespace weft::train
