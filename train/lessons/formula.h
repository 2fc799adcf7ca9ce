// Equations as formulas that a browser draws (MathML), and prose with formulas in it.
#pragma once

#include <string>
#include <string_view>

#include "train/lessons/equations.h"

namespace weft::train {

// "S[t-1]" as S with the index t - 1, within <math>. Two expressions may stand around " = ".
std::string formula(const Expression& expression);
std::string formula(std::string_view expression);

// The lines as a list: each is an element with data-line, and has its note beside it.
std::string formulas(const Equations& equations);

// HTML in which every $expression$ has become a formula, and every `name` is code.
std::string with_formulas(std::string_view html);

}  // namespace weft::train
