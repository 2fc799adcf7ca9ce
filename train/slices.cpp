#include "train/slices.h"

#include <algorithm>
#include <set>

#include "autograd/leaves.h"
#include "kernels/optimizer/adamw.h"

namespace weft::train {
namespace {

constexpr int64_t kLine = 256;  // bytes at which each value of a block begins, as by itself

int64_t rounded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

Slices::Slices(const std::vector<layers::Parameter>& parameters, int ranks)
    : views_(static_cast<size_t>(ranks)) {
  int64_t total = 0;
  for (const layers::Parameter& p : parameters) total += p.var.value().numel();
  int64_t done = 0;
  borders_.push_back({});
  for (size_t i = 0; i < parameters.size(); ++i) {
    const int64_t n = parameters[i].var.value().numel();
    for (int64_t at = 0; at < n; at += kernels::kAdamwCut) {
      const int64_t end = std::min(n, at + kernels::kAdamwCut);
      while (static_cast<int>(borders_.size()) < ranks &&
             (done + at) * ranks >= total * static_cast<int64_t>(borders_.size()))
        borders_.push_back({i, at, at});
      std::vector<View>& own = views_[borders_.size() - 1];
      if (!own.empty() && own.back().parameter == i)
        own.back().end = end;
      else
        own.push_back({i, at, end});
    }
    done += n;
  }
  while (static_cast<int>(borders_.size()) <= ranks) borders_.push_back({parameters.size(), 0, 0});
}

Layout::Layout(const std::vector<layers::Parameter>& parameters, int64_t unit,
               const std::vector<bool>& has_room)
    : has_room_(has_room) {
  int64_t at = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    begins_.push_back(at);
    if (has_room_[i]) at += rounded(parameters[i].var.value().numel(), unit);
  }
  begins_.push_back(at);
}

int64_t Layout::at(const View& border) const {
  const bool inside = border.parameter < has_room_.size() && has_room_[border.parameter];
  return begins_[border.parameter] + (inside ? border.begin : 0);
}

SharedWeights::SharedWeights(std::vector<layers::Parameter>& parameters, const Slices& slices) {
  std::set<Dtype> dtypes;
  for (const layers::Parameter& p : parameters) dtypes.insert(p.var.dtype());
  const OwnerScope owner("parameters");
  for (const Dtype t : dtypes) {
    std::vector<bool> of_dtype;
    for (const layers::Parameter& p : parameters) of_dtype.push_back(p.var.dtype() == t);
    const Layout layout(parameters, kLine / size_of(t), of_dtype);
    Block block;
    block.values = empty({layout.total()}, t, parameters.front().var.value().device());
    for (int r = 0; r <= slices.ranks(); ++r) block.borders.push_back(layout.at(slices.border(r)));
    for (size_t i = 0; i < parameters.size(); ++i) {
      layers::Parameter& p = parameters[i];
      if (!of_dtype[i]) continue;
      const int64_t begin = layout.begin(i);
      const bool itself = p.var.value().shares_memory(p.master);
      autograd::move_value(
          p.var,
          block.values.slice(0, begin, begin + p.var.value().numel()).reshape(p.var.shape()));
      if (itself) p.master = p.var.value();
    }
    blocks_.push_back(std::move(block));
  }
}

void SharedWeights::gather(Ranks& ranks) const {
  std::vector<Part> sends, receives;
  for (const Block& b : blocks_) {
    const auto slice = [&](int rank) {
      const auto r = static_cast<size_t>(rank);
      return b.values.slice(0, b.borders[r], b.borders[r + 1]);
    };
    for (int r = 0; r < ranks.size(); ++r) {
      if (r == ranks.rank()) continue;
      sends.push_back({r, slice(ranks.rank())});
      receives.push_back({r, slice(r)});
    }
  }
  ranks.transfer(sends, receives);
}

Tensor part_of(const Tensor& whole, const View& view) {
  return whole.reshape({whole.numel()}).slice(0, view.begin, view.end);
}

}  // namespace weft::train
