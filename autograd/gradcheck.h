// Finite differences against backward(): the answer to "is this gradient right?".
// Central differences in fp64 (five points: the error falls with the fourth power of the step) over
// every element of every input, or, for large inputs, along random directions.
//
// The relative error of an input is max|a - n| / max(|a|, |n|), both maxima over the whole input: a
// gradient element near zero is held to the size of its neighbours, not to its own.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace weft::autograd {

struct InputReport {
  std::string name;
  double max_abs = 0;       // largest |analytic - numeric|
  double max_rel = 0;       // the same, relative as above
  std::vector<int64_t> at;  // index of the worst element (of the worst direction: its number)
  double analytic = 0, numeric = 0;
  bool passed = false;
};

struct GradcheckReport {
  std::vector<InputReport> inputs;
  bool passed() const;
  std::string text() const;  // a line per input
};

struct GradcheckOptions {
  double bound = 1e-7;  // on max_rel
  double step = 1e-3;   // relative to max(1, |x|)
  int directions = 0;   // 0: every element; else so many random directions per input
  uint64_t seed = 1;
};

struct NamedInput {
  std::string name;
  Tensor value;  // f64; must not share memory with another
};

// The gradient of sum_i <weight_i, y_i> for y = f(inputs), weights random and fixed by the seed.
// `f` may use other leaves (parameters of a layer); pass them too if they are to be checked.
GradcheckReport gradcheck(const std::function<std::vector<Var>(const std::vector<Var>&)>& f,
                          const std::vector<NamedInput>& inputs,
                          const GradcheckOptions& options = {});

// One input of any scalar function, against a gradient from anywhere: `loss` is called with x
// changed in place.
InputReport check_input(const std::string& name, const std::function<double()>& loss,
                        const Tensor& x, const Tensor& gradient,
                        const GradcheckOptions& options = {});

}  // namespace weft::autograd
