// Rows taken by index, and the sums of rows by index that undo it, on the GPU.
#pragma once

#include "kernels/lookup/sort.cuh"

namespace weft::kernels {

// to [Q, D] = factor[q] from[index[q]][:]; factor may be null. from [*, D] has rows contiguous.
template <class Real>
void gather_rows(int64_t Q, int64_t D, const int32_t* index, const Real* factor, const Tensor& from,
                 Real* to, Device device);

// The rows that a gather took, added up where they came from: for r in 0 .. R - 1
//   to[r][:] = sum of factor[q] from[q / repeat][:] over the q with index[q] == r, in the order of
//       q.
// Sums are made in fp32 and rounded once. The memory goes by Q, R and D.
class ScatterRows {
 public:
  ScatterRows(int64_t Q, int64_t R, int64_t D, Device device);

  // index: i32 [Q] on the device, contiguous, in 0 .. R - 1; factor: [Q] or null. Not for a meta
  // device.
  template <class Real>
  void run(const int32_t* index, const Real* factor, const Tensor& from, int repeat,
           Real* to) const;

 private:
  int64_t Q_, R_, D_;
  Device device_;
  SortByKey sorted_;
  Tensor starts_;  // i32 [R + 1]: where the q of r begin in the sorted order
  Tensor parts_;   // f32 [chunks, 2, D]: sums of the runs that a chunk shares with its neighbours
};

}  // namespace weft::kernels
