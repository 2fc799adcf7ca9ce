#include "train/gradients.h"

#include <algorithm>

namespace weft::train {

bool joins(const TreeNode& left, const TreeNode& right) {
  return left.count == right.count && left.begin % (2 * left.count) == 0;
}

std::vector<TreeNode> nodes_within(int64_t begin, int64_t count, size_t* most) {
  std::vector<TreeNode> list;
  size_t height = 0;
  for (int64_t i = begin; i < begin + count; ++i) {
    list.push_back({i, 1});
    height = std::max(height, list.size());
    while (list.size() > 1 && joins(list[list.size() - 2], list.back())) {
      list.pop_back();
      list.back().count *= 2;
    }
  }
  if (most) *most = height;
  return list;
}

Gradients::Gradients(const std::vector<layers::Parameter>& parameters, const Slices& slices,
                     Ranks& ranks, int64_t shards)
    : parameters_(parameters), ranks_(ranks), per_rank_(shards / ranks.size()) {
  const Device device = parameters_.front().var.value().device();
  const bool gpu = device.takes_cuda_forms();
  const Dtype dtype = gpu ? Dtype::f32 : parameters_.front().var.dtype();
  // Each begins where it would by itself: on 256 bytes, or 64.
  layout_ = Layout(parameters_, (gpu ? 256 : 64) / size_of(dtype),
                   std::vector<bool>(parameters_.size(), true));
  size_t most = 0;
  for (int r = 0; r < ranks_.size(); ++r) {
    size_t height = 0;
    nodes_.push_back(nodes_within(r * per_rank_, per_rank_, &height));
    if (r == ranks_.rank()) most = height;
  }
  for (int r = 0; r <= ranks_.size(); ++r) borders_.push_back(layout_.at(slices.border(r)));
  const OwnerScope owner("gradients");
  for (size_t i = 0; i < most; ++i) blocks_.push_back(empty({layout_.total()}, dtype, device));
  bind(0);
  if (ranks_.alone()) return;
  int64_t longest = 0;
  for (int r = 0; r < ranks_.size(); ++r)
    longest =
        std::max(longest, borders_[static_cast<size_t>(r) + 1] - borders_[static_cast<size_t>(r)]);
  size_t nodes = 0;  // of all ranks: as many pieces are added at a time
  for (const std::vector<TreeNode>& of_rank : nodes_) nodes += of_rank.size();
  chunk_ = std::min(longest, kArriving / std::max<int64_t>(1, static_cast<int64_t>(nodes) - 1));
  chunks_ = longest == 0 ? 0 : (longest + chunk_ - 1) / chunk_;
  arrivals_.resize(nodes_.size());
  for (int r = 0; r < ranks_.size(); ++r)
    if (r != ranks_.rank() || ranks_.size() == 1)
      for (size_t i = 0; i < nodes_[static_cast<size_t>(r)].size(); ++i)
        arrivals_[static_cast<size_t>(r)].push_back(empty({chunk_}, dtype, device));
}

Gradients::~Gradients() {
  for (const layers::Parameter& p : parameters_) p.var.drop_grad();
}

void Gradients::bind(size_t block) {
  bound_ = block;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto& var = parameters_[i].var;
    const int64_t begin = layout_.begin(i);
    var.set_grad(blocks_[block].slice(0, begin, begin + var.value().numel()).reshape(var.shape()));
  }
}

void Gradients::begin_step() {
  held_.clear();
  next_ = ranks_.rank() * per_rank_;
}

void Gradients::begin_shard() {
  if (bound_ != held_.size()) bind(held_.size());
  blocks_[bound_].zero();
}

void Gradients::end_shard() {
  held_.push_back({{next_++, 1}, blocks_[bound_]});
  join_last(held_);
}

// Adds up the end of the list as far as the tree allows.
void Gradients::join_last(std::vector<Held>& list) {
  while (list.size() > 1 && joins(list[list.size() - 2].node, list.back().node)) {
    Held& left = list[list.size() - 2];
    left.sum.add_from(list.back().sum);
    left.node.count *= 2;
    list.pop_back();
  }
}

// The whole tree, once all its nodes are there: what no power of two holds is added from the right.
Tensor Gradients::joined(const std::vector<Held>& list) {
  std::vector<Held> rest;
  for (const Held& h : list) {
    rest.push_back(h);
    join_last(rest);
  }
  for (; rest.size() > 1; rest.pop_back()) rest[rest.size() - 2].sum.add_from(rest.back().sum);
  return rest.front().sum;
}

void Gradients::end_step() {
  if (ranks_.alone())
    joined(held_);
  else
    join_ranks();
  if (bound_ != 0) bind(0);
}

// What of a block goes to a rank in one of the chunks.
Tensor Gradients::piece(const Tensor& block, int rank, int64_t chunk) const {
  const int64_t begin = borders_[static_cast<size_t>(rank)];
  const int64_t end = borders_[static_cast<size_t>(rank) + 1];
  return block.slice(0, std::min(end, begin + chunk * chunk_),
                     std::min(end, begin + (chunk + 1) * chunk_));
}

void Gradients::join_ranks() {
  const int own = ranks_.rank();
  for (int64_t c = 0; c < chunks_; ++c) {
    std::vector<Part> sends, receives;
    std::vector<Held> list;
    const Tensor here = piece(blocks_[0], own, c);
    for (int r = 0; r < ranks_.size(); ++r) {
      const std::vector<TreeNode>& nodes = nodes_[static_cast<size_t>(r)];
      const bool travels = r != own || ranks_.size() == 1;
      for (size_t i = 0; i < nodes.size(); ++i) {
        Tensor sum = piece(blocks_[i], own, c);
        if (travels) {
          sum = arrivals_[static_cast<size_t>(r)][i].slice(0, 0, here.numel());
          receives.push_back({r, sum});
        }
        list.push_back({nodes[i], sum});
      }
      if (travels)
        for (size_t i = 0; i < nodes_[static_cast<size_t>(own)].size(); ++i)
          sends.push_back({r, piece(blocks_[i], r, c)});
    }
    ranks_.transfer(sends, receives);
    if (here.numel() == 0) continue;
    const Tensor sum = joined(list);
    if (!sum.same_view(here)) here.copy_from(sum);
  }
}

}  // namespace weft::train
