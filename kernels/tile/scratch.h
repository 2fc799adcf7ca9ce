// Scratch memory of the threads of a parallel loop, laid out by a struct Tiles whose constructor
// takes a Carver and the problem: once without memory, to be measured, and once in every task.
#pragma once

#include "core/parallel.h"
#include "core/tensor.h"
#include "kernels/tile/tile.h"

namespace weft::kernels {

template <class Tiles, class Real, class Problem>
Tensor scratch_for(const Problem& p, Device device) {
  Carver<Real> measure;
  Tiles(measure, p);
  return empty({thread_count(), tiled(measure.used())}, dtype_of<Real>(), device);
}

// Of the calling thread.
template <class Tiles, class Real, class Problem>
Tiles scratch_tiles(const Problem& p, const Tensor& scratch) {
  Carver<Real> carver(scratch.data<Real>() + thread_index() * scratch.size(1));
  return Tiles(carver, p);
}

}  // namespace weft::kernels
