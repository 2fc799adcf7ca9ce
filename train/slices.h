// How ranks share a model: the parameters, one behind the other, are cut into as many slices as
// there are ranks. The rank that owns a slice sums its gradients, holds its exact numbers and
// moments, and updates it; the new weights then go to all (ZeRO, arXiv:1910.02054, stage 1).
#pragma once

#include <cstdint>
#include <vector>

#include "core/ranks.h"
#include "layers/layer.h"

namespace weft::train {

// Elements [begin, end) of a parameter, in row-major order.
struct View {
  size_t parameter = 0;
  int64_t begin = 0, end = 0;
};

// Cut at multiples of kernels::kAdamwCut within a parameter, so that no piece of the norm's sum
// lies in two slices. Slices differ by such a piece at most.
class Slices {
 public:
  Slices(const std::vector<layers::Parameter>& parameters, int ranks);
  const std::vector<View>& of(int rank) const { return views_[static_cast<size_t>(rank)]; }
  // The first element of a slice; for rank = the number of ranks, the end of the last parameter.
  const View& border(int rank) const { return borders_[static_cast<size_t>(rank)]; }
  int ranks() const { return static_cast<int>(views_.size()); }

 private:
  std::vector<std::vector<View>> views_;
  std::vector<View> borders_;
};

// Tensors of all parameters in one block of memory, in order, each begun at a multiple of `unit`
// elements. Parameters that are left out have no room.
class Layout {
 public:
  Layout() = default;
  Layout(const std::vector<layers::Parameter>& parameters, int64_t unit,
         const std::vector<bool>& has_room);
  int64_t total() const { return begins_.back(); }
  int64_t begin(size_t parameter) const { return begins_[parameter]; }
  // Where the slice begins whose first element this is.
  int64_t at(const View& border) const;

 private:
  std::vector<int64_t> begins_;  // and the end
  std::vector<bool> has_room_;
};

// The weights of all ranks: the leaves' values in blocks of one dtype, so that a slice of them is
// one or two pieces of memory.
class SharedWeights {
 public:
  // Moves the values there, and the masters that are the values themselves.
  SharedWeights(std::vector<layers::Parameter>& parameters, const Slices& slices);
  // Each rank's slice goes to all others.
  void gather(Ranks& ranks) const;

 private:
  struct Block {
    Tensor values;
    std::vector<int64_t> borders;  // of slices
  };
  std::vector<Block> blocks_;
};

// A part of a tensor, as a row of numbers.
Tensor part_of(const Tensor& whole, const View& view);

}  // namespace weft::train
