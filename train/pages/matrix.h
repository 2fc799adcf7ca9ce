// An attention matrix as SVG: a row for each token that reads, a column for each that is read.
#pragma once

#include <string>
#include <vector>

namespace weft::train {

// The lower triangle of `values`, row-major [T, T], in a box of T x T: what is added is blue, what
// is taken away is orange. The shade grows with the square root of |value| / largest. A place that
// is exactly zero, because the mechanism does not look there, is grey.
std::string matrix_inside(const std::vector<double>& values, size_t T, double largest);
// The largest |value|.
double largest_of(const std::vector<double>& values);
// The lower triangle as signed 16-bit numbers of `largest`, little-endian, in base64.
std::string packed_cells(const std::vector<double>& values, size_t T, double largest);

}  // namespace weft::train
