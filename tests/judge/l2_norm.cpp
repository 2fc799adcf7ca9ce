// Answers cases of `l2_norm` in C++, forward and backward. From the top of the source:
//   h5c++ -std=c++17 -I. tests/judge/l2_norm.cpp -o l2_norm
//   weft cases l2_norm cases && (cd cases && ../l2_norm . *.h5) && weft judge cases
#include <cmath>

#include "tests/judge/case_file.h"

int main(int count, char** words) {
  for (int i = 2; i < count; ++i) {
    const answers::CaseFile file(words[1], words[i]);
    const answers::Matrix x = file.matrix("inputs/x"), dy = file.matrix("grad_outputs/dy");
    const double eps = file.option("eps");
    answers::Matrix y = x, dx = x;
    for (hsize_t r = 0; r < x.rows; ++r) {
      const size_t row = r * x.columns;
      double squares = eps, along = 0;
      for (hsize_t d = 0; d < x.columns; ++d) squares += x.x[row + d] * x.x[row + d];
      const double scale = 1 / std::sqrt(squares);
      for (hsize_t d = 0; d < x.columns; ++d) {
        y.x[row + d] = scale * x.x[row + d];
        along += y.x[row + d] * dy.x[row + d];
      }
      for (hsize_t d = 0; d < x.columns; ++d)
        dx.x[row + d] = scale * (dy.x[row + d] - along * y.x[row + d]);
    }
    file.write("outputs/y", y, "inputs/x");
    file.write("gradients/dx", dx, "inputs/x");
  }
}
